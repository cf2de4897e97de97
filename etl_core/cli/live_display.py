"""Progress on a terminal: a bar for each table that is copied or compared, and what the stream does, drawn in place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from etl_core.cli.activity import StreamActivity, TableActivity, tables_text
from etl_core.cli.display import Display, table_error
from etl_core.cli.repetition import Repetition
from etl_core.cli.texts import duration, number, plural, rate
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState

_REFRESHES = 4.0
_SHOWN_COPIES = 12
_SHOWN_TABLES = 4
_BAR = 30
_WAITING_FOR = 4.0
"""Seconds for which the reason of a wait stays, unless it is given again."""


class LiveDisplay(Display):
    """Draws on `console`. Lines about what is done stay above; `title` and the present stand below them.

    Never prints with the lock held: the drawing thread takes the console's lock first, then this one.
    """

    def __init__(self, console: Console, title: str) -> None:
        super().__init__()
        self._console = console
        self._title = title
        self._retries = Repetition(time.monotonic)
        self._copies: dict[TableName, TableActivity] = {}
        self._comparison: tuple[TableName, TableActivity] | None = None
        self._stream: StreamActivity | None = None
        self._errored: dict[TableName, None] = {}
        self._work: tuple[str, float] | None = None
        self._waiting: tuple[str, float] | None = None
        self._live = Live(console=console, refresh_per_second=_REFRESHES, get_renderable=self.draw, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, sentence: str) -> None:
        self._console.print(Text(sentence))

    def begin(self, work: str) -> None:
        with self._lock:
            self._work = (work, time.monotonic())

    def on_state(self, table: TableName, state: TableState) -> None:
        super().on_state(table, state)
        with self._lock:
            if state is not TableState.ERRORED:
                self._errored.pop(table, None)
            if state is TableState.DATA_SYNC:
                self._copies[table] = TableActivity(time.monotonic())
            else:
                self._copies.pop(table, None)

    def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        with self._lock:
            self._copies.setdefault(table, TableActivity(time.monotonic())).update(rows, size, total_size)

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        with self._lock:
            self._copies.pop(table, None)
        self.say(f"✓ {table}: copied {plural(rows, 'row')} in {duration(seconds)}, {rate(rows, seconds)}")

    def on_comparing(self, table: TableName, *, is_again: bool) -> None:
        with self._lock:
            self._comparison = (table, TableActivity(time.monotonic()))
        if is_again:
            self.say(f"{table}: differs, reading both sides again to find the rows")

    def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        with self._lock:
            if self._comparison is not None and self._comparison[0] == table:
                self._comparison[1].update(rows, size, total_size)

    def on_compared(self, table: TableName, rows: int, seconds: float) -> None:
        with self._lock:
            self._comparison = None
        self.say(f"{table}: compared {plural(rows, 'row')} in {duration(seconds)}, {rate(rows, seconds)}")

    def on_flush(self, flush: Flush) -> None:
        super().on_flush(flush)
        now = time.monotonic()
        with self._lock:
            if self._stream is None:
                self._stream = StreamActivity(now - flush.seconds)
            self._stream.add(flush, now)

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        with self._lock:
            self._copies.pop(table, None)
            self._errored[table] = None
        self.say(f"✗ {table_error(table, error)}")

    def on_retry(self, error: EtlError, wait: float) -> None:
        with self._lock:
            sentence = self._retries.sentence(error, wait)
        if sentence is not None:
            self.say(sentence)

    def on_waiting(self, reason: str) -> None:
        with self._lock:
            self._waiting = (reason, time.monotonic())

    # --- drawing ----------------------------------------------------------------------------------------------

    def draw(self) -> RenderableType:
        """What is below the lines, as of now."""
        now = time.monotonic()
        with self._lock:
            parts: list[RenderableType] = [self._draw_title(now)]
            if self._copies:
                parts.append(_draw_tables(list(self._copies.items()), now, "publishing"))
            if self._comparison is not None:
                parts.append(_draw_tables([self._comparison], now, ""))
            if self._stream is not None:
                parts += _draw_stream(self._stream, now)
            if self._errored:
                parts.append(Text(f"{plural(len(self._errored), 'table')} failed: see etl status", style="red"))
            if self._waiting is not None and now < self._waiting[1] + _WAITING_FOR:
                parts.append(Text(self._waiting[0], style="yellow"))
        return Group(*parts)

    def _draw_title(self, now: float) -> Text:
        title = Text(self._title, style="bold")
        if self._work is not None:
            title.append(f"  {self._work[0]}, {duration(now - self._work[1])}", style="not bold")
        return title


def _draw_tables(tables: Sequence[tuple[TableName, TableActivity]], now: float, then: str) -> Table:
    """A line for each; `then` is what follows when a table was read."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(width=_BAR)
    for _ in range(4):
        grid.add_column(justify="right", no_wrap=True)
    for table, activity in tables[:_SHOWN_COPIES]:
        share, left = activity.share, activity.left(now)
        grid.add_row(
            Text(str(table)),
            # A table without pages has no share: the bar says only that something goes on.
            ProgressBar(total=1.0 if share is not None else None, completed=share or 0.0, width=_BAR),
            f"{share:.0%}" if share is not None else "",
            f"{number(activity.rows)} rows",
            rate(activity.rows, now - activity.started),
            _left(share, left, then),
        )
    more = len(tables) - _SHOWN_COPIES
    if more > 0:
        grid.add_row(Text(f"and {more} more"))
    return grid


def _left(share: float | None, seconds: float | None, then: str) -> str:
    if share is None or seconds is None:
        return ""
    return f"{duration(seconds)} left" if share < 1 else then


def _draw_stream(stream: StreamActivity, now: float) -> list[RenderableType]:
    facts = (
        f"streaming at {stream.lsn}",
        f"{stream.rows_per_second(now):,.0f} rows/s",
        f"lag {stream.lag_text()}",
        f"last batch {plural(stream.last_rows, 'row')} in {duration(stream.last_seconds)}, "
        f"{duration(now - stream.last_at)} ago",
    )
    return [
        _one_line("  ".join(facts)),
        _one_line(f"{number(stream.rows)} row changes so far: {tables_text(stream.tables, _SHOWN_TABLES)}", "dim"),
    ]


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
