"""The SQL of tables that keep their deleted rows: marking all rows, counting, and what a new copy keeps."""

# ruff: noqa: S608 names are quoted by `names`, and the only value is a timestamp of ours

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.names import Place, quoted
from etl_core.destination.bigquery.statements import comparable
from etl_core.destination.bigquery.types import bigquery_field
from etl_core.destination.protocol import KeptRows
from etl_core.schema.alterations import origins
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import TableSchema

_DELETED_AT = quoted(DELETED_AT.name)
_WAS_DELETED = quoted("_etl_was_deleted")
"""No column of a source is called so here: see `names`."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT = re.compile(r"(INT64|STRING|(BIG)?NUMERIC|FLOAT64)(\(.*\))?")
"""Types between which a cast gives the same value, if it can be cast back to what it was."""


def mark_deleted(place: Place, moment: datetime) -> str:
    """Marks the rows that live."""
    return f"UPDATE {place.sql} SET {_DELETED_AT} = {timestamp(moment)} WHERE {_DELETED_AT} IS NULL"


def count_living(place: Place) -> str:
    return f"SELECT COUNT(*) FROM {place.sql} WHERE {_DELETED_AT} IS NULL"


@dataclass(frozen=True, slots=True)
class RowsToKeep:
    """The table that a copy replaces, with its columns, and what is kept of it. See KeepingCopy."""

    place: Place
    columns: tuple[StoredColumn, ...]
    kept: KeptRows

    def add_to(self, staging: Place, schema: TableSchema) -> str:
        """Adds the kept rows to `staging`, which has the copied ones, in the columns of `schema`."""
        listed = ", ".join(quoted(column.column) for column in stored_columns(schema))
        return f"INSERT INTO {staging.sql} ({listed}) {self._select(staging, schema)}"

    def _select(self, staging: Place, schema: TableSchema) -> str:
        carried = carried_columns(self.columns, schema, self.kept.changed)
        values = ", ".join(self._value(column, carried) for column in stored_columns(schema))
        was = carried.get(DELETED_AT.name)
        is_deleted = "FALSE" if was is None else f"t.{quoted(was.column)} IS NOT NULL"
        rows = f"SELECT {values}, {is_deleted} AS {_WAS_DELETED} FROM {self.place.sql} AS t"
        names = {column.name: column.column for column in stored_columns(schema)}
        keys = [(names[name], bigquery_field(schema.column(name))) for name in schema.key]
        same = " AND ".join(f"{comparable('s', name, kind)} = {comparable('o', name, kind)}" for name, kind in keys)
        is_unknown = " OR ".join(f"o.{quoted(name)} IS NULL" for name, _ in keys)
        by_key = ", ".join(comparable("o", name, kind) for name, kind in keys)
        return (
            f"SELECT {', '.join(f'o.{quoted(name)}' for name in names.values())} FROM ({rows}) AS o"
            # With NULL in the key those that were deleted before: which of the others live cannot be told.
            f" WHERE (o.{_WAS_DELETED} OR NOT ({is_unknown}))"
            f" AND NOT EXISTS (SELECT 1 FROM {staging.sql} AS s WHERE {same})"
            f" QUALIFY {is_unknown} OR ROW_NUMBER() OVER (PARTITION BY {by_key} ORDER BY o.{_DELETED_AT} DESC) = 1"
        )

    def _value(self, column: StoredColumn, carried: Mapping[str, StoredColumn]) -> str:
        value = carried_value(column, carried.get(column.name))
        if column.attnum == DELETED_AT.attnum:
            value = f"COALESCE({value}, {timestamp(self.kept.deleted_at)})"
        return f"{value} AS {quoted(column.column)}"


def carried_columns(
    before: Sequence[StoredColumn], schema: TableSchema, changed: Collection[str]
) -> dict[str, StoredColumn]:
    """By the names of `schema`, the columns that rows of before keep their values of."""
    held = {column.name: column for column in before}
    origin = origins({column.name: column.attnum for column in before}, schema.columns)
    return {name: held[there] for name, there in origin.items() if name not in changed}


def carried_value(column: StoredColumn, there: StoredColumn | None) -> str:
    """The value that a row of before, t, has in a column: NULL where it is not known, or not the same in its type."""
    if there is None:
        return f"CAST(NULL AS {column.type})"
    held = f"t.{quoted(there.column)}"
    if there.type == column.type:
        return held
    if _EXACT.fullmatch(there.type) and _EXACT.fullmatch(column.type):
        cast = f"SAFE_CAST({held} AS {column.type})"
        return f"IF(SAFE_CAST({cast} AS {there.type}) = {held}, {cast}, NULL)"
    return f"CAST(NULL AS {column.type})"


def present_columns(known: Sequence[StoredColumn], there: Mapping[str, str]) -> tuple[StoredColumn, ...]:
    """The columns that a table has: those `known` of it, and others, by name and type, whose numbers are not known.

    A process may have died between the replacement of the table and the note of its columns.
    """
    found = [column for column in known if column.column in there]
    named = {column.column for column in found}
    return (*found, *(StoredColumn(name, 0, name, kind) for name, kind in there.items() if name not in named))


def timestamp(moment: datetime) -> str:
    """As SQL has it."""
    return f"TIMESTAMP_MICROS({(moment - _EPOCH) // timedelta(microseconds=1)})"
