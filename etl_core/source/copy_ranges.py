"""The ranges of one copy: what a connection takes next, and where the rows of a range go.

A copy of this process alone has its ranges in memory (`all_into`); one that several processes share has them in the
state store (`replication/shared_copy.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from etl_core.source.connection import Connection
from etl_core.source.ctid_range import CtidRange

Sink = Callable[[pa.RecordBatch], None]


class RangeWork(Protocol):
    """A range that a connection has taken. One of `finish` and `give_up` ends it."""

    @property
    def part(self) -> CtidRange: ...

    def write(self, rows: pa.RecordBatch) -> None: ...

    def finish(self, rows: int) -> None:
        """The whole range, `rows` rows, was written."""

    def give_up(self) -> None:
        """The range was not finished; what was written of it counts for nothing."""


class Ranges(Protocol):
    """A copy's ranges. Used by the threads of its connections at once."""

    def take(self, conn: Connection) -> RangeWork | None:
        """The next range, for this connection to copy; None if none is free."""

    def elsewhere(self) -> tuple[int, int]:
        """What other processes have copied: rows, and bytes of the table's files."""


Plan = Callable[[Sequence[CtidRange]], Ranges]
"""Takes charge of the ranges a table was cut into."""


def all_into(sink: Sink) -> Plan:
    """A copy that nobody helps with. `sink` is called from several threads at once."""
    return lambda ranges: _Queue(ranges, sink)


class _Queue:
    def __init__(self, ranges: Sequence[CtidRange], sink: Sink) -> None:
        self._lock = threading.Lock()
        self._ranges = deque(ranges)
        self._sink = sink

    def take(self, conn: Connection) -> RangeWork | None:  # noqa: ARG002
        with self._lock:
            return _Work(self._ranges.popleft(), self._sink) if self._ranges else None

    def elsewhere(self) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True, slots=True)
class _Work:
    part: CtidRange
    sink: Sink

    def write(self, rows: pa.RecordBatch) -> None:
        self.sink(rows)

    def finish(self, rows: int) -> None:
        """Nobody else asks."""

    def give_up(self) -> None:
        """The copy is given up with it."""
