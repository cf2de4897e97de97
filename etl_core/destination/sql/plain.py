"""Arrow columns as the values that a database driver takes (PEP 249), and back: integers, floats, texts and bytes.

A boolean is 0 or 1. What is none of these, and an unsigned integer of 64 bits, is the text that PostgreSQL prints for
it (`texts`), which is exact for every type, and which people read. Whole columns: no Python runs for a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from etl_core.destination.sql.texts import as_texts, from_texts
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.arrow import arrow_type
from etl_core.values.text import Array


def plain_type(kind: pa.DataType) -> type:
    """What a driver is given for a value of that Arrow type: int, float, bytes or str."""
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)):
        return int
    if pa.types.is_floating(kind):
        return float
    return bytes if pa.types.is_binary(kind) else str


def plain_field(column: Column) -> pa.Field[Any]:
    """The Arrow field of what `to_plain` gives for a column."""
    return pa.field(column.name, _plain_arrow(arrow_type(column)))


def to_plain(values: Array, column: Column, table: TableName) -> Array:
    """The values of a column, of which `to_pylist` gives a driver's. Raises ValueOutOfRange for a text not in UTF-8."""
    plain: Any = _plain_arrow(values.type)
    if values.type == plain:
        return values
    return values.cast(plain) if _is_number(values.type) else as_texts(values, column, table)


def from_plain(values: Sequence[Any], column: Column, table: TableName) -> Array:
    """The column, in its Arrow type, of the values that a driver gave.

    Raises ValueError, TypeError or pyarrow's errors for values of another kind than `to_plain` gives, ValueOutOfRange
    for a text that is no value of the column's type.
    """
    target: Any = arrow_type(column)
    plain, kind = _plain_arrow(target), plain_type(target)
    found: Array = pa.array([None if value is None else kind(value) for value in values], plain)
    if plain == target:
        return found
    return found.cast(target) if _is_number(target) else from_texts(found, column, table)


def _plain_arrow(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_boolean(kind):
        return pa.int8()
    return pa.string() if plain_type(kind) is str else kind


def _is_number(kind: pa.DataType) -> bool:
    """Of those that are cast."""
    return pa.types.is_boolean(kind) or pa.types.is_uint64(kind)
