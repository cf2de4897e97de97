"""Numbers, sizes, times and tables as a person reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etl_core.batch import ChangeCounts
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState

NOTHING = "–"
BY_WHOM = "by the `etl run` that is running, or the next one"

STATE_WORDS = {
    TableState.INIT: "to be copied",
    TableState.DATA_SYNC: "being copied",
    TableState.FINISHED_COPY: "copied, to be caught up",
    TableState.SYNC_DONE: "caught up",
    TableState.READY: "ready",
    TableState.ERRORED: "failed",
    TableState.PAUSED: "paused",
}


def waiting_since(table: TableStatus) -> str:
    """For a table that waits for a person: `waits for approval since 2026-11-30 17:05:12`."""
    what = "to be copied" if table.change is None else "for approval"
    return f"waits {what}" + (f" since {table.updated_at.astimezone():%Y-%m-%d %H:%M:%S}" if table.updated_at else "")


def told_ignored(changes: Sequence[str]) -> str:
    """`ignored: column note (added)`."""
    return f"ignored: {', '.join(changes)}"


def approved(table: TableStatus, ignored: Sequence[str]) -> str:
    """What a person has let happen to a table that waited, or some of whose changes were `ignored`."""
    if table.waits_for is None:
        return f"what was ignored is taken over: {', '.join(ignored)}"
    return str(table.error)


def put(line: str = "") -> None:
    """A line of a command's result."""
    print(line, file=sys.stdout)  # noqa: T201 what the command line is for


def number(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def rate(rows: float, seconds: float) -> str:
    """`12,345 rows/s`."""
    return f"{rows / seconds if seconds > 0 else 0.0:,.0f} rows/s"


def size(value: int) -> str:
    """Bytes in powers of 1024: `512 B`, `1.5 MiB`."""
    amount, unit = float(value), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{value} B" if unit == "B" else f"{amount:,.1f} {unit}"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`, `5 h 12 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def counts(changes: ChangeCounts) -> str:
    """`+120 ~40 -3`: inserted, updated, deleted; and `emptied` for a truncate."""
    signs = (("+", changes.inserted), ("~", changes.updated), ("-", changes.deleted))
    parts = [f"{sign}{value:,}" for sign, value in signs if value]
    return " ".join([*parts, *(["emptied"] if changes.truncated else [])]) or "0"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `12 rows`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which every column but the last is padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
