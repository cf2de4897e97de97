"""What a run tells whoever watches: the terminal, a test, Dagster. Every method may be called from any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from etl_core.batch import ChangeCounts
from etl_core.destination.protocol import Job
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.state.table_state import TableState

_SHOWN_NOTICES = 10


@dataclass(frozen=True, slots=True)
class Flush:
    """A batch is durable in the destination. `seconds` is how long decoding and writing it took."""

    end_lsn: Lsn
    commit_time: datetime | None
    rows: int
    seconds: float
    tables: Mapping[TableName, ChangeCounts]
    jobs: tuple[Job, ...] = ()
    """The warehouse's, where it has such."""
    lag: float | None = None
    """Seconds between the last of its commits and now, by the server's clock; None if it holds none."""


class Observer:
    """Told of progress; the default ignores it."""

    def on_state(self, table: TableName, state: TableState) -> None:
        """A table has moved to `state`."""

    def on_activated(self, table: TableName, watermark: Lsn) -> None:
        """The main stream applies the table's changes from now on; the destination has it as of `watermark`."""

    def on_deactivated(self, table: TableName) -> None:
        """The main stream passes the table over from now on: somebody paused it or copies it again."""

    def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        """So far `rows` rows were copied; `size` of about `total_size` bytes on the source's disk were read."""

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        """The initial copy of a table is published."""

    def on_comparing(self, table: TableName, *, is_again: bool) -> None:
        """Both sides of a table are being read; again if they differ, to find the rows."""

    def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        """So far `rows` rows were read on both sides, `size` of about `total_size` bytes of the two together."""

    def on_compared(self, table: TableName, rows: int, seconds: float) -> None:
        """A table of `rows` rows at the source was compared; what came of it is the result of `verify`."""

    def on_flush(self, flush: Flush) -> None:
        """The main stream has written a batch."""

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        """A table stopped; the others go on."""

    def on_retry(self, error: EtlError, wait: float) -> None:
        """Something failed that may pass; it is tried again after `wait` seconds."""

    def on_notice(self, sentence: str) -> None:
        """What will not arrive, or is unsafe, as found when the pipeline was prepared or while it runs."""

    def on_waiting(self, reason: str) -> None:
        """Nothing can be done until something outside ends, such as a transaction that a slot must wait for."""


class Observers(Observer):
    """Tells everything to each of several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_state(self, table: TableName, state: TableState) -> None:
        for observer in self._observers:
            observer.on_state(table, state)

    def on_activated(self, table: TableName, watermark: Lsn) -> None:
        for observer in self._observers:
            observer.on_activated(table, watermark)

    def on_deactivated(self, table: TableName) -> None:
        for observer in self._observers:
            observer.on_deactivated(table)

    def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        for observer in self._observers:
            observer.on_copy_progress(table, rows, size, total_size)

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        for observer in self._observers:
            observer.on_copied(table, rows, seconds)

    def on_comparing(self, table: TableName, *, is_again: bool) -> None:
        for observer in self._observers:
            observer.on_comparing(table, is_again=is_again)

    def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        for observer in self._observers:
            observer.on_compare_progress(table, rows, size, total_size)

    def on_compared(self, table: TableName, rows: int, seconds: float) -> None:
        for observer in self._observers:
            observer.on_compared(table, rows, seconds)

    def on_flush(self, flush: Flush) -> None:
        for observer in self._observers:
            observer.on_flush(flush)

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        for observer in self._observers:
            observer.on_table_error(table, error)

    def on_retry(self, error: EtlError, wait: float) -> None:
        for observer in self._observers:
            observer.on_retry(error, wait)

    def on_notice(self, sentence: str) -> None:
        for observer in self._observers:
            observer.on_notice(sentence)

    def on_waiting(self, reason: str) -> None:
        for observer in self._observers:
            observer.on_waiting(reason)


def tell_shortened(observer: Observer, sentences: Sequence[str]) -> None:
    """The first notices, and how many more there are: a thousand tables may have the same."""
    for sentence in sentences[:_SHOWN_NOTICES]:
        observer.on_notice(sentence)
    if len(sentences) > _SHOWN_NOTICES:
        observer.on_notice(f"and {len(sentences) - _SHOWN_NOTICES} more: etl doctor lists them")
