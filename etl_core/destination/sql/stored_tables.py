"""The rows of `_etl.watermarks`, and what a transaction that publishes many copies keeps of them.

Read again for each of them, and compared with each name, they would cost a group of tables the more the more tables
there are: 8 ms for each copy beside 2,000 tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn

NO_TABLE = TableId(0)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A row of `_etl.watermarks`. `attnums` tells a column from one that was dropped and added again."""

    pipeline: str
    table_id: TableId
    name: TableName
    lsn: Lsn | None
    attnums: Mapping[str, int]


class KeptTables:
    """The rows as one transaction sees and changes them, found by name and by id. `fold` is the dialect's."""

    def __init__(self, fold: Callable[[str], str], rows: Iterable[StoredTable]) -> None:
        self._fold = fold
        self._by_name: dict[tuple[str, str], list[StoredTable]] = {}
        self._by_id: dict[tuple[str, TableId], StoredTable] = {}
        for row in rows:
            self._add(row)

    def all(self) -> list[StoredTable]:
        return [row for rows in self._by_name.values() for row in rows]

    def called(self, name: TableName) -> list[StoredTable]:
        """Of every pipeline, names that are the same when folded."""
        return list(self._by_name.get(self._folded(name), ()))

    def of(self, pipeline: str, table_id: TableId) -> StoredTable | None:
        return self._by_id.get((pipeline, table_id))

    def put(self, row: StoredTable) -> None:
        """As `Bookkeeping.put_table` changes them: it replaces a row of the name, and its own name of before stays."""
        rows = self._by_name.get(self._folded(row.name), [])
        for other in [other for other in rows if other.name == row.name]:
            self._remove(other)
        before = self._by_id.get((row.pipeline, row.table_id))
        if before is not None:
            self._remove(before)
            self._add(replace(before, table_id=NO_TABLE, lsn=None))
        self._add(row)

    def _add(self, row: StoredTable) -> None:
        self._by_name.setdefault(self._folded(row.name), []).append(row)
        if row.table_id != NO_TABLE:
            self._by_id[row.pipeline, row.table_id] = row

    def _remove(self, row: StoredTable) -> None:
        self._by_name[self._folded(row.name)].remove(row)
        if self._by_id.get((row.pipeline, row.table_id)) is row:
            del self._by_id[row.pipeline, row.table_id]

    def _folded(self, name: TableName) -> tuple[str, str]:
        return self._fold(name.namespace), self._fold(name.name)
