"""Batches into the destination, exactly once: durable there, then progress stored. Confirming is the stream's.

A batch that fails is tried again as a whole. Whether a failed write was applied all the same (a lost answer) is read
from the destination's watermarks, never guessed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from etl_core.batch import ChangeCounts, StreamMove, WatermarkMove, WriteBatch
from etl_core.destination.protocol import Destination, Job
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    PermanentError,
    TableError,
    TransientError,
    WatermarkConflict,
    where,
)
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.assembler import Assembled
from etl_core.replication.failpoints import BATCH_DECODED, BATCH_WRITTEN, GROUP_WRITTEN, PROGRESS_STORED, reach
from etl_core.replication.isolation import find_failing
from etl_core.replication.observer import Flush, Observer
from etl_core.replication.rename_writer import RenameWriter
from etl_core.replication.retry import Backoff
from etl_core.replication.shaped_changes import ShapedChanges
from etl_core.replication.stored_progress import StoredProgress
from etl_core.replication.stream_fence import StreamFence
from etl_core.schema.table import TableSchema
from etl_core.shape.shapes import Shapes
from etl_core.source.server_clock import age
from etl_core.state.store import ReplicationProgress, StateStore

_log = logging.getLogger(__name__)

_CONFLICT_TRIES = 3
_LOOK_EVERY = 0.2
"""Seconds in which a wait hears that it is to end."""


@dataclass(frozen=True, slots=True)
class Reactions:
    """What the conductor does when a write finds something out. Called from the writing thread."""

    table_failed: Callable[[TableId, TableError], None]
    """Store the table's error; it is still active when this is called."""
    reload: Callable[[], None]
    """Read watermarks and states again and bring the active tables up to date."""


@dataclass(slots=True)
class _Attempt:
    counts: dict[TableId, ChangeCounts] = field(default_factory=dict)
    schemas: dict[TableId, TableSchema] = field(default_factory=dict)
    stream: StreamMove | None = None
    jobs: tuple[Job, ...] = ()

    def add(self, other: _Attempt) -> None:
        """Takes over what was written for other tables."""
        for table_id, counts in other.counts.items():
            self.counts[table_id] = self.counts.get(table_id, ChangeCounts()) + counts
        self.schemas |= other.schemas
        self.jobs += other.jobs


class Applier:
    """Decodes and writes the batches of one stream; one thread at a time.

    `write_lock` is shared by all appliers of a destination. `fence` is the main stream's, whose position goes with the
    batch; a catch-up has none, and moves only its table's watermark. `followed` and `check_permitted` are
    `ShapedChanges`'.
    """

    def __init__(
        self,
        destination: Destination,
        store: StateStore,
        active: ActiveTables,
        reactions: Reactions,
        observer: Observer,
        *,
        write_lock: threading.Lock,
        stop: threading.Event,
        fence: StreamFence | None,
        renames: RenameWriter | None = None,
        shapes: Shapes | None = None,
        followed: Callable[[TableSchema, TableSchema], TableSchema] = lambda _before, after: after,
        check_permitted: Callable[[TableSchema, TableSchema], None] = lambda _before, _after: None,
        resumes: ReplicationProgress | None = None,
        backoff: Backoff | None = None,
        server_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._destination = destination
        self._store = store
        self._active = active
        self._reactions = reactions
        self._observer = observer
        self._write_lock = write_lock
        self._stop = stop
        self._leaving = threading.Event()
        self._fence = fence
        self._renames = renames
        self._shapes = shapes or Shapes()
        self._shaped = ShapedChanges(active, self._shapes, destination, followed, check_permitted)
        self._backoff = backoff or Backoff()
        self._server_now = server_now
        self._progress = StoredProgress(
            store, observer, self._backoff, self._is_stopped_within, server_now, resumes=resumes
        )

    def give_up(self) -> None:
        """What fails from now on is not tried again: whoever reads the stream has left it."""
        self._leaving.set()

    def _is_stopped_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (self._stop.is_set() or self._leaving.is_set()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._leaving.wait(min(left, _LOOK_EVERY))
        return True

    def apply(self, batch: Assembled) -> None:
        """On return the batch is durable and, for the main stream, its progress stored.

        Raises what still fails after the last try; nothing of the batch is applied then, or all of it.
        """
        started = time.monotonic()
        attempt = self._written(batch)
        seconds = time.monotonic() - started
        if self._fence is None:
            return
        rows = sum(counts.rows for counts in attempt.counts.values())
        self._progress.commit_time = batch.commit_time or self._progress.commit_time
        self._progress.store(batch.end_lsn, rows=rows, lag_since=batch.commit_time)
        reach(PROGRESS_STORED)
        if attempt.counts:
            tables = {attempt.schemas[table_id].name: counts for table_id, counts in attempt.counts.items()}
            lag = None if batch.commit_time is None else age(batch.commit_time, self._server_now())
            flush = Flush(batch.end_lsn, batch.commit_time, rows, seconds, tables, attempt.jobs, lag)
            self._observer.on_flush(flush)
        if self._renames is not None:
            self._renames.write(batch.end_lsn)

    def is_rename_due(self, position: Lsn) -> bool:
        """Whether `apply` of a batch that ends at `position`, maybe an empty one, would rename a table."""
        return self._renames is not None and self._renames.is_due(position)

    def _written(self, batch: Assembled) -> _Attempt:
        conflicts = 0
        waits = self._backoff.waits()
        moves, attempt, is_applied = self._moves(batch), _Attempt(), False
        alone = _Attempt()  # what was written table by table
        while True:
            conflict: WatermarkConflict | None = None
            try:
                if not is_applied:
                    self._write(batch, moves, attempt, moves_stream=True)
                    is_applied = True
                self._note(batch, moves, attempt)
                attempt.add(alone)
                return attempt
            except TableError as error:
                self._fail_table(error, batch, moves)
            except WatermarkConflict as error:
                conflict = error
                self._reactions.reload()
            except TransientError as error:
                wait = next(waits, None)
                if wait is not None and not self._is_stopped_within(wait):
                    self._observer.on_retry(error, wait)
                    is_applied = is_applied or self._was_applied(moves, attempt)
                elif wait is not None or is_applied or not isinstance(error, DestinationUnavailable):
                    raise
                else:
                    conflict = self._isolate(error, batch, alone)
                    waits = self._backoff.waits()
            except DestinationUnusable:
                raise
            except DestinationError as error:
                is_applied = is_applied or self._was_applied(moves, attempt)
                if not is_applied:
                    conflict = self._isolate(error, batch, alone)
            if conflict is not None:
                conflicts += 1
                if conflicts > _CONFLICT_TRIES:
                    raise DestinationUnavailable(
                        "somebody else moves positions in the destination again and again",
                        hint="end what else writes to it; nothing is lost: the stream starts again from what is stored",
                    ) from conflict
            if not is_applied:
                moves, attempt = self._moves(batch), _Attempt()

    def _moves(self, batch: Assembled) -> dict[TableId, WatermarkMove]:
        marks = self._active.watermarks()
        return {
            table_id: WatermarkMove(marks[table_id], max(marks[table_id], batch.end_lsn))
            for table_id in batch.tables
            if table_id in marks
        }

    def _isolate(self, error: EtlError, batch: Assembled, alone: _Attempt) -> WatermarkConflict | None:
        """Writes what can be written without the tables at fault, and stops those. Raises `error` if none is at fault.

        On return the batch is to be written once more: what is left of it, and the position of the stream. A conflict
        that was met is returned; then no table was stopped, and positions and states were read again.
        """
        tables = sorted(table_id for table_id in batch.tables if table_id in self._active)
        if not tables or self._stop.is_set() or not self._writes_elsewhere(tables):
            raise error

        conflicts: list[WatermarkConflict] = []

        def write(group: tuple[TableId, ...]) -> EtlError | None:
            moves = {table_id: move for table_id, move in self._moves(batch).items() if table_id in group}
            attempt = _Attempt()
            try:
                self._write(batch, moves, attempt, moves_stream=False)
            except TableError as found:
                if len(group) > 1:
                    self._fail_table(found, batch, moves)
                return found
            except WatermarkConflict as found:
                # A table was copied meanwhile, or an answer was lost: none of the group is at fault.
                conflicts.append(found)
                self._reactions.reload()
                return found
            except (DestinationError, TransientError) as found:
                if not self._was_applied(moves, attempt):
                    return found
            self._note_tables(batch, moves, attempt)
            alone.add(attempt)
            reach(GROUP_WRITTEN)
            return None

        failing = find_failing(tables, write, self._stop.is_set)
        if conflicts:
            return conflicts[-1]  # the batch is looked at anew, with the watermarks as they are
        if len(failing) == len(tables) > 1 and not self._active.watermarks().keys() - set(tables):
            raise error
        for table_id, found in failing.items():
            schema = self._active.schema(table_id)
            if schema is not None:
                if not isinstance(found, TableError):
                    what = f"{schema.name} cannot be written: {found}"
                    found = TableError(what, table=str(schema.name), hint=found.hint)
                self._stop_table(table_id, found)
        return None

    def _writes_elsewhere(self, tables: Sequence[TableId]) -> bool:
        """Whether the destination writes for another table, or could for one of several: then some table is at fault.

        With a pipeline of one table there is no other that could go on.
        """
        marks = self._active.watermarks()
        other = next((table_id for table_id in marks if table_id not in tables), None)
        try:
            if other is None:
                self._destination.positions()
                return len(tables) > 1
            with self._write_lock:
                self._destination.write(WriteBatch((), {other: WatermarkMove(marks[other], marks[other])}, None))
        except EtlError:
            return False
        return True

    def _write(
        self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt, *, moves_stream: bool
    ) -> None:
        """`moves_stream` is False where only some tables of a batch are written."""
        if not moves:
            return
        parts = self._shaped.of(
            batch, {table_id: move.expected for table_id, move in moves.items()}, attempt.schemas, attempt.counts
        )
        if not batch.is_spooled:
            # Decoded before the destination begins: its transaction, and a DuckDB file, is held for less time.
            parts = iter(list(parts))
        reach(BATCH_DECODED)
        with self._write_lock:
            attempt.stream = self._fence.move(batch.end_lsn) if moves_stream and self._fence is not None else None
            attempt.jobs = self._write_to_destination(WriteBatch(parts, moves, attempt.stream))
        reach(BATCH_WRITTEN)

    def _write_to_destination(self, batch: WriteBatch) -> tuple[Job, ...]:
        try:
            return tuple(self._destination.write(batch) or ())
        except EtlError:
            raise
        except Exception as error:
            # Some table's changes meet a defect: it must not stop all tables. The text may quote a row.
            kind = type(error).__name__
            _log.error("writing a batch ended with %s\n%s", kind, where(error))
            raise DestinationError(
                f"internal error while writing: {kind}", hint="the log says where; report it"
            ) from None

    def _note(self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt) -> None:
        """Takes note of what a write has made durable, though its answer was lost. May be repeated."""
        if attempt.stream is not None and self._fence is not None:
            self._fence.moved(attempt.stream)
            self._progress.written_lsn = batch.end_lsn
        self._note_tables(batch, moves, attempt)

    def _note_tables(self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt) -> None:
        self._active.advance(moves)
        is_renamed = False
        for schema in attempt.schemas.values():
            known = self._active.schema(schema.table_id)
            if schema != known:
                self._store.save_schema(self._shapes.of(schema).stored, batch.end_lsn)
                self._active.set_schema(schema)
                is_renamed = is_renamed or (known is not None and known.name != schema.name)
        if is_renamed and self._renames is not None:
            self._renames.look_aside()

    def _was_applied(self, moves: dict[TableId, WatermarkMove], attempt: _Attempt) -> bool:
        """Whether the write whose answer was lost took place: then every position is where it was to go."""
        try:
            positions = self._destination.positions()
        except TransientError:
            return False
        if attempt.stream is not None and positions.stream != attempt.stream.new:
            return False
        moving = {table_id: move.new for table_id, move in moves.items() if move.new != move.expected}
        return bool(moving or attempt.stream) and all(
            positions.tables.get(table_id) == new for table_id, new in moving.items()
        )

    def _fail_table(self, error: TableError, batch: Assembled, moves: Collection[TableId]) -> None:
        """`moves` has the tables that were to be written: an error about another one would be met again and again."""
        table_id = self._named(error.table, batch)
        if table_id is None:
            if error.table in _names(batch, moves):
                return  # it was paused meanwhile, or is copied again
            raise PermanentError(f"{error} (a table that is not replicated)", hint=error.hint) from error
        self._stop_table(table_id, error)

    def _stop_table(self, table_id: TableId, error: TableError) -> None:
        # In this order: a table that is READY and not active is taken for one that was left out, and copied again.
        self._reactions.table_failed(table_id, error)
        self._active.deactivate(table_id)

    def _named(self, name: str, batch: Assembled) -> TableId | None:
        """The active table of that name, which may be one that the batch itself gives it."""
        for piece in reversed(batch.pieces):
            for table_id in piece.tables & piece.schemas.keys():
                if str(piece.schemas[table_id].name) == name and table_id in self._active:
                    return table_id
        return self._active.named(name)

    def watermark(self, table_id: TableId) -> Lsn:
        """Of an active table, as the destination is known to have it."""
        return self._active.watermarks()[table_id]

    def move_watermark(self, table_id: TableId, to: Lsn) -> None:
        """Says in the destination that a table is complete up to `to`, without changes."""
        move = WatermarkMove(self._active.watermarks()[table_id], to)
        if move.new > move.expected:
            with self._write_lock:
                self._destination.write(WriteBatch((), {table_id: move}, None))
            self._active.advance({table_id: move})

    def store_progress(self, flushed: Lsn, *, rows: int = 0, lag_since: datetime | None = None) -> None:
        """See `StoredProgress.store`."""
        self._progress.store(flushed, rows=rows, lag_since=lag_since)

    def note_lag(self, flushed: Lsn, since: datetime) -> None:
        """See `StoredProgress.note_lag`."""
        self._progress.note_lag(flushed, since)


def _names(batch: Assembled, tables: Collection[TableId]) -> set[str]:
    schemas = (piece.schemas[table_id] for piece in batch.pieces for table_id in piece.schemas.keys() & tables)
    return {str(schema.name) for schema in schemas}
