"""Which tables have another name at the source than in the destination, though no row has said so.

A renamed table says its new name with its first row, by a Relation message. One that is not written would keep its old
name in the destination for ever, and one that was put aside for another table would not be found. So the watch notes
the names that the catalog has, and where the stream has passed such a look, the table is renamed without a row.
The WAL has the last word: a look may have missed a rename whose transaction was just ending, so that what a row has
said since the look before is not taken back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class _Seen:
    """A name that the catalog had in one look after the other, the last of them at `last`.

    `ahead` is of one of them, until the stream has passed it; `passed` of the latest such one, `before` of the look
    before that.
    """

    name: TableName
    last: Lsn
    ahead: Lsn | None
    passed: Lsn | None = None
    before: Lsn = ZERO

    def looked_again(self, name: TableName, lsn: Lsn) -> _Seen:
        if name != self.name:
            return _Seen(name, lsn, lsn, before=self.last)
        return replace(self, last=lsn, ahead=self.ahead or lsn)

    def streamed(self, position: Lsn) -> _Seen:
        if self.ahead is None or self.ahead > position:
            return self
        return replace(self, ahead=None, passed=self.ahead, before=self.passed or self.before)


class Renames:
    """Of one stream. The watch's thread notes, the conducting one asks, the writing one takes."""

    def __init__(self, applied: Callable[[TableId], TableSchema | None]) -> None:
        """`applied` gives the schema that a table has in the destination."""
        self._applied = applied
        self._aside: Set[TableId] = frozenset()
        self._lock = threading.Lock()
        self._seen: dict[TableId, _Seen] = {}
        self._candidates: set[TableId] = set()
        """Tables that differed at the last look and were not tried to be renamed since."""

    def noted(self, names: Mapping[TableId, TableName], lsn: Lsn) -> None:
        """The catalog had these names; no transaction that it showed ends beyond `lsn`."""
        with self._lock:
            for table_id, name in names.items():
                seen = self._seen.get(table_id)
                self._seen[table_id] = _Seen(name, lsn, lsn) if seen is None else seen.looked_again(name, lsn)
            self._candidates = {table_id for table_id in names if self._differs(table_id)}

    def put_aside(self, tables: Set[TableId]) -> None:
        """The destination has these tables under no name of theirs, and no others."""
        with self._lock:
            self._aside = tables

    def is_due(self, position: Lsn) -> bool:
        """Whether a table is to be renamed when the stream has come to `position`."""
        with self._lock:
            return bool(self._candidates) and bool(self._due(position))

    def take(self, position: Lsn) -> dict[TableId, TableName]:
        """The tables to be renamed when the stream has come to `position`, and their names; once after each look."""
        with self._lock:
            due = self._due(position)
            self._candidates -= due.keys()
        return due

    def _differs(self, table_id: TableId) -> bool:
        schema = self._applied(table_id)
        return schema is not None and (schema.name != self._seen[table_id].name or table_id in self._aside)

    def _due(self, position: Lsn) -> dict[TableId, TableName]:
        found = {}
        for table_id in self._candidates:
            schema = self._applied(table_id)
            if schema is None or not self._differs(table_id):
                continue
            self._seen[table_id] = seen = self._seen[table_id].streamed(position)
            before = seen.passed if table_id in self._aside else seen.before
            told = schema.described_at
            if seen.passed is not None and before is not None and (told is None or told < before):
                found[table_id] = seen.name
        return found
