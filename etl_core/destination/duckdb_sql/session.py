"""Statements in a database that is open in DuckDB: a file of its own, or a catalog that it has attached."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import duckdb
import pyarrow as pa
from psycopg import sql

from etl_core.destination.duckdb_sql import statements
from etl_core.destination.duckdb_sql.additions import DuckDBAdditions, made_anew, read_additions, rename
from etl_core.destination.duckdb_sql.types import without_offsets
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.session import Session
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema

_TABLES = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()"
_VIEWS = "SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal"


class EngineSession(Session):
    """See Session. The product says what a table's failure means to it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, dialect: Dialect) -> None:
        """`connection` uses the database, by its name in DuckDB."""
        self._connection = connection
        self._dialect = dialect
        self._database = database_of(connection)

    @abstractmethod
    def explain(self, error: duckdb.Error, name: TableName) -> EtlError:
        """The error for a failure while that table was worked on."""

    def identifier(self, *names: str) -> Query:
        # With the file's name in front: `_etl.x` alone could also be `x` in a file called `_etl`.
        return sql.Identifier(self._database, *names)

    def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statements.text(query), list(values)).fetchall()

    def execute(self, query: Query, values: Sequence[object] = ()) -> int:
        return _count(self.fetch(query, values))

    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        # DuckDB finds the Python variable by its name (a replacement scan). Registering the rows would create a view,
        # which a transaction keeps, with the rows, until it ends. A table of that name would be found first, hence the
        # odd name.
        refused: list[EtlError] = []
        etl_rows_7d41c9 = (  # noqa: F841
            without_offsets(rows) if isinstance(rows, pa.Table) else _noting_refusals(rows, refused)
        )
        try:
            return _count(self._connection.execute(statements.text(query)).fetchall())
        except duckdb.Error:
            if refused:
                raise refused[0] from None
            raise

    def rollback(self) -> None:
        self._connection.execute("ROLLBACK")

    def columns(self, name: TableName) -> Sequence[StoredColumn]:
        described = self.fetch(sql.SQL("DESCRIBE {}").format(statements.table_identifier(self._database, name)))
        return [StoredColumn(column, kind, default) for column, kind, _, _, default, *_ in described]

    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:
        query = f"{_TABLES} UNION ALL {_VIEWS}" if views else _TABLES
        return [(namespace, name) for namespace, name in self._connection.execute(query).fetchall()]

    def additions(self, name: TableName, ours: Collection[str]) -> DuckDBAdditions:
        return read_additions(self._connection, self._database, name, ours)

    def made_anew(self, schema: TableSchema, additions: Additions) -> AbstractContextManager[Query]:
        known = additions if isinstance(additions, DuckDBAdditions) else DuckDBAdditions(additions.columns)
        return made_anew(self._connection, self._dialect, self._database, schema, known)

    def rename(self, before: TableName, name: TableName) -> int:
        return rename(self._connection, self._dialect, self._database, before, name)

    def create_view(self, view: TableName, query: Query) -> None:
        if not self._is_ambiguous(view):
            super().create_view(view, query)
            return
        path = self.identifier(view.namespace).as_string(None)
        self.execute(sql.SQL("SET search_path = {}").format(sql.Literal(path)))
        super().create_view(view, query)
        self.execute(sql.SQL("RESET search_path"))

    def within_view(self, name: TableName) -> Query:
        # A bare name is looked for in the view's own namespace, unless a temporary table of the reader is called so.
        return sql.Identifier(name.name) if self._is_ambiguous(name) else super().within_view(name)

    def _is_ambiguous(self, name: TableName) -> bool:
        """Whether two parts of a name are not enough: DuckDB keeps no more in a view, as a file has many names."""
        fold = self._dialect.fold
        return fold(name.namespace) in {fold(self._database), "temp", "system"}

    @contextmanager
    def table_errors(self, name: TableName) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise self.explain(error, name) from None

    def is_absent(self, error: Exception) -> bool:
        # BinderException: a column of it, in a file of before that was put back.
        return isinstance(error, duckdb.CatalogException | duckdb.BinderException)


def database_of(connection: duckdb.DuckDBPyConnection) -> str:
    """What DuckDB calls the database that a connection uses; of a file the part of its name before the first dot."""
    return str(connection.execute("SELECT current_database()").fetchall()[0][0])


def _noting_refusals(rows: pa.RecordBatchReader, refused: list[EtlError]) -> pa.RecordBatchReader:
    """The same rows. An error of ours that ends them, of which DuckDB keeps the text alone, is added to `refused`."""

    def noted() -> Iterator[pa.RecordBatch]:
        try:
            yield from rows
        except EtlError as error:
            refused.append(error)
            raise

    return pa.RecordBatchReader.from_batches(rows.schema, noted())


def _count(answer: list[tuple[Any, ...]]) -> int:
    """DuckDB answers a statement that changes rows by their number, and others by nothing."""
    return int(answer[0][0]) if answer else 0
