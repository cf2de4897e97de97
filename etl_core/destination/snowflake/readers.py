"""What queries call the tables in Snowflake: as at the source, in quotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.options import Options
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class SnowflakeReaderNames:
    """See ReaderNames."""

    database: str

    def path(self, table: TableName) -> tuple[str, str]:
        return table.namespace, table.name

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.snowflake.types import snowflake_type

        return [ReaderColumn(column.name, column.name, snowflake_type(column)) for column in schema.columns]


def reader_names(options: Options) -> SnowflakeReaderNames | None:
    name = options["database"]
    if name is None:  # a variable holds it, which Dagster reads later
        return None
    return SnowflakeReaderNames(name[1:-1] if name.startswith('"') else name.upper())
