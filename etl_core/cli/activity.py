"""The figures behind a display: how fast a copy and the stream are, and how long it will take."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_core.batch import ChangeCounts
from etl_core.cli.texts import counts, duration
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush

_WINDOW = 5.0
"""Seconds over which the stream's speed is taken."""


@dataclass(slots=True)
class TableActivity:
    """The copy, or the comparison, of one table.

    `started` on the monotonic clock; `size` of about `total_size` bytes were read.
    """

    started: float
    rows: int = 0
    size: int = 0
    total_size: int = 0

    def update(self, rows: int, size: int, total_size: int) -> None:
        self.rows, self.size, self.total_size = rows, size, total_size

    @property
    def share(self) -> float | None:
        """Between 0 and 1, None while the table's size is not known. The size is an estimate."""
        return min(1.0, self.size / self.total_size) if self.total_size > 0 else None

    def left(self, now: float) -> float | None:
        """Seconds left if it goes on like this."""
        share = self.share
        return (now - self.started) * (1 - share) / share if share else None


@dataclass(slots=True)
class StreamActivity:
    """The stream since `started`, on the monotonic clock. `lag` in seconds, as of the last batch."""

    started: float
    lsn: Lsn | None = None
    lag: float | None = None
    rows: int = 0
    batches: int = 0
    tables: dict[TableName, ChangeCounts] = field(default_factory=dict)
    last_rows: int = 0
    last_seconds: float = 0.0
    last_at: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, flush: Flush, now: float) -> None:
        self.lsn = flush.end_lsn
        if flush.lag is not None:
            self.lag = flush.lag
        self.rows += flush.rows
        self.batches += 1
        self.last_rows, self.last_seconds, self.last_at = flush.rows, flush.seconds, now
        for table, changes in flush.tables.items():
            # Taken out first, so that the tables that changed last come last.
            self.tables[table] = self.tables.pop(table, ChangeCounts()) + changes
        self._recent.append((now, flush.rows))

    def rows_per_second(self, now: float) -> float:
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()
        window = min(_WINDOW, max(1.0, now - self.started))
        return sum(rows for _, rows in self._recent) / window

    def lag_text(self) -> str:
        return "unknown" if self.lag is None else duration(self.lag)


def tables_text(tables: Mapping[TableName, ChangeCounts], most: int) -> str:
    """`public.orders +120 ~40, public.carts -3 and 7 more`: those that changed last come first."""
    latest = list(tables.items())[::-1]
    shown = ", ".join(f"{name} {counts(changes)}" for name, changes in latest[:most])
    return shown if len(latest) <= most else f"{shown} and {len(latest) - most} more"
