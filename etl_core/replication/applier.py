"""Batches into the destination, exactly once: durable there, then progress stored. Confirming is the stream's.

A batch that fails is tried again as a whole. Whether a failed write was applied all the same (a lost answer) is read
from the destination's watermarks, never guessed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from etl_core.batch import ChangeCounts, TableChanges, WatermarkMove, WriteBatch
from etl_core.decode.decoder import decode_segment
from etl_core.destination.protocol import Destination, Job
from etl_core.errors import (
    COPIED_AGAIN,
    CopiedAgain,
    PermanentError,
    SlotInUse,
    StateConflict,
    TableError,
    TransientError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.assembler import Assembled
from etl_core.replication.failpoints import BATCH_DECODED, BATCH_WRITTEN, PROGRESS_STORED, reach
from etl_core.replication.observer import Flush, Observer
from etl_core.replication.retry import Backoff
from etl_core.schema.arrow import refuse_unsupported
from etl_core.schema.diff import diff
from etl_core.schema.table import TableSchema
from etl_core.state.store import ReplicationProgress, StateStore

_CONFLICT_TRIES = 3


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
    jobs: tuple[Job, ...] = ()


class Applier:
    """Decodes and writes the batches of one stream; one thread at a time.

    `write_lock` is shared by all appliers of a destination. `is_main` says that the stream's position goes with
    the batch; a catch-up moves only its table's watermark.
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
        is_main: bool,
        unknown_types_to_bytes: bool,
        resumes: ReplicationProgress | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._destination = destination
        self._store = store
        self._active = active
        self._reactions = reactions
        self._observer = observer
        self._write_lock = write_lock
        self._stop = stop
        self._is_main = is_main
        self._unknown_types_to_bytes = unknown_types_to_bytes
        self._backoff = backoff or Backoff()
        self._rows = resumes.rows if resumes else 0
        self._commit_time = resumes.commit_time if resumes else None
        self._written_lsn = resumes.written_lsn if resumes else None
        self._stored = resumes
        self._stored_at = time.monotonic()

    def apply(self, batch: Assembled) -> None:
        """On return the batch is durable and, for the main stream, its progress stored.

        Raises what still fails after the last try; nothing of the batch is applied then, or all of it.
        """
        started = time.monotonic()
        attempt = self._written(batch)
        seconds = time.monotonic() - started
        if not self._is_main:
            return
        rows = sum(counts.rows for counts in attempt.counts.values())
        self._commit_time = batch.commit_time or self._commit_time
        self.store_progress(batch.end_lsn, rows=rows, lag_since=batch.commit_time)
        reach(PROGRESS_STORED)
        if attempt.counts:
            tables = {attempt.schemas[table_id].name: counts for table_id, counts in attempt.counts.items()}
            self._observer.on_flush(Flush(batch.end_lsn, batch.commit_time, rows, seconds, tables, attempt.jobs))

    def _written(self, batch: Assembled) -> _Attempt:
        conflicts = 0
        waits = self._backoff.waits()
        moves, attempt, is_applied = self._moves(batch), _Attempt(), False
        while True:
            try:
                if not is_applied:
                    self._write(batch, moves, attempt)
                    is_applied = True
                self._note(batch, moves, attempt)
                return attempt
            except TableError as error:
                self._fail_table(error, batch)
            except WatermarkConflict:
                conflicts += 1
                if conflicts > _CONFLICT_TRIES:
                    raise
                self._reactions.reload()
            except TransientError as error:
                wait = next(waits, None)
                if wait is None or self._stop.wait(wait):
                    raise
                self._observer.on_retry(error, wait)
                is_applied = is_applied or self._was_applied(moves)
            if not is_applied:
                moves, attempt = self._moves(batch), _Attempt()

    def _moves(self, batch: Assembled) -> dict[TableId, WatermarkMove]:
        marks = self._active.watermarks()
        return {
            table_id: WatermarkMove(marks[table_id], max(marks[table_id], batch.end_lsn))
            for table_id in batch.tables
            if table_id in marks
        }

    def _write(self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt) -> None:
        if not moves:
            return
        parts = self._decode(batch, moves, attempt)
        if not batch.is_spooled:
            # Decoded before the destination begins: its transaction, and a DuckDB file, is held for less time.
            parts = iter(list(parts))
        reach(BATCH_DECODED)
        with self._write_lock:
            jobs = self._destination.write(WriteBatch(parts, moves, batch.end_lsn if self._is_main else None))
            attempt.jobs = tuple(jobs or ())
        reach(BATCH_WRITTEN)

    def _note(self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt) -> None:
        """Takes note of what a write has made durable, though its answer was lost. May be repeated."""
        self._active.advance(moves)
        if moves:
            self._written_lsn = batch.end_lsn
        for schema in attempt.schemas.values():
            if schema != self._active.schema(schema.table_id):
                self._store.save_schema(schema, batch.end_lsn)
                self._active.set_schema(schema)

    def _decode(
        self, batch: Assembled, moves: dict[TableId, WatermarkMove], attempt: _Attempt
    ) -> Iterator[TableChanges]:
        watermarks = {table_id: move.expected for table_id, move in moves.items()}
        for piece in batch.pieces:
            for changes in decode_segment(piece.load(), piece.schemas, watermarks):
                table_id = changes.schema.table_id
                known = attempt.schemas.get(table_id) or self._active.schema(table_id)
                if known is not None and known != changes.schema:
                    _check_forward(known, changes.schema)
                    if not self._unknown_types_to_bytes:
                        refuse_unsupported(changes.schema)
                attempt.schemas[table_id] = changes.schema
                attempt.counts[table_id] = attempt.counts.get(table_id, ChangeCounts()) + changes.counts
                yield changes

    def _was_applied(self, moves: dict[TableId, WatermarkMove]) -> bool:
        """Whether the write whose answer was lost took place: then every watermark is where it was to go."""
        try:
            marks = self._destination.positions().tables
        except TransientError:
            return False
        moving = {table_id: move.new for table_id, move in moves.items() if move.new != move.expected}
        return bool(moving) and all(marks.get(table_id) == new for table_id, new in moving.items())

    def _fail_table(self, error: TableError, batch: Assembled) -> None:
        table_id = self._named(error.table, batch)
        if table_id is None:
            if error.table in _names(batch):
                return  # it was paused meanwhile, or is copied again
            raise PermanentError(f"{error} (a table that is not replicated)", hint=error.hint) from error
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

    def move_watermark(self, table_id: TableId, to: Lsn) -> None:
        """Says in the destination that a table is complete up to `to`, without changes."""
        move = WatermarkMove(self._active.watermarks()[table_id], to)
        if move.new > move.expected:
            with self._write_lock:
                self._destination.write(WriteBatch((), {table_id: move}, None))
            self._active.advance({table_id: move})

    def store_progress(self, flushed: Lsn, *, rows: int = 0, lag_since: datetime | None = None) -> None:
        """Stores how far everything is durable, `rows` more than before. Tried again while the store is away.

        The lag is the age of the last commit, `lag_since`; None says that nothing more is there, so there is no lag.
        """
        self._rows += rows
        now, clock = datetime.now(UTC), time.monotonic()
        rate = rows / (clock - self._stored_at)
        self._stored_at = clock
        lag = max(0.0, (now - lag_since).total_seconds()) if lag_since else 0.0
        progress = ReplicationProgress(flushed, self._commit_time, self._rows, rate, lag, now, self._written_lsn)
        waits = self._backoff.waits()
        while True:
            try:
                self._stored = self._store.save_progress(progress, self._stored)
                return
            except StateConflict:
                found = self._store.progress()
                if found is not None and replace(found, updated_at=now) == progress:
                    self._stored = found  # by an earlier try, whose answer was lost
                    return
                raise SlotInUse(
                    "another process streams the same pipeline since this one lost its connection",
                    hint="nothing was lost: what it has not stored is read again",
                ) from None
            except TransientError as error:
                wait = next(waits, None)
                if wait is None or self._stop.wait(wait):
                    raise
                self._observer.on_retry(error, wait)


def _names(batch: Assembled) -> set[str]:
    return {str(schema.name) for piece in batch.pieces for schema in piece.schemas.values()}


def _check_forward(old: TableSchema, new: TableSchema) -> None:
    """Raises CopiedAgain unless columns were only added, with known values for old rows, or dropped."""
    for column in diff(old, new).added:
        if not column.fill_known:
            raise CopiedAgain(
                f"{new.name}: column {column.name} came, and the WAL does not hold what older rows have in it (a "
                "default computed per row, a column that was not published, or one dropped and added again)",
                table=str(new.name),
                hint=COPIED_AGAIN,
            )


class Writer:
    """The thread that applies batches beside the reader: one being written while the next one is read."""

    def __init__(self, applier: Applier, *, name: str, start_lsn: Lsn) -> None:
        self._applier = applier
        self._condition = threading.Condition()
        self._batch: Assembled | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._flushed = start_lsn
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def flushed(self) -> Lsn:
        """Everything before is durable and stored."""
        with self._condition:
            return self._flushed

    @property
    def is_idle(self) -> bool:
        """Whether `submit` would be taken. Raises what the last batch failed with."""
        with self._condition:
            self._raise()
            return self._batch is None

    def wait_idle(self, seconds: float) -> bool:
        """Waits for the batch in hand; whether it is done. Raises what it failed with."""
        with self._condition:
            self._condition.wait_for(lambda: self._batch is None or self._error is not None, seconds)
            self._raise()
            return self._batch is None

    def submit(self, batch: Assembled) -> None:
        """Hands a batch over. Only when idle."""
        with self._condition:
            self._raise()
            if self._batch is not None:
                raise RuntimeError("the writer is busy")
            self._batch = batch
            self._condition.notify_all()

    def moved(self, flushed: Lsn) -> None:
        """The conductor stored a position beyond the last batch. Only when idle."""
        with self._condition:
            self._flushed = max(self._flushed, flushed)

    def close(self) -> None:
        """Waits for the batch in hand, if any, and ends the thread. Raises nothing."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._batch is not None or self._closing)
                batch = self._batch
                if batch is None:
                    return
            error: BaseException | None = None
            try:
                self._applier.apply(batch)
            except BaseException as caught:
                error = caught
            finally:
                batch.close()
            with self._condition:
                if error is None:
                    self._flushed = max(self._flushed, batch.end_lsn)
                    self._batch = None
                else:
                    self._error = error
                self._condition.notify_all()
                if error is not None:
                    return
