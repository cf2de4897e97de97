"""The lines of a run without a terminal, on a clock of the test's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from etl_core.batch import ChangeCounts
from etl_core.cli.line_display import LineDisplay
from etl_core.errors import SourceUnavailable, TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState

ORDERS, ITEMS = TableName("public", "orders"), TableName("public", "items")
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
Said = Callable[[], list[str]]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def display(clock: Clock) -> LineDisplay:
    return LineDisplay(clock)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def lines() -> list[str]:
        read = capsys.readouterr()
        assert read.out == ""
        assert all(STAMP.match(line) for line in read.err.splitlines())
        return [STAMP.sub("", line) for line in read.err.splitlines()]

    return lines


def flush(end_lsn: int, rows: int, table: TableName = ORDERS) -> Flush:
    return Flush(Lsn(end_lsn), datetime.now(UTC), rows, 0.5, {table: ChangeCounts(inserted=rows)})


def test_a_copy_speaks_every_ten_seconds(display: LineDisplay, clock: Clock, said: Said) -> None:
    display.on_state(ORDERS, TableState.DATA_SYNC)
    assert said() == ["public.orders: copying"]
    for second in range(1, 25):
        clock.now = 100.0 + second
        display.on_copy_progress(ORDERS, second * 1000, second * 10, 400)
    assert said() == [
        "public.orders: copying, 10,000 rows, 1,000 rows/s, 25%, about 30 s left",
        "public.orders: copying, 20,000 rows, 1,000 rows/s, 50%, about 20 s left",
    ]
    display.on_copied(ORDERS, 40_000, 40.0)
    assert said() == ["public.orders: copied 40,000 rows in 40 s, 1,000 rows/s"]


def test_a_comparison_speaks_every_ten_seconds(display: LineDisplay, clock: Clock, said: Said) -> None:
    for table in (ORDERS, ITEMS):
        display.on_comparing(table, is_again=False)
        began = clock.now
        for second in range(1, 25):
            clock.now = began + second
            display.on_compare_progress(table, second * 1000, second * 10, 400)
        assert said() == [
            f"{table}: comparing, 10,000 rows, 1,000 rows/s, 25%, about 30 s left",
            f"{table}: comparing, 20,000 rows, 1,000 rows/s, 50%, about 20 s left",
        ]
        display.on_comparing(table, is_again=True)
        assert said() == [f"{table}: differs, reading both sides again to find the rows"]
        clock.now += 9
        display.on_compare_progress(table, 9_000, 360, 400)
        assert said() == []
        display.on_compared(table, 40_000, 40.0)
        assert said() == [f"{table}: compared 40,000 rows in 40 s, 1,000 rows/s"]


def test_the_stream_speaks_at_once_then_every_ten_seconds(display: LineDisplay, clock: Clock, said: Said) -> None:
    display.on_flush(flush(0x10, 100))
    [first] = said()
    assert first.startswith("streamed 100 row changes in 1 batch up to 0/10, 200 rows/s, lag ")
    assert first.endswith(": public.orders +100")
    for second in range(1, 10):
        clock.now = 100.0 + second
        display.on_flush(flush(0x10 + second, 10, ITEMS))
    assert said() == []
    clock.now = 110.0
    display.show_stream()
    [second_line] = said()
    assert second_line.startswith("streamed 90 row changes in 9 batches up to 0/19, ")
    display.show_stream(at_once=True)
    assert said() == []  # nothing has happened since
    assert display.rows == 190


def test_the_end_shows_what_is_left(display: LineDisplay, said: Said) -> None:
    with display:
        display.on_flush(flush(0x10, 1))
        display.on_flush(flush(0x20, 2))
        assert len(said()) == 1
    assert "streamed 2 row changes" in said()[0]


def test_a_wait_is_not_repeated_while_it_only_counts(display: LineDisplay, clock: Clock, said: Said) -> None:
    for second in range(12):
        clock.now = 100.0 + second
        display.on_waiting(f"the copy of public.orders waits for pid 7 (open for {second} s)")
    display.on_waiting("the copy of public.items waits for pid 7 (open for 11 s)")
    assert said() == [
        "the copy of public.orders waits for pid 7 (open for 0 s)",
        "the copy of public.orders waits for pid 7 (open for 10 s)",
        "the copy of public.items waits for pid 7 (open for 11 s)",
    ]


def test_errors_are_one_line(display: LineDisplay, said: Said) -> None:
    display.on_table_error(ORDERS, TableError("it is broken\nhere", table="public.orders", hint="mend it"))
    display.on_retry(SourceUnavailable("the connection was lost"), 0.4)
    assert said() == [
        "public.orders failed: it is broken here → mend it",
        "the connection was lost; trying again in 0.4 s",
    ]
