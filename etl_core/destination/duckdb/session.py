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
from etl_core.destination.sql.dialect import Query
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.schema.table import Column


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
