"""Gives a table of the destination the name that it has at the source, in the transaction that brings its rows.

The later of two tables that were called so keeps the name, by their watermarks: a table that catches up behind the
others, or ahead of them, takes it from nobody who has it now.
"""

from __future__ import annotations

from collections.abc import Sequence

from etl_core.destination.aside import aside_name
from etl_core.destination.sql.bookkeeping import Bookkeeping
from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.histories import Histories
from etl_core.destination.sql.names import check_name
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema


class Renames:
    """Of one transaction."""

    def __init__(self, dialect: Dialect, session: Session, book: Bookkeeping, histories: Histories) -> None:
        self._dialect = dialect
        self._session = session
        self._book = book
        self._histories = histories
        self.moved: dict[TableId, TableName] = {}
        """Where tables are now that were renamed or put aside."""
        self.written_anew: set[TableId] = set()
        """Tables whose rows were written anew, as their product cannot rename them so."""

    def brought(self, schema: TableSchema, lsn: Lsn) -> TableName:
        """Renames the table to the name that `schema` has for it as of `lsn`; returns where it is then, or is to be.

        A table that had the name before is put aside. If it has it since `lsn`, nothing is renamed. Raises TableError
        if the name is somebody else's.
        """
        own = self._book.stored(schema.table_id)
        target = schema.name
        if own is not None and own.name == target:
            return target
        self._histories.check_table(schema)
        there = self._session.relations_called(self._dialect, target)
        own_there = [] if own is None else self._session.relations_called(self._dialect, own.name)
        called = self._book.called(target)
        check_name(self._dialect, schema, self._book.pipeline, called, there, self._session.is_left)
        for other in called:
            is_live = other.table_id and other.lsn is not None and other.table_id != schema.table_id
            if not is_live or other.pipeline != self._book.pipeline:
                continue
            if other.lsn is not None and other.lsn > lsn:
                return self._aside(schema.table_id, target) if own is None else own.name
            self._move(other, self._aside(other.table_id, target), there)
        if own is None or not self._is_there(own.name, own_there):
            return target
        if not self._is_same(own.name, target):
            self._clear(target)
            self._session.create_namespace(target.namespace)
        self._move(own, target, own_there)
        return target

    def _aside(self, table_id: TableId, name: TableName) -> TableName:
        return aside_name(self._book.pipeline, table_id, name.namespace)

    def _clear(self, name: TableName) -> None:
        """Drops a table of ours that nobody brings up to date any more."""
        self._histories.leave(name)
        for namespace, relation in self._session.relations(views=False):
            if self._is_same(TableName(namespace, relation), name):
                self._session.drop_table(TableName(namespace, relation))
        self._book.free_name(name)

    def _move(self, stored: StoredTable, name: TableName, there: Sequence[tuple[str, str]]) -> None:
        self._histories.leave(stored.name)
        if self._is_there(stored.name, there) and self._session.rename(stored.name, name):
            self.written_anew.add(stored.table_id)
        self._book.move_table(stored.table_id, name)
        self.moved[stored.table_id] = name

    def _is_there(self, name: TableName, there: Sequence[tuple[str, str]]) -> bool:
        return any(self._is_same(TableName(*other), name) for other in there)

    def _is_same(self, one: TableName, other: TableName) -> bool:
        fold = self._dialect.fold
        return (fold(one.namespace), fold(one.name)) == (fold(other.namespace), fold(other.name))
