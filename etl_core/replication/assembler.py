"""Frames and messages to batches: decides where segments and batches end. No socket, no clock, no thread.

Invariants:
- a batch handed out holds whole transactions only, and so does every piece but those of the open transaction;
- all frames of one relation in one piece are described by one schema, and no two of them have one name;
- a truncation begins a piece, so that what came before is decoded apart from what comes after, and the piece's first
  transaction is the one that truncates; so does an alteration that a logical message announces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from etl_core.errors import MalformedMessage
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.protocol.messages import LogicalDecodingMessage, Message, Origin, Relation, Truncate, Type
from etl_core.protocol.segment import SEGMENT_BYTES, Frames, Segment
from etl_core.protocol.timestamp import to_datetime
from etl_core.protocol.transactions import Transactions, find_transactions
from etl_core.replication.spool import Spool, SpooledFrames
from etl_core.schema.table import TableSchema

_OPEN_PARTS = 4
"""A transaction that was cut already goes on in segments of so many parts of the usual size. It has few tables as a
rule, so that smaller ones cost no more to decode, and they need less memory at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Frames and the schemas that describe them."""

    frames: Frames | SpooledFrames
    schemas: Mapping[TableId, TableSchema]
    tables: frozenset[TableId]
    """Whose changes or truncation it holds."""
    rows: int

    def load(self) -> Frames:
        return self.frames.load() if isinstance(self.frames, SpooledFrames) else self.frames

    def close(self) -> None:
        """Gives up spooled bytes."""
        if isinstance(self.frames, SpooledFrames):
            self.frames.close()


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
        return any(isinstance(piece.frames, SpooledFrames) for piece in self.pieces)

    def close(self) -> None:
        """Gives up spooled bytes."""
        for piece in self.pieces:
            piece.close()


@dataclass(slots=True)
class _Extent:
    """A part of the segment, from its beginning."""

    frames: int = 0
    size: int = 0
    rows: int = 0


class Assembler:
    """Collects the frames and messages of one stream: `scan` after each read, then `on_message` if one came.

    `describe` gives the schema of a relation that the server announces in the transaction with that commit LSN.
    `on_truncate` is told which tables are truncated by the transaction with that commit LSN. `announced` gives the
    relations that a logical message says to be altered in such a transaction.
    `memory_limit` bounds the bytes of frames held in memory: beyond it, the frames of the open transaction go to the
    spool. `segment_bytes` is where a segment is closed; in a transaction that was cut already, it is
    closed at a quarter of that. With `seals_spool` nobody can read what is on the disk.
    """

    def __init__(
        self,
        describe: Callable[[Relation, Lsn], TableSchema],
        *,
        memory_limit: int,
        start_lsn: Lsn,
        segment_bytes: int = SEGMENT_BYTES,
        on_truncate: Callable[[frozenset[TableId], Lsn], None] = lambda *_: None,
        announced: Callable[[LogicalDecodingMessage, Lsn], Iterable[Relation]] = lambda *_: (),
        seals_spool: bool = False,
    ) -> None:
        self._describe = describe
        self._tell_truncated = on_truncate
        self._announced = announced
        self._memory_limit = memory_limit
        self._segment_bytes = segment_bytes
        self._seals_spool = seals_spool
        self._schemas: dict[TableId, TableSchema] = {}
        self._named: dict[TableName, TableId] = {}
        self._pieces: list[Piece] = []
        self._open_pieces: list[Piece] = []
        self._spool: Spool | None = None
        self._commit_time: datetime | None = None
        self._first_commit_time: int | None = None
        self._open_time: int | None = None
        self._taken_lsn = start_lsn
        self.end_lsn = start_lsn
        """The end of the last whole transaction."""
        self.has_described = False
        """Whether a relation was described in the open transaction, by what was known of the tables then."""
        self._open_lsn: Lsn | None = None
        self._begin_segment(Segment())

    def _begin_segment(
        self,
        segment: Segment,
        truncated: frozenset[TableId] = frozenset(),
        altered: frozenset[TableId] = frozenset(),
        open_changes: int = 0,
    ) -> None:
        """`open_changes` are those of the open transaction before it, without what it `truncated`."""
        self.segment = segment
        """Where the reader appends frames."""
        self._begun_lsn, self._begun_time, self._begun_changes = self._open_lsn, self._open_time, open_changes
        self._truncated, self._altered = truncated, altered
        self._scanned, self._whole = _Extent(), _Extent()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open at the end of what was scanned."""
        return self._open_lsn is not None

    @property
    def rows(self) -> int:
        """In whole transactions."""
        return sum(piece.rows for piece in self._pieces) + self._whole.rows

    @property
    def size(self) -> int:
        """Bytes of frames of whole transactions, in memory or spooled."""
        return sum(piece.frames.size for piece in self._pieces) + self._whole.size

    @property
    def has_changes(self) -> bool:
        """Whether a whole transaction at hand changes anything."""
        return bool(self._pieces or self._whole.rows or ((self._truncated or self._altered) and self._whole.frames))

    @property
    def waiting_since(self) -> datetime | None:
        """When the first of the changes at hand was committed, by the server's clock; None if there are none."""
        return None if self._first_commit_time is None else _server_time(self._first_commit_time)

    def scan(self, limit: Lsn | None = None) -> bool:
        """Takes note of the frames that the reader has appended, up to the first transaction at or beyond `limit`.

        Whether there is one: it and all behind it are put aside, as if they had not come, until the limit moves.
        Raises MalformedMessage.
        """
        if limit is not None and self._open_lsn is not None and self._open_lsn >= limit:
            return True
        done = self._scanned
        if done.frames == len(self.segment.lengths):
            return False
        bounds = self.segment.bounds(done.frames, done.size)
        data = np.frombuffer(self.segment.data, np.uint8)
        try:
            found = find_transactions(data, bounds, open_lsn=self._open_lsn, after=self.end_lsn, limit=limit)
        finally:
            del data  # while it is there, the reader cannot append
        if found.frames:
            self._note(found)
        return found.is_cut

    def _note(self, found: Transactions) -> None:
        done = self._scanned
        if found.rows and self._first_commit_time is None:
            self._first_commit_time = self._open_time if found.row_time is None else found.row_time
        if found.open_time is not None:
            self._open_time = found.open_time
        if found.end_lsn is not None and found.commit_time is not None:
            self._commit_time = _server_time(found.commit_time)
            self.end_lsn = found.end_lsn
            self.has_described = False
            self._pieces += self._open_pieces
            self._open_pieces = []
            self._whole = _Extent(
                done.frames + found.whole_frames, done.size + found.whole_size, done.rows + found.whole_rows
            )
        self._open_lsn = found.open_lsn
        self._scanned = _Extent(done.frames + found.frames, done.size + found.size, done.rows + found.rows)
        if self._whole.frames and not self.has_changes:
            self._close_whole()  # nothing but empty transactions
        if self._scanned.size >= self._segment_bytes:
            self._close_whole()
        if self._scanned.size >= (self._segment_bytes // _OPEN_PARTS if self._open_pieces else self._segment_bytes):
            self._close_open()

    def on_message(self, message: Message) -> None:
        """Takes note of a message that is no frame, behind all frames that were scanned."""
        match message:
            case Relation():
                self._on_relation(message)
            case Truncate():
                self._on_truncate(frozenset(message.table_ids))
            case LogicalDecodingMessage():
                self._on_logical_message(message)
            case Type() | Origin():
                pass  # they say nothing about rows
            case _:
                raise MalformedMessage(f"{type(message).__name__} does not belong in a stream of version 1", offset=0)

    def _on_relation(self, message: Relation) -> None:
        table_id = message.table_id
        schema = self._describe(message, self._open_lsn or self.end_lsn)
        known = self._schemas.get(table_id)
        if self._scanned.rows and (self._has_had(schema) if known is None else known != schema):
            self._close()
        self._schemas[table_id] = schema
        self._named[schema.name] = table_id
        self.has_described = self.in_transaction

    def _has_had(self, schema: TableSchema) -> bool:
        """Whether another table was called so: rows that it had then are to be written before the name is taken."""
        other = self._named.get(schema.name, schema.table_id)
        return other != schema.table_id and self._schemas[other].name == schema.name

    def _on_truncate(self, tables: frozenset[TableId]) -> None:
        if self._open_lsn is None:
            raise MalformedMessage("a truncation outside of a transaction", offset=0)
        self._close()
        self._begin_segment(Segment(), tables, open_changes=self._begun_changes)
        self._tell_truncated(tables, self._open_lsn)

    def _on_logical_message(self, message: LogicalDecodingMessage) -> None:
        if self._open_lsn is None or not message.transactional:
            return
        altered = set()
        for relation in self._announced(message, self._open_lsn):
            self._on_relation(relation)
            altered.add(relation.table_id)
        if altered:
            self._close()
            self._begin_segment(Segment(), altered=frozenset(altered), open_changes=self._begun_changes)

    def _close(self) -> None:
        """Ends the segment behind what was scanned."""
        self._close_whole()
        self._close_open()

    def _close_whole(self) -> None:
        """The whole transactions become a piece, and the segment begins with what is behind them."""
        whole, done = self._whole, self._scanned
        if not whole.frames:
            return
        self._pieces += self._cut(whole)
        self._begun_lsn, self._begun_changes = None, 0
        self._scanned = _Extent(done.frames - whole.frames, done.size - whole.size, done.rows - whole.rows)

    def _close_open(self) -> None:
        """What is there of the open transaction becomes a piece of it."""
        self._open_pieces += self._cut(self._scanned)
        if sum(piece.size for piece in self._in_memory()) > self._memory_limit:
            self._put_on_disk()

    def _cut(self, part: _Extent) -> list[Piece]:
        frames, rest = self.segment.split(
            part.frames,
            part.size,
            self._begun_lsn,
            self._truncated,
            self._begun_time,
            self._altered,
            self._begun_changes,
        )
        self._begin_segment(rest, open_changes=frames.changes_at_end())
        if not (part.rows or frames.truncated or frames.altered):
            return []
        return [Piece(frames, dict(self._schemas), frames.tables(), part.rows)]

    def _in_memory(self) -> list[Frames]:
        return [piece.frames for piece in (*self._pieces, *self._open_pieces) if isinstance(piece.frames, Frames)]

    def _put_on_disk(self) -> None:
        for pieces in (self._pieces, self._open_pieces):
            for number, piece in enumerate(pieces):
                if isinstance(piece.frames, Frames):
                    self._spool = self._spool or Spool(is_sealed=self._seals_spool)
                    pieces[number] = replace(piece, frames=self._spool.put(piece.frames))

    def take(self) -> Assembled:
        """All whole transactions since the last call. What is there of the open one stays."""
        since = self.waiting_since
        self._close_whole()
        rows = sum(piece.rows for piece in self._pieces)
        batch = Assembled(tuple(self._pieces), self.end_lsn, self._commit_time, rows, since)
        self._pieces, self._spool = [], None
        self._first_commit_time = self._open_time if self._scanned.rows or self._open_pieces else None
        self._taken_lsn = self.end_lsn
        return batch

    def discard(self) -> None:
        """Forgets everything since the last `take`, the open transaction with it: it will be read again."""
        for piece in (*self._pieces, *self._open_pieces):
            piece.close()
        self._pieces, self._open_pieces, self._spool = [], [], None
        self._open_lsn = self._first_commit_time = None
        self.has_described = False
        self.end_lsn = self._taken_lsn
        self._begin_segment(Segment())


def _server_time(time: int) -> datetime:
    try:
        return to_datetime(time)
    except ValueError:
        raise MalformedMessage("a commit outside of the years 1 to 9999", offset=18) from None
