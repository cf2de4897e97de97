"""hstore as a map of texts: `"key"=>"value", "other"=>NULL`.

Keys and values are always in quotes, in which a backslash stands before each quote and backslash; equal values have
equal text. https://www.postgresql.org/docs/current/hstore.html
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.refusal import not_utf8, unreadable
from etl_core.values.text import (
    Array,
    Bytes,
    Mask,
    Positions,
    bitmap,
    buffer_of,
    first_of_pairs,
    fixed_width,
    is_utf8,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

HSTORE = pa.map_(pa.string(), pa.string())

# What stands between two texts in quotes, or after the last one; all of different lengths but the first two.
_TO_VALUE, _TO_KEY, _NULL_TO_KEY, _NULL, _NOTHING = b"=>", b", ", b"=>NULL, ", b"=>NULL", b""


def load_hstore(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """A map in the order PostgreSQL prints its pairs; a value may be NULL, a key may not."""
    part = text_bytes(text)
    quotes = _quotes(part.data)
    if len(quotes) % 2:
        raise unreadable(column, table)
    opening, closing = quotes[::2], quotes[1::2]
    row = np.searchsorted(part.offsets, opening, "right") - 1
    starts_row = np.diff(row, prepend=-1) != 0
    ends_row = np.diff(row, append=-1) != 0
    # What follows each text, up to the next one of its row or the row's end.
    following = np.append(opening[1:], 0)
    gap_ends = np.where(ends_row, part.offsets[row + 1], following)
    gaps = gap_ends - closing - 1
    kinds = {gap: _is_gap(part.data, closing + 1, gaps, gap) for gap in (_TO_VALUE, _TO_KEY, _NULL_TO_KEY, _NULL)}
    kinds[_NOTHING] = gaps == 0
    is_last = kinds[_NULL] | kinds[_NOTHING]
    is_null = kinds[_NULL] | kinds[_NULL_TO_KEY]  # the key before it has no value
    is_value = np.zeros(len(opening), np.bool_)
    is_value[1:] = (kinds[_TO_VALUE] & ~ends_row)[:-1]
    known = kinds[_TO_VALUE] | kinds[_TO_KEY] | is_null | kinds[_NOTHING]
    # Every text is a key with a value or NULL after it, or a value with neither.
    is_paired = np.where(is_value, ~(kinds[_TO_VALUE] | is_null), kinds[_TO_VALUE] | is_null)
    lengths = np.diff(part.offsets)
    has_texts = np.zeros(len(part), np.bool_)
    has_texts[row] = True
    if not (
        known.all()
        and is_paired.all()
        and np.array_equal(is_last, ends_row)
        and (opening[starts_row] == part.offsets[row[starts_row]]).all()
        and (lengths[~has_texts] == 0).all()
    ):
        raise unreadable(column, table)
    texts = _unquoted(part.data, opening, closing)
    keys_at = np.flatnonzero(~is_value)
    keys = texts.take(fixed_width(pa.int64(), keys_at, None))
    values = texts.take(fixed_width(pa.int64(), np.minimum(keys_at + 1, len(texts) - 1), ~is_null[keys_at]))
    if not is_utf8(texts):
        raise not_utf8(column, table)
    pairs = pa.Array.from_buffers(pa.struct(list(_fields(arrow))), len(keys), [None], children=[keys, values])
    counts = np.bincount(row[keys_at], minlength=len(part))
    buffers = [bitmap(part.valid), buffer_of(offsets_from_lengths(counts).astype(np.int32))]
    return pa.Array.from_buffers(arrow, len(part), buffers, children=[pairs])


def _fields(arrow: pa.DataType) -> tuple[pa.Field[pa.DataType], pa.Field[pa.DataType]]:
    pairs = arrow.field(0).type
    return pairs.field(0), pairs.field(1)


def _quotes(data: Bytes) -> Positions:
    """Where quotes are that no backslash escapes."""
    found = np.flatnonzero(data == ord('"'))
    escaped = _escaped(data)
    return found[~np.isin(found, escaped)] if len(escaped) else found


def _escaped(data: Bytes) -> Positions:
    """Where characters are that a backslash escapes."""
    backslashes = np.flatnonzero(data == ord("\\"))
    return backslashes[first_of_pairs(backslashes)] + 1


def _is_gap(data: Bytes, begins: Positions, lengths: Positions, gap: bytes) -> Mask:
    is_gap: Mask = lengths == len(gap)
    candidates = np.flatnonzero(is_gap)
    for place, character in enumerate(gap):
        is_gap[candidates] &= data[begins[candidates] + place] == character
    return is_gap


def _unquoted(data: Bytes, opening: Positions, closing: Positions) -> Array:
    """The texts between the quotes, without the backslashes that escape."""
    inside = np.zeros(len(data) + 1, np.int8)
    inside[opening + 1] += 1
    inside[closing] -= 1
    kept = np.cumsum(inside[:-1], dtype=np.int8).view(np.bool_)
    lengths = closing - opening - 1
    escaped = _escaped(data)
    if len(escaped):
        kept[escaped - 1] = False
        lengths = lengths - (np.searchsorted(escaped, closing) - np.searchsorted(escaped, opening))
    return variable_width(pa.string(), data[kept], offsets_from_lengths(lengths), None)
