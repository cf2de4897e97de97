"""What queries call the tables in an Iceberg catalog: as in PostgreSQL, in the warehouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.options import Options
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class IcebergReaderNames:
    """See ReaderNames. The types are spelled as DuckDB does."""

    database: str

    def path(self, table: TableName) -> tuple[str, str]:
        return table.namespace, table.name

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.iceberg.types import iceberg_type

        return [ReaderColumn(column.name, column.name, iceberg_type(column)) for column in schema.columns]


def reader_names(options: Options) -> IcebergReaderNames | None:
    warehouse = options["warehouse"]
    return None if warehouse is None else IcebergReaderNames(warehouse)
