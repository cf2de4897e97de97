"""Literals of ranges and multiranges, split into the texts of what is in them: `[1,5)`, `("a,b",]`, `empty`.

A bound is in quotes if it is empty or holds a character that means something here; quotes and backslashes in it are
doubled. Nothing at all is a bound that is infinite. https://www.postgresql.org/docs/current/rangetypes.html#RANGETYPES-IO
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.composites import split_quoted
from etl_core.values.enclosed import split_enclosed
from etl_core.values.refusal import unreadable
from etl_core.values.text import Array, Bytes, Mask, Positions, as_string, nulled, text_bytes

_EMPTY = b"empty"


@dataclass(frozen=True, slots=True)
class RangeParts:
    """Ranges, row by row: the bounds as string arrays, NULL for none; false everywhere where a range is NULL.

    `valid` is None if no range is NULL.
    """

    lower: Array
    upper: Array
    lower_inc: Mask
    upper_inc: Mask
    isempty: Mask
    valid: Mask | None


def split_ranges(text: Array, column: Column, table: TableName) -> RangeParts:
    """Raises ValueOutOfRange for text that is no range."""
    part = text_bytes(text)
    starts, ends, data = part.starts, part.ends, part.data
    if (ends - starts < len("(,)")).any():
        raise unreadable(column, table)
    first, last = data[starts], data[ends - 1]
    is_empty = first == _EMPTY[0]
    if is_empty.any():
        _check_empty(data, starts[is_empty], ends[is_empty], column, table)
    is_closed = np.isin(first, _codes("[(")) & np.isin(last, _codes("])"))
    if not (is_empty | is_closed).all():
        raise unreadable(column, table)
    with_bounds = part.spread(~is_empty)
    bounds = split_quoted(text_bytes(nulled(as_string(text), ~with_bounds)), 2, column, table)
    if bounds is None:
        raise unreadable(column, table)
    lower, upper = bounds
    return RangeParts(
        lower, upper, part.spread(first == ord("[")), part.spread(last == ord("]")), part.spread(is_empty), part.valid
    )


def split_multiranges(text: Array, column: Column, table: TableName) -> tuple[Positions, Array, Mask | None]:
    """The lists' offsets, the texts of the ranges end to end (a string array), and which multiranges are not NULL."""
    part = text_bytes(text)
    outside = ~np.bitwise_xor.accumulate(part.data == ord('"'))
    opens = np.flatnonzero(np.isin(part.data, _codes("[(")) & outside)
    closes = np.flatnonzero(np.isin(part.data, _codes("])")) & outside)
    offsets, ranges = split_enclosed(part, opens, closes, ",", column, table)
    return offsets, ranges, part.valid


def _codes(characters: str) -> Bytes:
    return np.frombuffer(characters.encode(), np.uint8)


def _check_empty(data: Bytes, starts: Positions, ends: Positions, column: Column, table: TableName) -> None:
    if (ends - starts != len(_EMPTY)).any():
        raise unreadable(column, table)
    words = data[starts[:, np.newaxis] + np.arange(len(_EMPTY))]
    if (words != np.frombuffer(_EMPTY, np.uint8)).any():
        raise unreadable(column, table)
