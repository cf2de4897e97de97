"""Vectors of numbers: pgvector's `[1,2.5,-3]` and the `1 2 3` of PostgreSQL's own catalogs.

https://github.com/pgvector/pgvector#reference. A type modifier is the number of dimensions. halfvec prints the shortest
text that float4 reads back to the same number.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.arrays import split_arrays
from etl_core.values.refusal import unreadable
from etl_core.values.text import (
    Array,
    bitmap,
    buffer_of,
    fixed_width,
    numbers_of,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

_AS_ARRAY = bytes.maketrans(b"[]", b"{}")


def vector_type(type_modifier: int) -> pa.DataType:
    """A list of float32, of fixed length where the column declares one."""
    return pa.list_(pa.float32(), type_modifier) if type_modifier > 0 else pa.list_(pa.float32())


def load_vector(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """pgvector's vector and halfvec, as what `vector_type` says."""
    part = text_bytes(text)
    braced = np.frombuffer(part.data.tobytes().translate(_AS_ARRAY), np.uint8)
    literals = variable_width(pa.string(), braced, part.offsets, part.valid)
    offsets, elements, valid = split_arrays(literals, column, table)
    try:
        numbers = elements.cast(pa.float32())
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    # A vector has one number at least, and none between two commas.
    if numbers.null_count or np.count_nonzero(part.data == ord(",")) != len(numbers) - len(part.starts):
        raise unreadable(column, table)
    if not isinstance(arrow, pa.FixedSizeListType):
        buffers = [bitmap(valid), buffer_of(offsets.astype(np.int32))]
        return pa.Array.from_buffers(arrow, len(part), buffers, children=[numbers])
    lengths = np.diff(offsets)
    if ((lengths if valid is None else lengths[valid]) != arrow.list_size).any():
        raise unreadable(column, table)
    rows = numbers_of(numbers, np.float32).reshape(-1, arrow.list_size)
    if valid is not None:  # a NULL has room for its numbers too
        rows, given = np.zeros((len(part), arrow.list_size), np.float32), rows
        rows[valid] = given
    children = [fixed_width(pa.float32(), rows.ravel(), None)]
    return pa.Array.from_buffers(arrow, len(part), [bitmap(valid)], children=children)


def load_int_vector(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """int2vector and oidvector: integers with a space between any two."""
    part = text_bytes(text)
    lengths = np.diff(part.offsets)
    spaces = np.flatnonzero(part.data == ord(" "))
    filled = lengths > 0
    begins = np.sort(np.concatenate([part.offsets[:-1][filled], spaces + 1]))
    ends = np.sort(np.concatenate([spaces, part.offsets[1:][filled]]))
    digits = part.data[part.data != ord(" ")]
    try:
        elements = variable_width(pa.string(), digits, offsets_from_lengths(ends - begins), None).cast(
            arrow.field(0).type
        )
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    counts = np.diff(np.searchsorted(spaces, part.offsets)) + filled
    buffers = [bitmap(part.valid), buffer_of(offsets_from_lengths(counts).astype(np.int32))]
    return pa.Array.from_buffers(arrow, len(part), buffers, children=[elements])
