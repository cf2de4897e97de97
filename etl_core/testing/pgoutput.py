"""Builds the bytes a server would send, for tests of decoders and for recorded streams.

    build_message(Begin(final_lsn=Lsn.parse("0/2A0"), commit_time=0, xid=7))
    build_message(Insert(None, TableId(16384), build_tuple("1", None, UNCHANGED, b"\\x01")))
    build_xlog_data(message, wal_start=lsn)

Written from the manual on its own, without the parser's layouts, so that each can contradict the other.
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct

from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import (
    NULL,
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


def build_tuple(*values: str | bytes | TupleColumn | None) -> TupleData:
    """A row: str for a value in text representation, bytes for binary, None for NULL, UNCHANGED for TOAST."""
    return TupleData(tuple(_column(value) for value in values))


def _column(value: str | bytes | TupleColumn | None) -> TupleColumn:
    if value is None:
        return NULL
    if isinstance(value, TupleColumn):
        return value
    if isinstance(value, str):
        return TupleColumn(ColumnKind.TEXT, value.encode())
    return TupleColumn(ColumnKind.BINARY, value)


def build_xlog_data(message: bytes, *, wal_start: Lsn = ZERO, wal_end: Lsn | None = None, send_time: int = 0) -> bytes:
    """The CopyData content that carries one pgoutput message. `wal_end` is `wal_start` if not given."""
    return b"w" + struct.pack("!QQq", wal_start, wal_start if wal_end is None else wal_end, send_time) + message


def build_primary_keepalive(wal_end: Lsn, *, send_time: int = 0, reply_requested: bool = False) -> bytes:
    """The CopyData content of a keepalive."""
    return b"k" + struct.pack("!Qq?", wal_end, send_time, reply_requested)


def build_message(message: Message) -> bytes:
    """The bytes of one pgoutput message, with the transaction id of a streamed block wherever `xid` is not None.

    Raises ValueError for a string that holds a NUL, struct.error for a number beyond its field.
    """
    match message:
        case Begin(final_lsn, commit_time, xid):
            return b"B" + _int64(final_lsn, commit_time) + _int32(xid)
        case LogicalDecodingMessage(_, transactional, lsn, prefix, content):
            head = _streamed(b"M", message.xid) + _int8(transactional) + _int64(lsn) + _string(prefix)
            return head + _int32(len(content)) + content
        case Commit(commit_lsn, end_lsn, commit_time):
            return b"C" + _int8(0) + _int64(commit_lsn, end_lsn, commit_time)
        case Origin(commit_lsn, name):
            return b"O" + _int64(commit_lsn) + _string(name)
        case Relation():
            return _relation(message)
        case Type(xid, oid, namespace, name):
            return _streamed(b"Y", xid) + _int32(oid) + _namespace(namespace) + _string(name)
        case Insert(xid, table_id, new):
            return _streamed(b"I", xid) + _int32(table_id) + _tuple(b"N", new)
        case Update(xid, table_id, key, old, new):
            return _streamed(b"U", xid) + _int32(table_id) + _tuple(b"K", key) + _tuple(b"O", old) + _tuple(b"N", new)
        case Delete(xid, table_id, key, old):
            return _streamed(b"D", xid) + _int32(table_id) + _tuple(b"K", key) + _tuple(b"O", old)
        case Truncate(xid, cascade, restart_identity, table_ids):
            options = (1 if cascade else 0) | (2 if restart_identity else 0)
            return _streamed(b"T", xid) + _int32(len(table_ids)) + _int8(options) + _int32(*table_ids)
        case StreamStart(xid, first_segment):
            return b"S" + _int32(xid) + _int8(first_segment)
        case StreamStop():
            return b"E"
        case StreamCommit(xid, commit_lsn, end_lsn, commit_time):
            return b"c" + _int32(xid) + _int8(0) + _int64(commit_lsn, end_lsn, commit_time)
        case StreamAbort(xid, subxid, abort_lsn, abort_time):
            position = b"" if abort_lsn is None or abort_time is None else _int64(abort_lsn, abort_time)
            return b"A" + _int32(xid, subxid) + position
        case BeginPrepare(lsn, end_lsn, time, xid, gid):
            return b"b" + _int64(lsn, end_lsn, time) + _int32(xid) + _string(gid)
        case Prepare(lsn, end_lsn, time, xid, gid):
            return b"P" + _int8(0) + _int64(lsn, end_lsn, time) + _int32(xid) + _string(gid)
        case CommitPrepared(lsn, end_lsn, time, xid, gid):
            return b"K" + _int8(0) + _int64(lsn, end_lsn, time) + _int32(xid) + _string(gid)
        case RollbackPrepared(prepare_end, rollback_end, prepare_time, rollback_time, xid, gid):
            positions = _int64(prepare_end, rollback_end, prepare_time, rollback_time)
            return b"r" + _int8(0) + positions + _int32(xid) + _string(gid)
        case StreamPrepare(lsn, end_lsn, time, xid, gid):
            return b"p" + _int8(0) + _int64(lsn, end_lsn, time) + _int32(xid) + _string(gid)


def _relation(message: Relation) -> bytes:
    parts = [
        _streamed(b"R", message.xid) + _int32(message.table_id),
        _namespace(message.namespace) + _string(message.name),
        message.replica_identity.encode(),
        struct.pack("!H", len(message.columns)),
    ]
    for column in message.columns:
        parts += [_int8(column.key), _string(column.name), _int32(column.type_oid)]
        parts.append(struct.pack("!i", column.type_modifier))
    return b"".join(parts)


def _streamed(tag: bytes, xid: int | None) -> bytes:
    return tag if xid is None else tag + _int32(xid)


def _tuple(tag: bytes, data: TupleData | None) -> bytes:
    if data is None:
        return b""
    parts = [tag, struct.pack("!H", len(data.columns))]
    for column in data.columns:
        parts.append(column.kind.encode())
        if column.data is not None:
            parts += [_int32(len(column.data)), column.data]
    return b"".join(parts)


def _int8(value: int) -> bytes:
    return struct.pack("!B", value)


def _int32(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}I", *values)


def _int64(*values: int) -> bytes:
    # Positions are unsigned and times signed: both are the same 64 bits.
    return b"".join(struct.pack("!q" if value < 0 else "!Q", value) for value in values)


def _namespace(value: str) -> bytes:
    return _string("" if value == "pg_catalog" else value)


def _string(value: str) -> bytes:
    if "\0" in value:
        raise ValueError("a string on the wire cannot hold a NUL")
    return value.encode() + b"\0"
