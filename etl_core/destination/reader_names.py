"""What queries call the tables and columns of a destination: its database, schemas, tables, columns and types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class ReaderColumn:
    """A column as a query names it; `source` is its name in PostgreSQL, `type` is spelled as the destination does."""

    name: str
    source: str
    type: str


class ReaderNames(Protocol):
    """See `etl_core.destination.registry.reader_names`. Nothing here is quoted."""

    @property
    def database(self) -> str:
        """The database or project."""

    def path(self, table: TableName) -> tuple[str, str]:
        """The schema or dataset, and the table in it."""

    def columns(self, schema: TableSchema) -> Sequence[ReaderColumn]:
        """The columns, in the order of `schema`."""
