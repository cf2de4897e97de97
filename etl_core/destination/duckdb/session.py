"""Statements in an open DuckDB file, and the file as the `Database` that they are run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from etl_core.destination.duckdb.compression import TextSizes, sizes_of, sizes_of_columns
from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.failures import explain_table
from etl_core.destination.duckdb.statements import text_sizes
from etl_core.destination.duckdb_sql.dialect import DIALECT
from etl_core.destination.duckdb_sql.session import EngineSession
from etl_core.destination.sql.additions import Additions
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, TableSchema


class DuckDBSession(EngineSession):
    """See Session."""

    def __init__(self, file: DatabaseFile, connection: duckdb.DuckDBPyConnection) -> None:
        super().__init__(connection, DIALECT)
        self._file = file

    def explain(self, error: duckdb.Error, name: TableName) -> EtlError:
        return explain_table(error, name, self._file.path)

    def will_store(self, rows: pa.Table) -> None:
        self.will_compress(sizes_of(rows))

    def will_rewrite(self, table: Query, columns: Sequence[Column]) -> None:
        query = text_sizes(table, columns)
        if query is not None:
            ((rows, *sizes),) = self.fetch(query)
            self.will_compress(sizes_of_columns(rows, sizes))

    def will_compress(self, sizes: TextSizes) -> None:
        """Told before values of so many bytes are stored."""
        self._file.compression.note(self._connection, sizes)


class KeepingSession(DuckDBSession):
    """Of a transaction that makes many tables: it asks DuckDB once what there is, and keeps account of what it makes.

    DuckDB looks at all tables to answer that: 5 ms where there are 2,000, for each table that is made.
    """

    def __init__(self, file: DatabaseFile, connection: duckdb.DuckDBPyConnection) -> None:
        super().__init__(file, connection)
        self._kept: dict[tuple[str, str], list[tuple[str, str]]] | None = None
        self._namespaces: set[str] = set()

    def relations_called(self, dialect: Dialect, name: TableName) -> Sequence[tuple[str, str]]:
        if self._kept is None:
            self._kept = {}
            for other in self.relations(views=True):
                self._kept.setdefault((dialect.fold(other[0]), dialect.fold(other[1])), []).append(other)
        return self._kept.get((dialect.fold(name.namespace), dialect.fold(name.name)), [])

    @contextmanager
    def made_anew(self, schema: TableSchema, additions: Additions) -> Iterator[Query]:
        kept = self._kept
        with super().made_anew(schema, additions) as table:
            yield table
        self._kept = kept
        name = schema.name
        if kept is not None and not self.relations_called(DIALECT, name):
            kept[DIALECT.fold(name.namespace), DIALECT.fold(name.name)] = [(name.namespace, name.name)]

    def define(self, query: Query) -> None:
        self._kept = None
        super().define(query)

    def rename(self, before: TableName, name: TableName) -> int:
        self._kept = None
        return super().rename(before, name)

    def create_namespace(self, namespace: str) -> None:
        if namespace not in self._namespaces:
            kept = self._kept
            super().create_namespace(namespace)
            self._kept = kept
            self._namespaces.add(namespace)


class DuckDBDatabase:
    """See Database."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    def exists(self) -> bool:
        return self._file.exists()

    @contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[DuckDBSession]:
        with self._file.open(wait_seconds=wait_seconds) as connection:
            connection.execute("BEGIN TRANSACTION")
            yield DuckDBSession(self._file, connection)

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[DuckDBSession]:
        with self._file.transaction(tables=tables) as connection:
            yield DuckDBSession(self._file, connection)
