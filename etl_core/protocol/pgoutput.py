"""Parses pgoutput messages, protocol versions 1 to 4: bytes → one dataclass of `etl_core.protocol.messages`.

In the order of https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html, one function per
message, fields in wire order. The stream's hot path does not parse row messages: it splits them in columns.
The functions for them here say what those bytes mean.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.messages import (
    NULL,
    UNCHANGED,
    Begin,
    BeginPrepare,
    ColumnKind,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    LogicalDecodingMessage,
    Message,
    Origin,
    Prepare,
    Relation,
    RelationColumn,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    TupleColumn,
    TupleData,
    Type,
    Update,
)
from etl_core.protocol.wire import Buffer, Reader
from etl_core.schema.table import ReplicaIdentity

_UINT16 = struct.Struct(">H")
_UINT32 = struct.Struct(">I")
_UINT64 = struct.Struct(">Q")
_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">QQq")
_COLUMN_TYPE = struct.Struct(">Ii")
_TRUNCATE = struct.Struct(">IB")
_STREAM_ABORT = struct.Struct(">II")
_ABORT_POSITION = struct.Struct(">Qq")
_PREPARE = struct.Struct(">QQqI")
_ROLLBACK_PREPARED = struct.Struct(">QQqqI")

_NEW, _KEY, _OLD = b"NKO"
_KIND_NULL, _KIND_UNCHANGED, _KIND_TEXT, _KIND_BINARY = b"nutb"
_CASCADE, _RESTART_IDENTITY = 1, 2


def parse_message(data: Buffer, *, protocol_version: int = 1, in_stream: bool = False) -> Message:
    """Parses one whole message, as negotiated by START_REPLICATION's `proto_version`.

    `in_stream` says that the message stands between Stream Start and Stream Stop, where row and schema messages
    carry a transaction id. Raises MalformedMessage, with the offset from the message's tag; ValueError if
    `protocol_version` is not 1, 2, 3 or 4.
    """
    if protocol_version not in _CONTROL:
        raise ValueError(f"pgoutput has protocol versions 1 to 4, not {protocol_version}")
    reader = Reader(data)
    tag = reader.byte()
    if tag in _CHANGES:
        reader.message, parse_change = _CHANGES[tag]
        message = parse_change(reader, reader.unpack(_UINT32)[0] if in_stream else None)
    elif tag in _CONTROL[protocol_version]:
        reader.message, parse_control = _CONTROL[protocol_version][tag]
        message = parse_control(reader)
    else:
        raise reader.malformed(f"unknown tag 0x{tag:02x} in protocol version {protocol_version}", offset=0)
    reader.finish()
    return message


def _parse_begin(reader: Reader) -> Begin:
    start = reader.offset
    final_lsn, commit_time, xid = reader.unpack(_BEGIN)
    return Begin(reader.position(final_lsn, "the final LSN", offset=start), commit_time, xid)


def _parse_logical_decoding_message(reader: Reader, xid: int | None) -> LogicalDecodingMessage:
    transactional = reader.flag("transactional")
    (lsn,) = reader.unpack(_UINT64)
    return LogicalDecodingMessage(xid, transactional, Lsn(lsn), reader.string(), reader.sized())


def _parse_commit(reader: Reader) -> Commit:
    reader.no_flags()
    return Commit(*_commit_fields(reader))


def _commit_fields(reader: Reader) -> tuple[Lsn, Lsn, int]:
    start = reader.offset
    commit_lsn, end_lsn, commit_time = reader.unpack(_COMMIT)
    return (
        reader.position(commit_lsn, "the commit LSN", offset=start),
        reader.position(end_lsn, "the end LSN", offset=start + 8),
        commit_time,
    )


def _parse_origin(reader: Reader) -> Origin:
    (commit_lsn,) = reader.unpack(_UINT64)
    return Origin(Lsn(commit_lsn), reader.string())


def _parse_relation(reader: Reader, xid: int | None) -> Relation:
    (oid,) = reader.unpack(_UINT32)
    namespace = _namespace(reader)
    name = reader.string()
    identity = _replica_identity(reader)
    (count,) = reader.unpack(_UINT16)
    columns = tuple(_relation_column(reader) for _ in range(count))
    return Relation(xid, TableId(oid), namespace, name, identity, columns)


def _namespace(reader: Reader) -> str:
    return reader.string() or "pg_catalog"


def _replica_identity(reader: Reader) -> ReplicaIdentity:
    code = reader.byte()
    try:
        return ReplicaIdentity(chr(code))
    except ValueError:
        raise reader.malformed(f"unknown replica identity 0x{code:02x}", offset=reader.offset - 1) from None


def _relation_column(reader: Reader) -> RelationColumn:
    key = reader.flag("part of the key")
    name = reader.string()
    type_oid, type_modifier = reader.unpack(_COLUMN_TYPE)
    return RelationColumn(key, name, type_oid, type_modifier)


def _parse_type(reader: Reader, xid: int | None) -> Type:
    (oid,) = reader.unpack(_UINT32)
    return Type(xid, oid, _namespace(reader), reader.string())


def _parse_insert(reader: Reader, xid: int | None) -> Insert:
    (oid,) = reader.unpack(_UINT32)
    _expect_new(reader, reader.byte())
    return Insert(xid, TableId(oid), _tuple_data(reader))


def _parse_update(reader: Reader, xid: int | None) -> Update:
    (oid,) = reader.unpack(_UINT32)
    tag = reader.byte()
    key = old = None
    if tag == _KEY:
        key, tag = _tuple_data(reader), reader.byte()
    elif tag == _OLD:
        old, tag = _tuple_data(reader), reader.byte()
    _expect_new(reader, tag)
    return Update(xid, TableId(oid), key, old, _tuple_data(reader))


def _parse_delete(reader: Reader, xid: int | None) -> Delete:
    (oid,) = reader.unpack(_UINT32)
    tag = reader.byte()
    if tag == _KEY:
        return Delete(xid, TableId(oid), _tuple_data(reader), None)
    if tag == _OLD:
        return Delete(xid, TableId(oid), None, _tuple_data(reader))
    raise reader.malformed(f"a key or old tuple expected, not 0x{tag:02x}", offset=reader.offset - 1)


def _expect_new(reader: Reader, tag: int) -> None:
    if tag != _NEW:
        raise reader.malformed(f"a new tuple expected, not 0x{tag:02x}", offset=reader.offset - 1)


def _parse_truncate(reader: Reader, xid: int | None) -> Truncate:
    start = reader.offset
    count, options = reader.unpack(_TRUNCATE)
    if options > _CASCADE | _RESTART_IDENTITY:
        raise reader.malformed("unknown options", offset=start + 4)
    if count * _UINT32.size != reader.remaining:
        raise reader.malformed(f"{reader.remaining} bytes are not {count} relations", offset=start)
    table_ids = tuple(TableId(reader.unpack(_UINT32)[0]) for _ in range(count))
    return Truncate(xid, bool(options & _CASCADE), bool(options & _RESTART_IDENTITY), table_ids)


def _parse_stream_start(reader: Reader) -> StreamStart:
    (xid,) = reader.unpack(_UINT32)
    return StreamStart(xid, reader.flag("first segment"))


def _parse_stream_stop(_reader: Reader) -> StreamStop:
    return StreamStop()


def _parse_stream_commit(reader: Reader) -> StreamCommit:
    (xid,) = reader.unpack(_UINT32)
    reader.no_flags()
    return StreamCommit(xid, *_commit_fields(reader))


def _parse_stream_abort(reader: Reader) -> StreamAbort:
    xid, subxid = reader.unpack(_STREAM_ABORT)
    return StreamAbort(xid, subxid, None, None)


def _parse_stream_abort_since_4(reader: Reader) -> StreamAbort:
    # Present with streaming 'parallel' only, which the message itself does not say: its length does.
    xid, subxid = reader.unpack(_STREAM_ABORT)
    if not reader.remaining:
        return StreamAbort(xid, subxid, None, None)
    abort_lsn, abort_time = reader.unpack(_ABORT_POSITION)
    return StreamAbort(xid, subxid, Lsn(abort_lsn), abort_time)


def _parse_begin_prepare(reader: Reader) -> BeginPrepare:
    return BeginPrepare(*_prepare_fields(reader, "the prepare LSN"))


def _parse_prepare(reader: Reader) -> Prepare:
    reader.no_flags()
    return Prepare(*_prepare_fields(reader, "the prepare LSN"))


def _parse_commit_prepared(reader: Reader) -> CommitPrepared:
    reader.no_flags()
    return CommitPrepared(*_prepare_fields(reader, "the commit LSN"))


def _prepare_fields(reader: Reader, first: str) -> tuple[Lsn, Lsn, int, int, str]:
    start = reader.offset
    lsn, end_lsn, time, xid = reader.unpack(_PREPARE)
    return (
        reader.position(lsn, first, offset=start),
        reader.position(end_lsn, "the end LSN", offset=start + 8),
        time,
        xid,
        reader.string(),
    )


def _parse_rollback_prepared(reader: Reader) -> RollbackPrepared:
    reader.no_flags()
    start = reader.offset
    prepare_end_lsn, rollback_end_lsn, prepare_time, rollback_time, xid = reader.unpack(_ROLLBACK_PREPARED)
    return RollbackPrepared(
        reader.position(prepare_end_lsn, "the end LSN of the prepared transaction", offset=start),
        reader.position(rollback_end_lsn, "the end LSN of the rollback", offset=start + 8),
        prepare_time,
        rollback_time,
        xid,
        reader.string(),
    )


def _parse_stream_prepare(reader: Reader) -> StreamPrepare:
    reader.no_flags()
    return StreamPrepare(*_prepare_fields(reader, "the prepare LSN"))


def _tuple_data(reader: Reader) -> TupleData:
    (count,) = reader.unpack(_UINT16)
    return TupleData(tuple(_tuple_column(reader) for _ in range(count)))


def _tuple_column(reader: Reader) -> TupleColumn:
    kind = reader.byte()
    if kind == _KIND_NULL:
        return NULL
    if kind == _KIND_UNCHANGED:
        return UNCHANGED
    if kind == _KIND_TEXT:
        return TupleColumn(ColumnKind.TEXT, reader.sized())
    if kind == _KIND_BINARY:
        return TupleColumn(ColumnKind.BINARY, reader.sized())
    raise reader.malformed(f"unknown column kind 0x{kind:02x}", offset=reader.offset - 1)


# tag → name, parse function. These carry a transaction id when they stand in a streamed block.
_CHANGES: Mapping[int, tuple[str, Callable[[Reader, int | None], Message]]] = {
    ord("M"): ("Message", _parse_logical_decoding_message),
    ord("R"): ("Relation", _parse_relation),
    ord("Y"): ("Type", _parse_type),
    ord("I"): ("Insert", _parse_insert),
    ord("U"): ("Update", _parse_update),
    ord("D"): ("Delete", _parse_delete),
    ord("T"): ("Truncate", _parse_truncate),
}

_ControlMessages = Mapping[int, tuple[str, Callable[[Reader], Message]]]

_SINCE_1: _ControlMessages = {
    ord("B"): ("Begin", _parse_begin),
    ord("C"): ("Commit", _parse_commit),
    ord("O"): ("Origin", _parse_origin),
}
_SINCE_2: _ControlMessages = {
    **_SINCE_1,
    ord("S"): ("Stream Start", _parse_stream_start),
    ord("E"): ("Stream Stop", _parse_stream_stop),
    ord("c"): ("Stream Commit", _parse_stream_commit),
    ord("A"): ("Stream Abort", _parse_stream_abort),
}
_SINCE_3: _ControlMessages = {
    **_SINCE_2,
    ord("b"): ("Begin Prepare", _parse_begin_prepare),
    ord("P"): ("Prepare", _parse_prepare),
    ord("K"): ("Commit Prepared", _parse_commit_prepared),
    ord("r"): ("Rollback Prepared", _parse_rollback_prepared),
    ord("p"): ("Stream Prepare", _parse_stream_prepare),
}
_SINCE_4: _ControlMessages = {**_SINCE_3, ord("A"): ("Stream Abort", _parse_stream_abort_since_4)}

_CONTROL: Mapping[int, _ControlMessages] = {1: _SINCE_1, 2: _SINCE_2, 3: _SINCE_3, 4: _SINCE_4}
