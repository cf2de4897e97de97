"""How a PostgreSQL column is stored in DuckDB, and how its Arrow values get in and out unchanged.

The DuckDB type follows from the Arrow type, but for text: uuid is UUID, json and jsonb are JSON, an enum and a numeric
without precision stay VARCHAR. JSON is handed over under Arrow's extension name, so that DuckDB stores the text as it
is: its cast from VARCHAR parses every value and refuses some that PostgreSQL accepts (a lone surrogate).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from etl_core.schema.pg_types import base_type
from etl_core.schema.table import Column, PgType
from etl_core.values.arrow import arrow_field, arrow_type
from etl_core.values.registry import family_of

# In DuckDB's own spelling, which DESCRIBE answers with.
_TYPES: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.month_day_nano_interval(): "INTERVAL",
}
_OF_FAMILIES = {"uuid": "UUID", "json": "JSON"}
"""Where the family says more than the Arrow type."""

_JSON_FIELD: dict[bytes | str, bytes | str] = {"ARROW:extension:name": "arrow.json", "ARROW:extension:metadata": ""}


def duckdb_type(column: Column) -> str:
    """The DuckDB type of a column, as DESCRIBE spells it."""
    return _duckdb_type(arrow_type(column), column.type)


def _duckdb_type(arrow: pa.DataType, pg_type: PgType) -> str:
    base = base_type(pg_type)
    if isinstance(arrow, pa.ListType) and base.element is not None:
        return _duckdb_type(arrow.value_type, base.element) + "[]"
    if isinstance(arrow, pa.Decimal128Type):
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    return _OF_FAMILIES.get(family_of(base).name) or _TYPES[arrow]


def text_form(column: Column) -> str | None:
    """The type to cast to so that a UUID or JSON column comes out as text, None for a column that needs no cast."""
    stored = duckdb_type(column)
    element = stored.removesuffix("[]")
    return "VARCHAR" + stored[len(element) :] if element in ("UUID", "JSON") else None


def tag_json(rows: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """`rows` with its JSON columns under Arrow's name for them. `columns` describe the columns of `rows`, in order."""
    return pa.Table.from_arrays(rows.columns, schema=tagged_schema(columns))


def tagged_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of `columns` with JSON fields under Arrow's name for them."""
    return pa.schema([tagged_field(column) for column in columns])


def tagged_field(column: Column) -> pa.Field[Any]:
    """The Arrow field of `column`, under Arrow's name for JSON if it is that."""
    field, stored = arrow_field(column), duckdb_type(column)
    if stored == "JSON":
        return field.with_metadata(_JSON_FIELD)
    if stored == "JSON[]" and isinstance(field.type, pa.ListType):
        return pa.field(field.name, pa.list_(field.type.value_field.with_metadata(_JSON_FIELD)))
    return field
