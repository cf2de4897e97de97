"""Brings tables up to now: copies those that need it, and waits for the stream with those that have one.

"Now" is the source's position at the step's start. A table that streams has arrived when the stream is durable beyond
it. The stream is another process: this step only waits for it, as long as it moves. Where batches are streamed on a
schedule, no process streams most of the time: then the step streams a batch itself.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etl_core.errors import EtlError, PermanentError, StateConflict, Stopped, TableError, TransientError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.state.store import TableStatus, Transition
from etl_core.state.table_state import COPIED, TableState
from etl_dagster import names
from etl_dagster.sync.step import CopyCost, CopyProgress, Synced

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from etl_core.replication.copied import Copied
    from etl_dagster.resources import PostgresReplicationResource
    from etl_dagster.sync.step_batch import StepBatch

_LOOK_EVERY = 0.5
_NO_STREAM_PATIENCE = 60.0
"""Seconds without a stream: a sensor that is on has started a run by then, also on a busy machine."""
_STALLED_PATIENCE = 300.0
"""Seconds for which a stream that is there may stay where it is."""
_POSITIONS_FOR = 1.0
"""Seconds for which the destination's positions are kept: reading them opens a file that the stream writes to."""

_COPY_INSTEAD = "with full_refresh: true in the launchpad it is copied again instead"


class BringUp:
    """The tables of one step, brought up to `target`, the source's position when this was made.

    Several threads may each bring up a table. `batch` is asked for where nothing streams. Raises what
    `Pipeline.prepare` raises.
    """

    def __init__(
        self, pipeline: "Pipeline", progress: CopyProgress, *, full_refresh: bool, batch: "StepBatch | None" = None
    ) -> None:
        pipeline.prepare()  # also sets back a copy whose process has died
        self._pipeline = pipeline
        self._progress = progress
        self._full_refresh = full_refresh
        self._ids = {status.name: status.table_id for status in pipeline.store.tables()}
        self._stream = _StreamWait(pipeline, pipeline.current_lsn(), progress, batch)
        self._positions = _Positions(pipeline)

    def table(self, table: TableName, share: str | None = None) -> Synced:
        """The table as it is once it has arrived.

        With `full_refresh` it is copied in any case, behind the swap; StateConflict is raised while another process
        copies it. With `share` other processes may help with a copy under this token (`Pipeline.help_sync`). Raises
        what the engine raises; Stopped or another TransientError once the pipeline's `stop` is set.
        """
        while True:
            self._stream.look()  # first: a table that stops before the target is seen to have stopped
            status = self._status(table)
            if status.state is TableState.DATA_SYNC:
                self._wait_for_the_other(table)
                continue
            if not self._full_refresh:
                _refuse_stopped(status)
                if status.state in COPIED and not self._stream.has_brought(status):
                    self._stream.wait()
                    continue
                if status.state in COPIED:
                    mark = self._positions.of(status, not_before=self._stream.passed_at)
                    found = as_it_is(self._pipeline, status, mark)
                    if found is not None:
                        return found
            try:
                copied = self._copy(status, share)
            except StateConflict:
                continue  # the table was moved on meanwhile, by a stream or another copy: look again
            schema = self._pipeline.store.schema(status.table_id)
            if schema is None:  # taken out of the publication since
                raise StateConflict(f"{table} was removed from the pipeline while it was copied")
            cost = CopyCost(self._progress.size(table), copied.seconds)
            return Synced(copied.snapshot_lsn, self._pipeline.shapes.of(schema[1]), copied.rows, cost)

    def _status(self, table: TableName) -> TableStatus:
        """Raises ConfigError for a table that is not the pipeline's."""
        status = self._pipeline.store.table(self._ids[table]) if table in self._ids else None
        return status or self._pipeline.find(table)  # it reads the whole list, once a table for each would be too much

    def _copy(self, status: TableStatus, share: str | None) -> "Copied":
        if self._full_refresh or status.state is TableState.PAUSED:  # a person's request, whatever the policy
            self._pipeline.resync(status.name)
            status = self._status(status.name)
        elif status.state is not TableState.INIT:
            self._pipeline.copy_later(status)
            status = self._status(status.name)
        if status.state is not TableState.INIT:
            raise StateConflict(f"another process has begun to copy {status.name}")
        if not self._full_refresh:
            self._pipeline.check_destination()
        result = self._pipeline.copy(status, share=share)
        if isinstance(result, EtlError):
            raise result
        return result

    def _wait_for_the_other(self, table: TableName) -> None:
        if self._full_refresh:
            raise StateConflict(
                f"another process is copying {table} now",
                hint="wait until it has ended, then materialise again; with full_refresh off this waits for it",
            )
        self._progress.say(f"another process is copying {table}, waiting for it")
        if self._pipeline.stop.wait(_LOOK_EVERY):
            raise Stopped(f"stopped while another process copied {table}")
        self._pipeline.prepare()  # that process may have died


def _refuse_stopped(status: TableStatus) -> None:
    """Raises TableError for a table that nothing brings up to now.

    It is paused, waits for a person, or fails while its changes are kept.
    """
    if status.state is TableState.PAUSED:
        raise TableError(
            f"{status.name} is paused, so nothing brings it up to now",
            table=str(status.name),
            hint=f"resume it; {_COPY_INSTEAD}",
        )
    if status.state is TableState.ERRORED and (status.sync_slot is not None or status.waits_for is not None):
        raise TableError(
            f"{status.name} is stopped, so nothing brings it up to now: {status.error}",
            table=str(status.name),
            hint=f"{status.hint}; {_COPY_INSTEAD}" if status.hint else _COPY_INSTEAD,
        )


def bring_up_table(
    replication: "PostgresReplicationResource",
    table: TableName,
    *,
    full_refresh: bool,
    progress: CopyProgress,
    stop: threading.Event,
    share: str | None = None,
    batch: "StepBatch | None" = None,
) -> Synced:
    """`BringUp.table` with a pipeline of its own. Those that help under `share` are told at the end that it is over."""
    with replication.pipeline(observer=progress.observer(), stop=stop) as pipeline:
        try:
            return BringUp(pipeline, progress, full_refresh=full_refresh, batch=batch).table(table, share)
        finally:
            if batch is not None:
                batch.end()
            if share is not None:
                with contextlib.suppress(EtlError):  # they find out by themselves, later
                    pipeline.store.shared_copies.end(pipeline.find(table).table_id, share)


def as_it_is(pipeline: "Pipeline", status: TableStatus, lsn: Lsn | None) -> Synced | None:
    """The table as the destination has it, which is at `lsn`; None if it has to be copied."""
    schema = pipeline.store.schema(status.table_id)
    if status.state not in COPIED or schema is None or lsn is None:
        return None
    is_untouched = lsn == status.snapshot_lsn and not _has_caught_up(pipeline.store.history(status.table_id))
    return Synced(lsn, pipeline.shapes.of(schema[1]), status.rows_copied if is_untouched else None, None)


def _has_caught_up(moves: Sequence[Transition]) -> bool:
    """Whether a table, with its history, has changes since its copy though it is where it was taken in."""
    states = [move.to_state for move in moves if move.to_state is not TableState.READY]
    return states[:2] != [TableState.FINISHED_COPY, TableState.DATA_SYNC]


class _StreamWait:
    """What is known of the stream while tables wait for it to pass `target`; one for all tables of a step."""

    def __init__(self, pipeline: "Pipeline", target: Lsn, progress: CopyProgress, batch: "StepBatch | None") -> None:
        if batch is not None:
            batch.begin()
        self._batch = batch
        self._pipeline = pipeline
        self._name = pipeline.config.pipeline
        self._target = target
        self._progress = progress
        self._lock = threading.Lock()
        self._flushed = ZERO
        self._looked_at = float("-inf")
        self._moved_at: float | None = None
        self._streamed_at: float | None = None
        self.passed_at = float("-inf")
        """When the stream was first seen to have passed `target`, by the monotonic clock."""

    def has_brought(self, status: TableStatus) -> bool:
        """Whether the table, which was copied, has everything up to `target`. After a `look`, and then its status."""
        if status.snapshot_lsn is not None and status.snapshot_lsn >= self._target:
            return True  # copied since, by whichever process
        return status.state is TableState.READY and self._flushed >= self._target

    def wait(self) -> None:
        """Waits for a moment. Raises TransientError or PermanentError when no more waiting would help."""
        with self._lock:
            self._look()
        if self._pipeline.stop.wait(_LOOK_EVERY):
            raise Stopped("stopped while waiting for the stream")

    def look(self) -> None:
        """At where the stream is, if it is time to."""
        with self._lock:
            if self._flushed < self._target and time.monotonic() - self._looked_at >= _LOOK_EVERY:
                progress = self._pipeline.store.progress()
                flushed = ZERO if progress is None else progress.flushed_lsn
                self._looked_at = time.monotonic()
                if flushed != self._flushed or self._moved_at is None:
                    self._flushed, self._moved_at = flushed, self._looked_at
                if flushed >= self._target:
                    self.passed_at = self._looked_at

    def _look(self) -> None:
        now = time.monotonic()
        if self._batch is not None and self._batch.is_running:
            self._moved_at = self._streamed_at = now
            return
        slot = self._pipeline.source.slot_status(self._pipeline.source.main_slot)
        is_streamed = slot is not None and slot.active
        if self._moved_at is None:
            self._moved_at = now
        ended = hint = ""
        if is_streamed or self._streamed_at is None:
            self._streamed_at = now
        if is_streamed:
            self._progress.say(f"waiting until the stream has passed {self._target} (it is at {self._flushed})")
        elif self._batch is not None:
            if self._batch.is_anothers_turn:
                self._streamed_at = now
                self._progress.say(f"another run is about to stream pipeline {self._name}, waiting for it")
            else:
                self._progress.say(f"nothing streams pipeline {self._name}: this step streams up to now")
            self._batch.ask()
        else:
            ended, hint = self._last_error()
            self._progress.say(
                f"nothing streams pipeline {self._name}, waiting {_NO_STREAM_PATIENCE:.0f} s for a stream run{ended}"
            )
        if now - self._streamed_at > _NO_STREAM_PATIENCE:
            raise TransientError(
                f"nothing streams pipeline {self._name}: its copied tables are as of {self._flushed}, and the source"
                f" was at {self._target} when this step began{ended}",
                hint=f"{hint}turn on the sensor or the schedule of job {names.stream_job_name(self._name)}, or launch"
                f" that job once; {_COPY_INSTEAD}",
            )
        if now - self._moved_at > _STALLED_PATIENCE:
            raise TransientError(
                f"the stream of pipeline {self._name} has been at {self._flushed} for {_STALLED_PATIENCE:.0f} s, and"
                f" tables of it wait for {self._target}",
                hint=f"look at the run of job {names.stream_job_name(self._name)}: its log says what it waits for",
            )

    def _last_error(self) -> tuple[str, str]:
        """What ended the stream, and the hint, to be put into sentences; empty if it goes on since.

        Raises PermanentError for an error after which a run does not try again by itself.
        """
        error = self._pipeline.stream_error()
        if error is None:
            return "", ""
        if error.is_permanent:
            raise PermanentError(f"the stream of pipeline {self._name} has ended: {error.error}", hint=error.hint)
        return f"; it ended last with: {error.error}", f"{error.hint}; " if error.hint else ""


class _Positions:
    """The destination's positions of all tables, for threads that ask for one table each."""

    def __init__(self, pipeline: "Pipeline") -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._tables: Mapping[TableId, Lsn] = {}

    def of(self, status: TableStatus, *, not_before: float) -> Lsn | None:
        """That of one table, which has its snapshot, read at `not_before` or later."""
        with self._lock:
            mark = self._tables.get(status.table_id)
            is_old = self._read_at < not_before or time.monotonic() - self._read_at >= _POSITIONS_FOR
            if is_old or mark is None or mark < (status.snapshot_lsn or ZERO):
                self._read_at = time.monotonic()
                self._tables = self._pipeline.destination.positions().tables
            return self._tables.get(status.table_id)
