"""What queries call the tables in a DuckDB file: as in PostgreSQL, in the database that DuckDB names after the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.duckdb.location import database_name
from etl_core.destination.options import Options
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class DuckDBReaderNames:
    """See ReaderNames."""

    database: str

    def path(self, table: TableName) -> tuple[str, str]:
        return table.namespace, table.name

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.duckdb_sql.types import duckdb_type

        return [ReaderColumn(column.name, column.name, duckdb_type(column)) for column in schema.columns]


def reader_names(options: Options) -> DuckDBReaderNames:
    return DuckDBReaderNames(database_name(options["path"]))
