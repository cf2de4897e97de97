"""What queries call the tables in PostgreSQL: as at the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.options import Options
from etl_core.destination.postgres.conninfo import parameters
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import parts_of
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class PostgresReaderNames:
    """See ReaderNames. Which types the database lacks only a connection could tell: it is taken to have all."""

    database: str

    def path(self, table: TableName) -> tuple[str, str]:
        return table.namespace, table.name

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.postgres.types import type_name

        return [
            ReaderColumn(
                column.name,
                column.name,
                type_name(column, {part.name: {part.namespace: None} for part in parts_of(column.type)}),
            )
            for column in schema.columns
        ]


def reader_names(options: Options) -> PostgresReaderNames | None:
    dsn = options["dsn"]
    if dsn is None:  # a variable holds it, which Dagster reads later
        return None
    return PostgresReaderNames(parameters(dsn).get("dbname", ""))
