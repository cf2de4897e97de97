"""Progress where there is no terminal: a line with a time for each event, and for the stream one in ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

from etl_core.cli.activity import StreamActivity, TableActivity, tables_text
from etl_core.cli.display import Display, table_error
from etl_core.cli.repetition import Repetition
from etl_core.cli.texts import duration, number, plural, rate
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState

EVERY = 10.0
"""Seconds between two lines about the same."""
_SHOWN_TABLES = 5
_STATES = {
    TableState.INIT: "is to be copied again",
    TableState.DATA_SYNC: "copying",
    TableState.READY: "is ready, its changes are streamed",
    TableState.PAUSED: "is paused",
}
"""The other states have events of their own."""


class LineDisplay(Display):
    """Writes lines to stderr. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._retries = Repetition(clock)
        self._copies: dict[TableName, TableActivity] = {}
        self._comparison: TableActivity | None = None
        self._said: dict[str, float] = {}
        self._stream: StreamActivity | None = None
        self._stream_due = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        self.show_stream(at_once=True)

    def say(self, sentence: str) -> None:
        line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {' '.join(sentence.splitlines())}\n"
        sys.stderr.write(line)
        sys.stderr.flush()

    def begin(self, work: str) -> None:
        self.say(work)

    def on_state(self, table: TableName, state: TableState) -> None:
        super().on_state(table, state)
        if state is TableState.DATA_SYNC:
            with self._lock:
                self._copies[table] = TableActivity(self._clock())
                self._said[f"{table}: copying"] = self._clock()
        if state in _STATES:
            self.say(f"{table}: {_STATES[state]}")

    def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        with self._lock:
            copy = self._copies.setdefault(table, TableActivity(self._clock()))
        self._progressed(copy, f"{table}: copying", rows, size, total_size)

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        with self._lock:
            self._copies.pop(table, None)
        self.say(f"{table}: copied {plural(rows, 'row')} in {duration(seconds)}, {rate(rows, seconds)}")

    def on_comparing(self, table: TableName, *, is_again: bool) -> None:
        now = self._clock()
        with self._lock:
            self._comparison = TableActivity(now)
            self._said[f"{table}: comparing"] = now
        if is_again:
            self.say(f"{table}: differs, reading both sides again to find the rows")

    def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        if self._comparison is not None:
            self._progressed(self._comparison, f"{table}: comparing", rows, size, total_size)

    def on_compared(self, table: TableName, rows: int, seconds: float) -> None:
        self.say(f"{table}: compared {plural(rows, 'row')} in {duration(seconds)}, {rate(rows, seconds)}")

    def on_flush(self, flush: Flush) -> None:
        super().on_flush(flush)
        now = self._clock()
        with self._lock:
            if self._stream is None:
                self._stream = StreamActivity(now - flush.seconds)
            self._stream.add(flush, now)
        self.show_stream()

    def show_stream(self, *, at_once: bool = False) -> None:
        """A line about the batches since the last one, if there were any and it is due."""
        now = self._clock()
        with self._lock:
            stream = self._stream
            if stream is None or not (at_once or now >= self._stream_due):
                return
            self._stream, self._stream_due = None, now + EVERY
        self.say(
            f"streamed {plural(stream.rows, 'row change')} in {plural(stream.batches, 'batch', 'batches')}"
            f" up to {stream.lsn}, {rate(stream.rows, now - stream.started)}, lag {stream.lag_text()}"
            + (f": {tables_text(stream.tables, _SHOWN_TABLES)}" if stream.tables else "")
        )

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        with self._lock:
            self._copies.pop(table, None)
        self.say(table_error(table, error))

    def on_retry(self, error: EtlError, wait: float) -> None:
        with self._lock:
            sentence = self._retries.sentence(error, wait)
        if sentence is not None:
            self.say(sentence)

    def on_waiting(self, reason: str) -> None:
        # The reason counts its seconds: what stands before " wait" tells one wait from another.
        with self._lock:
            due = self._is_due(reason.partition(" wait")[0], self._clock())
        if due:
            self.say(reason)

    def _progressed(self, activity: TableActivity, doing: str, rows: int, size: int, total_size: int) -> None:
        now = self._clock()
        with self._lock:
            activity.update(rows, size, total_size)
            if not self._is_due(doing, now):
                return
            share, left = activity.share, activity.left(now)
        parts = [f"{doing}, {number(rows)} rows", rate(rows, now - activity.started)]
        if share is not None:
            parts.append(f"{share:.0%}")
        if left is not None:
            parts.append(f"about {duration(left)} left")
        self.say(", ".join(parts))

    def _is_due(self, subject: str, now: float) -> bool:
        if now < self._said.get(subject, float("-inf")) + EVERY:
            return False
        self._said[subject] = now
        return True

    def _tick(self) -> None:
        while not self._closed.wait(1.0):
            self.show_stream()
