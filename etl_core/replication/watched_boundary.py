"""Tells the watch over the catalog how far the stream has come."""

from __future__ import annotations

from collections.abc import Callable, Collection

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.catalog_watch import CatalogWatch
from etl_core.replication.stream import Boundary


class WatchedBoundary:
    """A stream's boundary that also tells the watch how far the stream has come. Implements `stream.Boundary`."""

    def __init__(self, boundary: Boundary, watch: CatalogWatch) -> None:
        self._boundary = boundary
        self._watch = watch

    def look_around(self, position: Lsn, busy_wait: Callable[[], bool]) -> Lsn | None:
        self._watch.passed(position)
        return self._boundary.look_around(position, busy_wait)

    def passed(self, tables: Collection[TableId], end_lsn: Lsn) -> None:
        self._boundary.passed(tables, end_lsn)

    def held_at(self, lsn: Lsn) -> None:
        self._watch.passed(lsn)
        self._boundary.held_at(lsn)

    def is_settled(self) -> bool:
        return self._boundary.is_settled()

    def leave(self) -> None:
        self._boundary.leave()
