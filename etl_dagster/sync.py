"""One table's initial sync: copies it, or finds it copied, beside a step that can be interrupted at any moment."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from etl_core.errors import EtlError, StateConflict, Stopped
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState
from etl_dagster.waits import Waits

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from etl_core.replication.copy import Copied
    from etl_core.replication.observer import Observer
    from etl_dagster.resources import PostgresReplicationResource

_T = TypeVar("_T")

_REPORT_EVERY = 2.0
_LOOK_EVERY = 1.0
_PATIENCE = 15.0
"""Less than the 30 seconds that Kubernetes leaves between a termination and the kill."""
_COPIED = (TableState.FINISHED_COPY, TableState.SYNC_DONE, TableState.READY, TableState.PAUSED)


@dataclass(frozen=True, slots=True)
class CopyCost:
    """`size` is in bytes on the source's disk; `seconds` includes waiting for the snapshot."""

    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Synced:
    """A table in the destination, as of `lsn`.

    `rows` is None where counting would mean reading it: the stream has changed it since it was copied. `cost` is
    None if it had been copied before.
    """

    lsn: Lsn
    schema: TableSchema
    rows: int | None
    cost: CopyCost | None


class CopyProgress:
    """What a copy tells of itself: kept by the engine's threads, asked for by the step's, which logs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits = Waits()
        self._news: list[str] = []
        self._progress: tuple[TableName, int, int, int] | None = None
        self.size = 0

    def copied(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        """So far; see `Observer.on_copy_progress`."""
        with self._lock:
            self._progress = (table, rows, size, total_size)
            self.size = size

    def say(self, news: str) -> None:
        """What is waited for; the same again is left out for a while."""
        if self._waits.is_news(news):
            with self._lock:
                self._news.append(news)

    def line(self) -> str | None:
        """What is new since the last call, as one line; None if nothing is."""
        with self._lock:
            news, self._news = self._news, []
            progress, self._progress = self._progress, None
        if progress is not None:
            table, rows, size, total_size = progress
            share = f" ({size / total_size:.0%} of the table)" if total_size else ""
            news.append(f"{table}: {rows:,} rows copied{share}")
        return "; ".join(news) or None

    def observer(self) -> "Observer":
        """For the pipeline that copies."""
        from etl_core.replication.observer import Observer

        progress = self

        class _Listener(Observer):
            def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
                progress.copied(table, rows, size, total_size)

            def on_waiting(self, reason: str) -> None:
                progress.say(reason)

        return _Listener()


def run_interruptibly(work: Callable[[], _T], stop: threading.Event, report: Callable[[], None]) -> _T:
    """What `work`, run in a thread of its own, returns or raises; meanwhile calls `report` every two seconds.

    An interruption is raised in the main thread, which must not be deep in a library then. It sets `stop`, waits
    until `work` has come to its end, and goes on. Work that waits for a lock at the source may not hear it: it is left
    behind after a while, and ends with the process as after a crash, which loses nothing.
    """
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="sync", daemon=True)
    thread.start()
    try:
        while not wait([outcome], _REPORT_EVERY).done:
            report()
    except BaseException:
        stop.set()
        thread.join(_PATIENCE)
        raise
    thread.join()
    report()
    return outcome.result()


def sync_table(
    replication: "PostgresReplicationResource",
    table: TableName,
    *,
    full_refresh: bool,
    progress: CopyProgress,
    stop: threading.Event,
    share: str | None = None,
) -> Synced:
    """Copies the table behind the swap; without `full_refresh` only if it was not copied before.

    While another process copies it, raises StateConflict with `full_refresh`, else waits for that copy. With `share`
    other processes may help under this token (`Pipeline.help_sync`); at the end they are told that it is over.
    Raises what the engine raises; Stopped or another TransientError once `stop` is set.
    """
    with replication.pipeline(observer=progress.observer(), stop=stop) as pipeline:
        try:
            return _sync(pipeline, table, full_refresh, progress, share)
        finally:
            if share is not None:
                with contextlib.suppress(EtlError):  # they find out by themselves, later
                    pipeline.store.shared_copies.end(pipeline.find(table).table_id, share)


def _sync(
    pipeline: "Pipeline", table: TableName, full_refresh: bool, progress: CopyProgress, share: str | None
) -> Synced:
    while True:
        pipeline.prepare()  # also sets back a copy whose process has died
        status = pipeline.find(table)
        if status.state is TableState.DATA_SYNC:
            _wait_for_the_other(table, full_refresh, progress, pipeline.stop)
            continue
        found = None if full_refresh else as_it_is(pipeline, status)
        if found is not None:
            return found
        try:
            copied = _copy(pipeline, table, share)
        except StateConflict:
            continue  # the table was moved on meanwhile, by a stream or another copy: look again
        schema = pipeline.store.schema(status.table_id)
        if schema is None:  # taken out of the publication since
            raise StateConflict(f"{table} was removed from the pipeline while it was copied")
        return Synced(copied.snapshot_lsn, schema[1], copied.rows, CopyCost(progress.size, copied.seconds))


def _wait_for_the_other(table: TableName, full_refresh: bool, progress: CopyProgress, stop: threading.Event) -> None:
    if full_refresh:
        raise StateConflict(
            f"another process is copying {table} now",
            hint="wait until it has ended, then materialise again; with full_refresh off this waits for it",
        )
    progress.say(f"another process is copying {table}, waiting for it")
    if stop.wait(_LOOK_EVERY):
        raise Stopped(f"stopped while another process copied {table}")


def as_it_is(pipeline: "Pipeline", status: TableStatus) -> Synced | None:
    """The table as the destination has it; None if it has to be copied."""
    schema = pipeline.store.schema(status.table_id)
    lsn = pipeline.destination.positions().tables.get(status.table_id)
    if status.state not in _COPIED or schema is None or lsn is None:
        return None
    is_untouched = lsn == status.snapshot_lsn
    return Synced(lsn, schema[1], status.rows_copied if is_untouched else None, None)


def _copy(pipeline: "Pipeline", table: TableName, share: str | None) -> "Copied":
    results = pipeline.sync([table], share=share)
    if not results:
        raise StateConflict(f"another process has begun to copy {table}")
    if isinstance(results[0], EtlError):
        raise results[0]
    return results[0]
