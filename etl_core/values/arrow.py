"""The Arrow types of PostgreSQL columns and rows, the same by COPY, by the stream and in every destination.

They are the type families' (see `families`, `registry`). A value of a type that no family knows is its text as bytes;
an array of such a type is a list of them.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from etl_core.schema.pg_types import under_domains
from etl_core.schema.table import Column, TableSchema, TypeKind
from etl_core.type_options import EVERY_VALUE
from etl_core.values.families import UNKNOWN
from etl_core.values.registry import resolve


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a column's values; binary (the raw text) for a type we do not know.

    string for those that are carried as they are printed.
    """
    if column.value_range is EVERY_VALUE:
        return pa.string()
    return resolve(column.type, column.type_modifier)[1]


def is_supported(column: Column) -> bool:
    """Whether the type has a representation of its own, as each attribute of a composite must, rather than bytes."""
    base, type_modifier = under_domains(column.type, column.type_modifier)
    if base.kind is TypeKind.ARRAY and base.element is not None:
        return is_supported(Column(column.name, base.element, type_modifier))
    return resolve(base, type_modifier)[0] is not UNKNOWN and all(map(is_supported, base.attributes))


def arrow_field(column: Column) -> pa.Field[Any]:
    """A nullable field, also for a NOT NULL column: a delete carries only the key."""
    return pa.field(column.name, arrow_type(column))


def arrow_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of a table's rows, columns in the order of `schema.columns`."""
    return pa.schema([arrow_field(column) for column in schema.columns])


def key_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of a table's key, in column order; empty for a table without one."""
    return pa.schema([arrow_field(column) for column in schema.columns if column.name in schema.key])
