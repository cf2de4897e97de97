"""What queries call the tables of a lake: as in PostgreSQL, in the database that the lake is attached as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.ducklake.catalog import DATABASE
from etl_core.destination.options import Options
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class DuckLakeReaderNames:
    """See ReaderNames."""

    database: str

    def path(self, table: TableName) -> tuple[str, str]:
        return table.namespace, table.name

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.ducklake.dialect import DIALECT

        return [ReaderColumn(column.name, column.name, DIALECT.type_name(column)) for column in schema.columns]


def reader_names(options: Options) -> DuckLakeReaderNames:  # noqa: ARG001
    return DuckLakeReaderNames(DATABASE)
