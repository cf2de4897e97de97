"""The one mapping from a PostgreSQL column to the Arrow type that carries its values.

A value has the same Arrow type whether it came by COPY or by the stream, and in every destination.

- `numeric(p,s)` is decimal128(p, s) if 1 ≤ p ≤ 38 and 0 ≤ s ≤ p; any other numeric is text, which loses nothing.
- uuid is text of 36 characters: pa.uuid() loads faster into a UUID column, but Arrow can neither compare, sort nor
  group an extension type, and keys are compared.
- Enums, ranges, and types such as inet, citext and timetz are their text.
- Infinity of date, timestamp and timestamptz is ± the largest integer of the Arrow type (see `values.datetimes`).
- A type we do not know is its text as bytes, whole; an array of such a type likewise.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from etl_core.errors import UnsupportedType
from etl_core.schema import pg_types
from etl_core.schema.pg_types import format_type, is_textual, numeric_precision
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind

_MAX_DECIMAL128 = 38

_SCALARS: dict[int, pa.DataType] = {
    pg_types.BOOL: pa.bool_(),
    pg_types.BYTEA: pa.binary(),
    pg_types.CHAR: pa.string(),
    pg_types.NAME: pa.string(),
    pg_types.INT8: pa.int64(),
    pg_types.INT2: pa.int16(),
    pg_types.INT4: pa.int32(),
    pg_types.TEXT: pa.string(),
    pg_types.OID: pa.int64(),
    pg_types.XID: pa.int64(),
    pg_types.JSON: pa.string(),
    pg_types.FLOAT4: pa.float32(),
    pg_types.FLOAT8: pa.float64(),
    pg_types.BPCHAR: pa.string(),
    pg_types.VARCHAR: pa.string(),
    pg_types.DATE: pa.date32(),
    pg_types.TIME: pa.time64("us"),
    pg_types.TIMESTAMP: pa.timestamp("us"),
    pg_types.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
    pg_types.INTERVAL: pa.month_day_nano_interval(),
    pg_types.UUID: pa.string(),
    pg_types.JSONB: pa.string(),
}


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a column's values; binary (the raw text) for a type we do not know."""
    known = _known_type(column.type, column.type_modifier)
    return pa.binary() if known is None else known


def is_supported(column: Column) -> bool:
    """Whether the column's type has a representation of its own, rather than raw text as bytes."""
    return _known_type(column.type, column.type_modifier) is not None


def refuse_unsupported(schema: TableSchema) -> None:
    """Raises UnsupportedType naming the first column we have no representation for."""
    for column in schema.columns:
        if not is_supported(column):
            raise UnsupportedType(
                f"column {column.name} of table {schema.name} has type {format_type(column)}, which is not supported",
                table=str(schema.name),
                hint="set unknown_types_to_bytes to carry it as bytes, or leave the column out of the publication",
            )


def arrow_field(column: Column) -> pa.Field[Any]:
    """A nullable field, also for a NOT NULL column: a delete carries only the key."""
    return pa.field(column.name, arrow_type(column))


def arrow_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of a table's rows, columns in the order of `schema.columns`."""
    return pa.schema([arrow_field(column) for column in schema.columns])


def key_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of a table's key, in column order; empty for a table without one."""
    return pa.schema([arrow_field(column) for column in schema.columns if column.name in schema.key])


def base_type(pg_type: PgType) -> PgType:
    """The type under a domain (of a domain …), or the type itself."""
    return under_domains(pg_type, -1)[0]


def under_domains(pg_type: PgType, type_modifier: int) -> tuple[PgType, int]:
    """The type under a domain (of a domain …) and the modifier it has there; `pg_type` and `type_modifier` if none.

    A column of a domain has no modifier of its own, and a domain over a domain does not change it.
    """
    while pg_type.kind is TypeKind.DOMAIN and pg_type.element is not None:
        if pg_type.type_modifier >= 0:
            type_modifier = pg_type.type_modifier
        pg_type = pg_type.element
    return pg_type, type_modifier


def _known_type(pg_type: PgType, type_modifier: int) -> pa.DataType | None:
    base, type_modifier = under_domains(pg_type, type_modifier)
    if base.kind is TypeKind.ARRAY and base.element is not None:
        element = _known_type(base.element, type_modifier)
        return None if element is None else pa.list_(element)
    if is_textual(base):
        return pa.string()
    if base.oid == pg_types.NUMERIC:
        return _numeric_type(type_modifier)
    return _SCALARS.get(base.oid)


def _numeric_type(type_modifier: int) -> pa.DataType:
    precision = numeric_precision(type_modifier)
    if precision is None or not (1 <= precision[0] <= _MAX_DECIMAL128 and 0 <= precision[1] <= precision[0]):
        return pa.string()
    return pa.decimal128(*precision)
