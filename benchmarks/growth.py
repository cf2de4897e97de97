"""How fast what is stored grows: Dagster's events, and our state store. Both are SQLite files in the benchmark.

Pages in use are counted, of 4,096 bytes each, those still in the write-ahead log included: a file's own size follows
later.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_HOUR = 3600.0
_INDEX = "index.db"  # a copy of the events of assets, beside a file for each run


@dataclass(frozen=True, slots=True)
class Stored:
    """What was there at `at` (of the monotonic clock, in seconds): `events` and `runs` by number, the rest in bytes."""

    at: float
    events: int
    runs: int
    event_bytes: int
    state_bytes: int


def read_stored(home: Path, state: Path) -> Stored:
    """Of the Dagster instance in `home` and the state store in the file `state`."""
    files = sorted((home / "history" / "runs").glob("*.db"))
    runs = [file for file in files if file.name != _INDEX]
    if len(runs) == len(files):
        raise RuntimeError(f"Dagster's events are not in {home / 'history' / 'runs'}, where they were looked for")
    return Stored(
        time.monotonic(),
        sum(_ask(file, "SELECT count(*) FROM event_logs") for file in runs),
        len(runs),
        sum(_used(file) for file in files),
        _used(state),
    )


def growth_per_hour(before: Stored, after: Stored) -> dict[str, float]:
    """What came between the two, extrapolated to an hour."""
    hours = (after.at - before.at) / _HOUR
    return {
        "dagster_events_per_hour": (after.events - before.events) / hours,
        "dagster_event_bytes_per_hour": (after.event_bytes - before.event_bytes) / hours,
        "state_bytes_per_hour": (after.state_bytes - before.state_bytes) / hours,
    }


def _used(file: Path) -> int:
    pages = _ask(file, "PRAGMA page_count") - _ask(file, "PRAGMA freelist_count")
    return pages * _ask(file, "PRAGMA page_size")


def _ask(file: Path, query: str) -> int:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return int(connection.execute(query).fetchone()[0])
