"""Statements in the catalog's tables, in a transaction that makes, renames and drops none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import duckdb
import pyarrow as pa
from psycopg import sql

from etl_core.destination.duckdb_sql.additions import DuckDBAdditions
from etl_core.destination.duckdb_sql.session import EngineSession
from etl_core.destination.duckdb_sql.types import is_stored_as
from etl_core.destination.iceberg.dialect import IcebergDialect
from etl_core.destination.iceberg.failures import explain_table
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import Query
from etl_core.destination.sql.statements import delete_all, drop_column, insert_all, rename_column
from etl_core.errors import EtlError, TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

LAKE = "lake"
"""What DuckDB calls the attached catalog."""
PROPERTY = "etl."
"""What properties of ours begin with."""
LEFT = f"{PROPERTY}left"
"""The property of a table that is nobody's."""
_RELATIONS = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'lake'"
_GOES = "etl$goes$"


class NewTable(Exception):
    """A table is missing that the transaction fills: it is to be made, empty, before the transaction is tried again.

    `replaces_left` says that one of other columns is there which is nobody's.
    """

    def __init__(self, name: TableName, columns: Sequence[tuple[str, str]], *, replaces_left: bool) -> None:
        super().__init__(str(name))
        self.name = name
        self.columns = columns
        self.replaces_left = replaces_left


class IcebergSession(EngineSession):
    """See Session."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, dialect: IcebergDialect, uri: str) -> None:
        self._connection = connection
        self._dialect = dialect
        self._database = LAKE
        self._uri = uri
        self._marks: dict[TableName, bool] = {}
        self._pipeline: str | None = None
        self._lsns: dict[TableName, Lsn] = {}

    def will_move(self, pipeline: str, name: TableName, lsn: Lsn) -> None:
        self._pipeline = pipeline
        self._lsns[name] = lsn

    def sign(self, commit: dict[str, Any]) -> None:
        """Has the snapshots of a commit say which pipeline made them, and up to where the table is at its source."""
        if self._pipeline is None:
            return
        for change in commit["table-changes"]:
            identifier = change["identifier"]
            said = {f"{PROPERTY}pipeline": self._pipeline}
            lsn = self._lsns.get(TableName(".".join(identifier["namespace"]), identifier["name"]))
            if lsn is not None:
                said[f"{PROPERTY}lsn"] = str(lsn)
            for update in change["updates"]:
                if update["action"] == "add-snapshot":
                    update["snapshot"]["summary"] |= said

    @property
    def left(self) -> Sequence[TableName]:
        """Tables that are to be dropped once the transaction is committed."""
        return [name for name, is_left in self._marks.items() if is_left]

    def mark_tables(self) -> None:
        """Has the commit say which tables are nobody's now, and which are not any more."""
        for name, is_left in self._marks.items():
            if is_left:
                self.set_property(name, LEFT, "true")
            else:
                call = sql.SQL("CALL remove_iceberg_table_properties({}, [{}])")
                self.execute(call.format(self._place(name), sql.Literal(LEFT)))

    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        if isinstance(rows, pa.Table):
            return super().execute_with(query, rows)
        found: list[EtlError] = []

        def read() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except EtlError as error:  # of a value; DuckDB keeps only its text
                found.append(error)
                raise

        try:
            return super().execute_with(query, pa.RecordBatchReader.from_batches(rows.schema, read()))
        except duckdb.Error:
            if found:
                raise found[0] from None
            raise

    def explain(self, error: duckdb.Error, name: TableName) -> EtlError:
        return explain_table(error, name, self._uri)

    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:  # noqa: ARG002 - the extension shows no view
        return [(namespace, name) for namespace, name in self._connection.execute(_RELATIONS).fetchall()]

    def is_left(self, name: TableName) -> bool:
        if name in self._marks:
            return self._marks[name]
        return self.find_property(name, LEFT) is not None

    def find_property(self, name: TableName, key: str) -> str | None:
        """A property of a table that is there."""
        query = sql.SQL("SELECT value FROM iceberg_table_properties({}) WHERE key = {}")
        found = self.fetch(query.format(self._place(name), sql.Literal(key)))
        return str(found[0][0]) if found else None

    def set_property(self, name: TableName, key: str, value: str) -> None:
        call = sql.SQL("CALL set_iceberg_table_properties({}, {{{}: {}}})")
        self.execute(call.format(self._place(name), sql.Literal(key), sql.Literal(value)))

    def create_namespace(self, namespace: str) -> None:
        """Made with the table. DuckDB takes one for made whose transaction was undone."""

    def drop_table(self, name: TableName) -> None:
        self._marks[name] = True

    def read(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        """What a query finds, in batches of so many rows."""
        return iter(self._connection.sql(query).to_arrow_reader(rows))

    def additions(self, name: TableName, ours: Collection[str]) -> DuckDBAdditions:
        described = self._described(name)
        if described is None or self.is_left(name):
            return DuckDBAdditions()
        return DuckDBAdditions(tuple(column for column in described if column.name not in ours))

    def made_anew(self, schema: TableSchema, additions: Additions) -> AbstractContextManager[Query]:
        wanted = [(column.name, self._dialect.type_name(column)) for column in schema.columns]
        return self._emptied(schema.name, [*wanted, *((column.name, column.type) for column in additions.columns)])

    @contextmanager
    def _emptied(self, name: TableName, wanted: Sequence[tuple[str, str]]) -> Iterator[Query]:
        """The table without rows, with the columns `wanted`: (name, type).

        Raises NewTable if it is not there.
        """
        described = self._described(name)
        if described is None:
            raise NewTable(name, wanted, replaces_left=False)
        table, is_left = self._place(name), self.is_left(name)
        there = {column.name: column.type for column in described}
        fits = len(there) == len(wanted) and all(is_stored_as(kind, there.get(column, "")) for column, kind in wanted)
        if is_left and not fits and name not in self._marks:
            raise NewTable(name, wanted, replaces_left=True)
        self.execute(delete_all(table))
        fold = self._dialect.fold
        stay = {column for column, kind in wanted if column in there and is_stored_as(kind, there[column])}
        goes: list[str] = []
        coming = {fold(column) for column, _ in wanted if column not in stay}
        for at, column in enumerate(column for column in there if column not in stay):
            if fold(column) in coming:  # the name is needed, and a table must keep a column
                self.execute(rename_column(table, column, f"{_GOES}{at}"))
                column = f"{_GOES}{at}"
            goes.append(column)
        for column, kind in wanted:
            if column not in stay:
                add = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}")
                self.execute(add.format(table, sql.Identifier(column), sql.SQL(kind)))
        for column in goes:
            self.execute(drop_column(table, column))
        yield table
        if is_left:
            self._marks[name] = False

    def rename(self, before: TableName, name: TableName) -> int:
        """See Session. The rows are written anew, as a catalog renames by a request of its own.

        The table of before is nobody's from the commit on, and is dropped after it.
        """
        fold = self._dialect.fold
        if (fold(before.namespace), fold(before.name)) == (fold(name.namespace), fold(name.name)):
            raise TableError(
                f"{before} is called {name} now, and DuckDB does not tell the two apart in an Iceberg catalog",
                table=str(name),
                hint="rename it at the source by more than the case of its letters",
            )
        columns = [(column.name, column.type) for column in self.columns(before)]
        with self._emptied(name, columns) as table:
            written = self.execute(insert_all(table, [column for column, _ in columns], self._place(before)))
        self._marks[before] = True
        if before in self._lsns:
            self._lsns[name] = self._lsns.pop(before)
        return written or 1

    def _described(self, name: TableName) -> Sequence[StoredColumn] | None:
        # Of a table that is missing DuckDB would take a Python variable that is called so, such as `values`.
        self._connection.execute("SET python_enable_replacements = false")
        try:
            return self.columns(name)
        except duckdb.CatalogException:
            return None
        finally:
            with suppress(duckdb.Error):  # a failure may have ended the transaction, and nothing is scanned then
                self._connection.execute("SET python_enable_replacements = true")

    def _place(self, name: TableName) -> Query:
        return self.identifier(name.namespace, name.name)
