"""What queries call the tables in BigQuery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.destination.bigquery.names import place_of
from etl_core.destination.options import Options
from etl_core.destination.reader_names import ReaderColumn
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class BigQueryReaderNames:
    """See ReaderNames. The database is the project, a schema a dataset; `dataset` is the option of that name."""

    database: str
    dataset: str

    def path(self, table: TableName) -> tuple[str, str]:
        place = place_of(self.database, self.dataset, table)
        return place.dataset, place.table

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        from etl_core.destination.bigquery.columns import stored_columns

        return [ReaderColumn(stored.column, stored.name, stored.type) for stored in stored_columns(schema)]


def reader_names(options: Options) -> BigQueryReaderNames:
    return BigQueryReaderNames(options["project"], options["dataset"])
