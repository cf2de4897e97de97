"""bool, integers, floats, numeric, and everything that stays text or raw bytes."""

from __future__ import annotations

import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.pg_types import numeric_precision
from etl_core.schema.table import Column
from etl_core.values.refusal import out_of_range, unreadable
from etl_core.values.text import Array, as_binary, as_string, bitmap, text_bytes

_MAX_DECIMAL128 = 38


def load_bool(text: Array, _arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """`t` and `f`, one byte each."""
    part = text_bytes(text)
    true = part.data == ord("t")
    if len(part.data) != len(part.starts) or not (true | (part.data == ord("f"))).all():
        raise unreadable(column, table)
    return pa.Array.from_buffers(pa.bool_(), len(part), [bitmap(part.valid), bitmap(part.spread(true))])


def load_number(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Integers and floats. Arrow reads the shortest-exact output of float4 and float8 back to the same bits."""
    try:
        return as_string(text).cast(arrow)
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None


def numeric_type(type_modifier: int) -> pa.DataType:
    """decimal128 of the precision and scale that a column declares, string where that cannot hold its values."""
    declared = numeric_precision(type_modifier)
    if declared is None:
        return pa.string()
    precision, scale = declared
    # A negative scale rounds before the point; one above the precision leaves digits after the point empty.
    precision, scale = max(precision, scale) - min(scale, 0), max(scale, 0)
    return pa.decimal128(precision, scale) if precision <= _MAX_DECIMAL128 else pa.string()


def load_numeric(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """decimal128, or the text itself where decimal128 could not hold every value of the type."""
    strings = as_string(text)
    if pa.types.is_string(arrow):
        return strings
    try:
        return strings.cast(arrow)
    except pa.ArrowInvalid:
        if strings.index("NaN").as_py() >= 0:
            raise out_of_range(
                f"NaN, which no {arrow} can hold",
                column,
                table,
                "replace NaN in the source by NULL, or declare the column numeric without a precision, "
                "which is carried as text",
            ) from None
        raise unreadable(column, table) from None


def load_string(text: Array, _arrow: pa.DataType, _column: Column, _table: TableName) -> Array:
    """Text exactly as printed: bpchar keeps its padding, json its spelling."""
    return as_string(text)


def load_raw(text: Array, _arrow: pa.DataType, _column: Column, _table: TableName) -> Array:
    """The text of a type we do not know, as bytes."""
    return as_binary(text)
