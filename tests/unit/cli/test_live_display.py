"""What the live display draws, on a console that keeps it."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from rich.console import Console

from etl_core.batch import ChangeCounts
from etl_core.cli.live_display import LiveDisplay
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState


def names(count: int) -> list[TableName]:
    return [TableName("public", f"t{index}") for index in range(count)]


def drawn(display: LiveDisplay, console: Console) -> str:
    with console.capture() as capture:
        console.print(display.draw())
    return capture.get()


def new_display() -> tuple[LiveDisplay, Console]:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    return LiveDisplay(console, "shop → duckdb"), console


def test_copies_have_a_bar_each_up_to_a_dozen() -> None:
    display, console = new_display()
    for name in names(15):
        display.on_state(name, TableState.DATA_SYNC)
        display.on_copy_progress(name, 1200, 30, 120)
    text = drawn(display, console)
    assert "shop → duckdb" in text
    assert sum("25%" in line and "1,200 rows" in line and "left" in line for line in text.splitlines()) == 12
    assert "and 3 more" in text
    for name in names(15):
        display.on_state(name, TableState.FINISHED_COPY)
    assert "25%" not in drawn(display, console)


def test_a_copy_that_was_read_is_being_published() -> None:
    display, console = new_display()
    [name] = names(1)
    display.on_copy_progress(name, 1200, 130, 120)
    assert "publishing" in drawn(display, console)


def test_a_comparison_has_a_bar_until_it_is_done() -> None:
    display, console = new_display()
    [name, other] = names(2)
    display.on_comparing(name, is_again=False)
    assert "public.t0" in drawn(display, console)
    display.on_compare_progress(name, 1200, 30, 120)
    text = drawn(display, console)
    assert "25%" in text
    assert "1,200 rows" in text
    assert "left" in text
    display.on_compare_progress(name, 4800, 120, 120)
    assert "100%" in drawn(display, console)
    assert "publishing" not in drawn(display, console)
    display.on_comparing(name, is_again=True)
    assert "100%" not in drawn(display, console)
    display.on_compared(name, 4800, 2.0)
    assert "public.t0" not in drawn(display, console)
    display.on_comparing(other, is_again=False)
    assert "public.t1" in drawn(display, console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue().splitlines()
    assert "public.t0: differs, reading both sides again to find the rows" in said
    assert any(line.startswith("public.t0: compared 4,800 rows in 2") for line in said)


def test_what_has_begun_stands_beside_the_title() -> None:
    display, console = new_display()
    display.begin("comparing 8 tables")
    assert "shop → duckdb  comparing 8 tables, " in drawn(display, console)


def test_a_table_of_unknown_size_has_a_bar_without_a_share() -> None:
    display, console = new_display()
    [name] = names(1)
    display.on_copy_progress(name, 0, 0, 0)
    assert "public.t0" in drawn(display, console)


def test_the_stream_and_failed_tables() -> None:
    display, console = new_display()
    one, other = names(2)
    display.on_flush(Flush(Lsn(0x1234), datetime.now(UTC), 120, 0.5, {one: ChangeCounts(inserted=120)}))
    display.on_flush(Flush(Lsn(0x5678), datetime.now(UTC), 3, 0.1, {other: ChangeCounts(deleted=3, truncated=1)}))
    display.on_table_error(one, TableError("broken [bold]", table="public.t0"))
    text = drawn(display, console)
    assert "streaming at 0/5678" in text
    assert "last batch 3 rows in 0.1 s" in text
    assert "123 row changes so far: public.t1 -3 emptied, public.t0 +120" in text
    assert "1 table failed: see etl status" in text
    assert isinstance(console.file, io.StringIO)
    assert "broken [bold]" in console.file.getvalue()  # not read as markup
    display.on_state(one, TableState.INIT)
    assert "failed" not in drawn(display, console)
