"""What a step tells of the tables it brings up to now, and how it can be interrupted at any moment meanwhile."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_dagster.reports.waits import Waits

if TYPE_CHECKING:
    from etl_core.replication.observer import Observer
    from etl_core.shape.shape import Shape

_T = TypeVar("_T")

_REPORT_EVERY = 2.0
_PATIENCE = 15.0
"""Less than the 30 seconds that Kubernetes leaves between a termination and the kill."""
_SHOWN_TABLES = 3


@dataclass(frozen=True, slots=True)
class CopyCost:
    """`size` is in bytes on the source's disk; `seconds` includes waiting for the snapshot."""

    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Synced:
    """A table in the destination, as of `lsn`.

    `rows` is None where counting would mean reading it: the stream has changed it since it was copied. `cost` is
    None if this step did not copy it: the stream, or another process's copy, brought it there.
    """

    lsn: Lsn
    shape: "Shape"
    rows: int | None
    cost: CopyCost | None


class CopyProgress:
    """What copies tell of themselves: kept by the engine's threads, asked for by the step's, which logs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits = Waits()
        self._news: list[str] = []
        self._progress: dict[TableName, tuple[int, int, int]] = {}
        self._sizes: dict[TableName, int] = {}

    def copied(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        """So far; see `Observer.on_copy_progress`."""
        with self._lock:
            self._progress[table] = (rows, size, total_size)
            self._sizes[table] = size

    def size(self, table: TableName) -> int:
        """Bytes that were read of it so far."""
        with self._lock:
            return self._sizes.get(table, 0)

    def say(self, news: str) -> None:
        """What is waited for; the same again is left out for a while."""
        if self._waits.is_news(news):
            with self._lock:
                self._news.append(news)

    def line(self) -> str | None:
        """What is new since the last call, as one line; None if nothing is."""
        with self._lock:
            news, self._news = self._news, []
            progress, self._progress = self._progress, {}
        for table, (rows, size, total_size) in list(progress.items())[-_SHOWN_TABLES:]:
            share = f" ({size / total_size:.0%} of the table)" if total_size else ""
            news.append(f"{table}: {rows:,} rows copied{share}")
        if len(progress) > _SHOWN_TABLES:
            news.append(f"{len(progress) - _SHOWN_TABLES} more tables")
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
    with _beside(work, stop) as outcome:
        while not wait([outcome], _REPORT_EVERY).done:
            report()
    report()
    return outcome.result()


def yield_interruptibly(
    work: Callable[[Callable[[_T], None]], None], stop: threading.Event, report: Callable[[], None]
) -> Iterator[_T]:
    """What `work` gives to the function it is called with, as soon as it does; else like `run_interruptibly`."""
    given: queue.SimpleQueue[tuple[_T] | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(lambda result: given.put((result,)))
        finally:
            given.put(None)

    with _beside(run, stop) as outcome:
        due = time.monotonic() + _REPORT_EVERY
        while True:
            if time.monotonic() >= due:
                report()
                due = time.monotonic() + _REPORT_EVERY
            try:
                result = given.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if result is None:
                break
            yield result[0]
    report()
    outcome.result()


@contextlib.contextmanager
def _beside(work: Callable[[], _T], stop: threading.Event) -> Iterator[Future[_T]]:
    """Runs `work` in a thread of its own until it ends, or until the block is interrupted and `stop` has ended it."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="sync", daemon=True)
    thread.start()
    try:
        yield outcome
    except BaseException:
        stop.set()
        thread.join(_PATIENCE)
        raise
    thread.join()
