"""bool, integers, float4, and everything that stays text or raw bytes."""

from __future__ import annotations

import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.refusal import unreadable
from etl_core.values.text import Array, as_binary, as_string, bitmap, text_bytes


def load_bool(text: Array, _arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """`t` and `f`, one byte each."""
    part = text_bytes(text)
    true = part.data == ord("t")
    if len(part.data) != len(part.starts) or not (true | (part.data == ord("f"))).all():
        raise unreadable(column, table)
    return pa.Array.from_buffers(pa.bool_(), len(part), [bitmap(part.valid), bitmap(part.spread(true))])


def load_number(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Integers and float4. Arrow reads the shortest-exact output of float4 back to the same bits."""
    try:
        return as_string(text).cast(arrow)
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None


def load_string(text: Array, _arrow: pa.DataType, _column: Column, _table: TableName) -> Array:
    """Text exactly as printed: bpchar keeps its padding, json its spelling."""
    return as_string(text)


def load_raw(text: Array, _arrow: pa.DataType, _column: Column, _table: TableName) -> Array:
    """The text of a type we do not know, as bytes."""
    return as_binary(text)
