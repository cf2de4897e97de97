"""Messages to batches: decides where segments and batches end. No socket, no clock, no thread.

Invariants:
- a batch handed out holds whole transactions only;
- all frames of one relation in one segment are described by one schema;
- a truncation begins a segment, so that what came before is decoded apart from what comes after, and the segment's
  first transaction is the one that truncates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from etl_core.errors import MalformedMessage
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.messages import (
    Begin,
    Commit,
    LogicalDecodingMessage,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
)
from etl_core.protocol.segment import Segment
from etl_core.protocol.timestamp import to_datetime
from etl_core.replication.spool import Spool, SpooledSegment
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment and the schemas that describe its frames."""

    segment: Segment | SpooledSegment
    schemas: Mapping[TableId, TableSchema]
    tables: frozenset[TableId]
    """Whose changes or truncation it holds."""

    def load(self) -> Segment:
        return self.segment.load() if isinstance(self.segment, SpooledSegment) else self.segment

    def close(self) -> None:
        """Gives up spooled bytes."""
        if isinstance(self.segment, SpooledSegment):
            self.segment.close()


@dataclass(frozen=True, slots=True)
class Assembled:
    """Whole transactions, ready to be decoded and written. `pieces` may be empty: transactions without rows of ours."""

    pieces: tuple[Piece, ...]
    end_lsn: Lsn
    commit_time: datetime | None
    rows: int
    since: datetime | None = None
    """When the first of its changes was committed, by the server's clock."""

    @property
    def tables(self) -> frozenset[TableId]:
        return frozenset().union(*(piece.tables for piece in self.pieces))

    @property
    def is_spooled(self) -> bool:
        return any(isinstance(piece.segment, SpooledSegment) for piece in self.pieces)

    def close(self) -> None:
        """Gives up spooled bytes."""
        for piece in self.pieces:
            piece.close()


class Assembler:
    """Collects the frames and messages of one stream.

    `describe` gives the schema of a relation that the server announces in the transaction with that commit LSN.
    `on_truncate` is told which tables are truncated by the transaction with that commit LSN.
    `memory_limit` bounds the bytes of frames held in memory: beyond it, finished segments of the open transaction go
    to the spool.
    """

    def __init__(
        self,
        describe: Callable[[Relation, Lsn], TableSchema],
        *,
        memory_limit: int,
        start_lsn: Lsn,
        on_truncate: Callable[[frozenset[TableId], Lsn], None] = lambda *_: None,
    ) -> None:
        self._describe = describe
        self._on_truncation = on_truncate
        self._memory_limit = memory_limit
        self._schemas: dict[TableId, TableSchema] = {}
        self._pieces: list[Piece] = []
        self._in_memory = 0
        self._spool: Spool | None = None
        self._commit_lsn: Lsn | None = None
        self._commit_time: datetime | None = None
        self._first_commit_time = 0
        self.segment = Segment()
        """Where the reader appends frames."""
        self.end_lsn = start_lsn
        """The end of the last whole transaction."""
        self._taken_lsn = start_lsn

    @property
    def in_transaction(self) -> bool:
        return self._commit_lsn is not None

    @property
    def rows(self) -> int:
        return sum(piece.segment.rows for piece in self._pieces) + self.segment.rows

    @property
    def size(self) -> int:
        """Bytes of frames, in memory or spooled."""
        return sum(piece.segment.size for piece in self._pieces) + self.segment.size

    @property
    def has_changes(self) -> bool:
        return bool(self._pieces) or not self.segment.is_empty

    @property
    def waiting_since(self) -> datetime | None:
        """When the first of the changes at hand was committed, by the server's clock; None if there are none."""
        return _server_time(self._first_commit_time) if self.has_changes else None

    def on_message(self, message: Message) -> None:
        """Takes note of a control message."""
        match message:
            case Begin():
                if self._commit_lsn is not None:
                    raise MalformedMessage("a transaction begins inside another", offset=0)
                self._commit_lsn = message.final_lsn
                if not self.has_changes:
                    self._first_commit_time = message.commit_time
                if self.segment.is_empty:
                    self.segment.transactions.clear()
                self.segment.transactions.append((self.segment.rows, message.final_lsn))
            case Commit():
                if message.commit_lsn != self._commit_lsn:
                    raise MalformedMessage("a commit does not match its begin", offset=2)
                self._commit_time = _server_time(message.commit_time)
                self._commit_lsn = None
                self.end_lsn = message.end_lsn
            case Relation():
                self._on_relation(message)
            case Truncate():
                self._on_truncate(frozenset(message.table_ids))
            case Type() | Origin() | LogicalDecodingMessage():
                pass  # they say nothing about rows
            case _:
                raise MalformedMessage(f"{type(message).__name__} does not belong in a stream of version 1", offset=0)

    def _on_relation(self, message: Relation) -> None:
        table_id = message.table_id
        schema = self._describe(message, self._commit_lsn or self.end_lsn)
        known = self._schemas.get(table_id)
        if known is not None and known != schema and self.segment.rows:
            self.finish_segment()
        self._schemas[table_id] = schema

    def _on_truncate(self, tables: frozenset[TableId]) -> None:
        if self._commit_lsn is None:
            raise MalformedMessage("a truncation outside of a transaction", offset=0)
        if not self.segment.is_empty:
            self.finish_segment()
        self.segment.truncated = tables
        self._on_truncation(tables, self._commit_lsn)

    def finish_segment(self) -> None:
        """Closes the segment and begins the next; spools it if a transaction outgrows the memory."""
        finished = self.segment
        self._in_memory += finished.size
        self._pieces.append(Piece(finished, dict(self._schemas), finished.tables()))
        self.segment = Segment()
        if self._commit_lsn is not None:
            self.segment.transactions.append((0, self._commit_lsn))
        if self._in_memory > self._memory_limit:
            self._put_on_disk()

    def _put_on_disk(self) -> None:
        self._spool = self._spool or Spool()
        for number, piece in enumerate(self._pieces):
            if isinstance(piece.segment, Segment):
                self._pieces[number] = replace(piece, segment=self._spool.put(piece.segment))
        self._in_memory = 0

    def take(self) -> Assembled:
        """Everything since the last call. Only between transactions."""
        if self.in_transaction:
            raise RuntimeError("a batch ends only at a transaction boundary")
        since = self.waiting_since
        if not self.segment.is_empty:
            self.finish_segment()
        else:
            self.segment = Segment()
        rows = sum(piece.segment.rows for piece in self._pieces)
        batch = Assembled(tuple(self._pieces), self.end_lsn, self._commit_time, rows, since)
        self._pieces, self._spool = [], None
        self._in_memory = 0
        self._taken_lsn = self.end_lsn
        return batch

    def take_received(self) -> Assembled | None:
        """What was received whole since the last `take`, None if nothing: for a stream that ended.

        A transaction that it ended within is forgotten, as if it had not begun.
        """
        open_lsn, self._commit_lsn = self._commit_lsn, None
        if open_lsn is not None:
            if self.segment.transactions[0] != (0, open_lsn):
                self.segment.drop_last_transaction()
            else:
                self.segment = Segment()
                self._drop_from_pieces(open_lsn)
        return self.take() if self.has_changes else None

    def _drop_from_pieces(self, lsn: Lsn) -> None:
        """Forgets the frames of the last transaction in finished segments."""
        while self._pieces and self._pieces[-1].segment.transactions[-1][1] == lsn:
            piece = self._pieces.pop()
            with contextlib.closing(piece):
                if piece.segment.transactions[0] == (0, lsn):
                    continue  # nothing of another one is in it
                segment = piece.load()
            segment.drop_last_transaction()
            self._pieces.append(Piece(segment, piece.schemas, segment.tables()))

    def discard(self) -> None:
        """Forgets everything since the last `take`, the open transaction with it: it will be read again."""
        for piece in self._pieces:
            piece.close()
        self._pieces, self._spool = [], None
        self._in_memory = 0
        self._commit_lsn = None
        self.end_lsn = self._taken_lsn
        self.segment = Segment()


def _server_time(time: int) -> datetime:
    try:
        return to_datetime(time)
    except ValueError:
        raise MalformedMessage("a commit outside of the years 1 to 9999", offset=18) from None
