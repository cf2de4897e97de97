"""The columns of a replicated table as BigQuery has them."""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.destination.bigquery.names import column_names
from etl_core.destination.bigquery.types import bigquery_field
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column as it was last written: `attnum` tells it from one that was dropped and added again under its name."""

    name: str
    attnum: int
    column: str
    type: str


def stored_columns(schema: TableSchema) -> tuple[StoredColumn, ...]:
    """How the columns of a table that is written anew are called and stored."""
    names = column_names(schema.columns)
    return tuple(
        StoredColumn(column.name, column.attnum, names[column.name], bigquery_field(column).sql)
        for column in schema.columns
    )
