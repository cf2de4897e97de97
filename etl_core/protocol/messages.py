"""The messages of pgoutput, protocol versions 1 to 4, in the manual's order, fields in wire order.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html

Left out are bytes that carry nothing: tags, counts and flags that are always 0. Timestamps are microseconds
since 2000-01-01 UTC (`etl_core.protocol.timestamp`). `xid` of a message inside a streamed block is the transaction
or subtransaction it belongs to; outside of one it is not sent and None.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import ReplicaIdentity


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction follows. `final_lsn` is the LSN of its commit record, as in `Commit.commit_lsn`."""

    final_lsn: Lsn
    commit_time: int
    xid: int


@dataclass(frozen=True, slots=True)
class LogicalDecodingMessage:
    """The manual's Message: what `pg_logical_emit_message` wrote. One that is not transactional stands outside
    of Begin and Commit."""

    xid: int | None
    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction ends. `end_lsn`, the byte after its commit record, is the position to compare and confirm."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction was itself replicated to the source. May come several times in one transaction."""

    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A published column. `key` says whether it is part of the replica identity's key."""

    key: bool
    name: str
    type_oid: int
    type_modifier: int


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it is for the row messages that follow. Sent before its first one and after each change."""

    xid: int | None
    table_id: TableId
    namespace: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """A type that is not built in, before the Relation that uses it."""

    xid: int | None
    oid: int
    namespace: str
    name: str


class ColumnKind(StrEnum):
    """How a tuple holds a column's value."""

    NULL = "n"
    UNCHANGED = "u"
    TEXT = "t"
    BINARY = "b"


@dataclass(frozen=True, slots=True)
class TupleColumn:
    """A column's value: `data` in the type's text or binary representation, None for NULL and UNCHANGED."""

    kind: ColumnKind
    data: bytes | None


NULL = TupleColumn(ColumnKind.NULL, None)
UNCHANGED = TupleColumn(ColumnKind.UNCHANGED, None)
"""A TOASTed value the update did not touch: it is not sent."""


@dataclass(frozen=True, slots=True)
class TupleData:
    """The columns of a row, as many and in the order of its Relation."""

    columns: tuple[TupleColumn, ...]


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row."""

    xid: int | None
    table_id: TableId
    new: TupleData


@dataclass(frozen=True, slots=True)
class Update:
    """A changed row. At most one of `key` and `old` is there.

    `key` (tag K) holds the old key columns, all others NULL: sent when the key changed or holds TOASTed values.
    `old` (tag O) is the whole old row, for REPLICA IDENTITY FULL.
    """

    xid: int | None
    table_id: TableId
    key: TupleData | None
    old: TupleData | None
    new: TupleData


@dataclass(frozen=True, slots=True)
class Delete:
    """A removed row: exactly one of `key` and `old` is there, as in Update."""

    xid: int | None
    table_id: TableId
    key: TupleData | None
    old: TupleData | None


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables emptied by one command."""

    xid: int | None
    cascade: bool
    restart_identity: bool
    table_ids: tuple[TableId, ...]


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A block of a transaction in progress follows (protocol version 2). `xid` is the top-level transaction."""

    xid: int
    first_segment: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """The block ends."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """A streamed transaction ends; fields as in Commit."""

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """A streamed transaction, or the subtransaction `subxid` of it, never happened.

    `abort_lsn` and `abort_time` are sent in protocol version 4 with `streaming 'parallel'` only.
    """

    xid: int
    subxid: int
    abort_lsn: Lsn | None
    abort_time: int | None


@dataclass(frozen=True, slots=True)
class BeginPrepare:
    """A prepared transaction follows (protocol version 3)."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """The prepared transaction ends, without being committed."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class CommitPrepared:
    """A transaction prepared before is committed."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class RollbackPrepared:
    """A transaction prepared before never happened."""

    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_time: int
    rollback_time: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class StreamPrepare:
    """A streamed transaction is prepared (protocol version 3)."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time: int
    xid: int
    gid: str


Message: TypeAlias = (
    Begin
    | LogicalDecodingMessage
    | Commit
    | Origin
    | Relation
    | Type
    | Insert
    | Update
    | Delete
    | Truncate
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)
