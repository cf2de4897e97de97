"""Array literals, split into their elements in one pass over the column's bytes for each dimension.

`{1,2,NULL}`, `{"a \\"quoted\\" word","NULL",""}`: an element is quoted if it is empty, reads NULL or holds a
character that means something here. https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.enclosed import split_enclosed
from etl_core.values.refusal import out_of_range, unreadable
from etl_core.values.text import (
    Array,
    Bytes,
    Mask,
    Positions,
    TextBytes,
    first_of_pairs,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

# What a byte may mean; the order matters: below CLOSE an element follows, from _QUOTE on quoting is in play.
_PLAIN, _COMMA, _OPEN, CLOSE, _QUOTE, _BACKSLASH = range(6)
_SPECIAL = b',{}"\\'

NULL = b"NULL"


@cache
def _meaning(delimiter: str) -> tuple[bytes, bytes]:
    """What each byte means, and those that mean something.

    `bytes.translate` takes a quarter of the time that indexing an array with an array takes.
    """
    special = delimiter.encode() + _SPECIAL[1:]
    return bytes(special.find(byte) + 1 for byte in range(256)), special


def split_arrays(
    text: Array, column: Column, table: TableName, delimiter: str = ","
) -> tuple[Positions, Array, Mask | None]:
    """The lists' offsets, the elements' text end to end (a string array), and which lists are not NULL.

    `delimiter` is what PostgreSQL writes between elements (`pg_type.typdelim`).
    Raises ValueOutOfRange for more than one dimension and for a lower bound other than 1.
    """
    part = text_bytes(text)
    starts = part.starts
    if len(starts) == 0:
        return np.zeros(len(part) + 1, np.int64), pa.nulls(0, pa.string()), part.valid
    _check_ends(part, column, table)
    raw = part.data.tobytes()
    table_of_meanings, special = _meaning(delimiter)
    meaning: Bytes = np.frombuffer(raw.translate(table_of_meanings), np.uint8)
    dropped = np.flatnonzero(meaning)
    meaning = meaning[dropped]
    is_plain = bool(meaning.max() <= CLOSE)
    if is_plain:
        structure = np.arange(len(dropped))
    else:
        meant = _means_something(dropped, meaning)
        dropped, meaning = dropped[meant], meaning[meant]
        structure = np.flatnonzero(meaning <= CLOSE)
    places, meaning = dropped[structure], meaning[structure]
    is_open, is_close = meaning == _OPEN, meaning == CLOSE
    if not np.array_equal(places[is_open], starts):
        raise _too_many_dimensions(column, table)
    if not np.array_equal(places[is_close], part.ends - 1):
        raise unreadable(column, table)

    # An element reaches from an opening brace or a comma to the next comma or closing brace.
    before = np.flatnonzero(~is_close)
    begins = places[before] + 1
    lengths = places[before + 1] - begins
    removed = structure[before + 1] - structure[before] - 1
    first = np.flatnonzero(is_open[before])  # of each list
    exists = lengths > 0
    if exists.all():
        counts = np.diff(first, append=len(before))
    else:
        counts = np.add.reduceat(exists, first, dtype=np.int64)
        begins, lengths, removed = begins[exists], lengths[exists], removed[exists]
    is_null = reads(part.data, begins, lengths, NULL) & (removed == 0)
    offsets = offsets_from_lengths(part.spread(counts))
    if is_plain and not is_null.any():
        left: Bytes = np.frombuffer(raw.translate(None, special), np.uint8)
        return offsets, variable_width(pa.string(), left, offsets_from_lengths(lengths), None), part.valid

    kept = np.ones(len(part.data), np.bool_)
    kept[dropped] = False
    for place in range(4):
        kept[begins[is_null] + place] = False
    lengths = np.where(is_null, 0, lengths - removed)
    valid = ~is_null if is_null.any() else None
    elements = variable_width(pa.string(), part.data[kept], offsets_from_lengths(lengths), valid)
    return offsets, elements, part.valid


def split_outermost(
    text: Array, count: int, column: Column, table: TableName, delimiter: str
) -> tuple[Positions, Array, Mask | None]:
    """As `split_arrays`, of arrays of `count` dimensions, two or more; their elements are arrays of one fewer.

    Raises ValueOutOfRange for an array of another number of dimensions, but for one without elements.
    """
    part = text_bytes(text)
    if len(part.starts) == 0:
        return np.zeros(len(part) + 1, np.int64), pa.nulls(0, pa.string()), part.valid
    _check_ends(part, column, table)
    _check_dimensions(part, count, column, table)
    places, meaning = meant_bytes(part.data, delimiter)
    opened, closed = meaning == _OPEN, meaning == CLOSE
    depth = np.cumsum(opened.astype(np.int64) - closed)
    opens, closes = places[opened & (depth == 2)], places[closed & (depth == 1)]
    offsets, arrays = split_enclosed(part, opens, closes, delimiter, column, table)
    return offsets, arrays, part.valid


def _check_dimensions(part: TextBytes, count: int, column: Column, table: TableName) -> None:
    """An array's text begins with as many braces as it has dimensions: a brace in an element is in quotes."""
    has_elements = part.ends - part.starts > len("{}")
    starts, ends = part.starts[has_elements], part.ends[has_elements]
    first = part.data[np.minimum(starts[:, np.newaxis] + np.arange(count + 1), ends[:, np.newaxis] - 1)]
    if not ((first == ord("{")) == (np.arange(count + 1) < count)).all():
        raise out_of_range(
            f"an array of another number of dimensions than {count}, as types.arrays: list({count}) says",
            column,
            table,
            f"set types.arrays: json for column {column.name}, which takes arrays of any dimensions",
        )


def _check_ends(part: TextBytes, column: Column, table: TableName) -> None:
    if (part.ends - part.starts < len("{}")).any():
        raise unreadable(column, table)
    opening, closing = part.data[part.starts], part.data[part.ends - 1]
    if (opening == ord("[")).any():
        raise out_of_range(
            "an array with explicit bounds, such as [0:2]={…}, which a list cannot hold",
            column,
            table,
            f"set types.arrays: json for column {column.name}, or store arrays that begin at 1",
        )
    if (opening != ord("{")).any() or (closing != ord("}")).any():
        raise unreadable(column, table)


def _too_many_dimensions(column: Column, table: TableName) -> ValueOutOfRange:
    return out_of_range(
        "an array of more than one dimension, which a list cannot hold",
        column,
        table,
        f"set types.arrays: json for column {column.name}, or list(n) if all its arrays have n dimensions",
    )


def _means_something(positions: Positions, meaning: Bytes) -> Mask:
    """Of the bytes that may mean something, those that do: quotes, escaping backslashes, structure outside quotes."""
    backslashes = np.flatnonzero(meaning == _BACKSLASH)
    escaped = np.zeros(len(positions), np.bool_)
    if len(backslashes):
        # In a run of backslashes every other one escapes, beginning with the first.
        escapes = backslashes[first_of_pairs(positions[backslashes])]
        follows = positions[escapes + 1] == positions[escapes] + 1
        escaped[escapes[follows] + 1] = True
    quotes = (meaning == _QUOTE) & ~escaped
    inside = np.bitwise_xor.accumulate(quotes)
    means: Mask = ~escaped & (quotes | ~inside | (meaning == _BACKSLASH))
    return means


def meant_bytes(data: Bytes, delimiter: str) -> tuple[Positions, Bytes]:
    """Where bytes are that mean something, and what: up to CLOSE the structure of arrays."""
    codes: Bytes = np.frombuffer(data.tobytes().translate(_meaning(delimiter)[0]), np.uint8)
    places = np.flatnonzero(codes)
    meant = _means_something(places, codes[places])
    return places[meant], codes[places[meant]]


def reads(data: Bytes, begins: Positions, lengths: Positions, word: bytes) -> Mask:
    """Which of the elements are `word`, without a quote."""
    found: Mask = lengths == len(word)
    candidates = np.flatnonzero(found)
    for place, character in enumerate(word):
        found[candidates] &= data[begins[candidates] + place] == character
    return found
