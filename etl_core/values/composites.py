"""Composite literals, split into the texts of their attributes: `(1,"a ""quoted"" word",)`.

An attribute is in quotes if it is empty or holds a character that means something here; quotes and backslashes in it
are doubled. Nothing at all is NULL. https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import Column
from etl_core.values.refusal import unreadable
from etl_core.values.text import (
    Array,
    Bytes,
    Mask,
    TextBytes,
    first_of_pairs,
    fixed_width,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)


def split_composites(text: Array, count: int, column: Column, table: TableName) -> tuple[list[Array], Mask | None]:
    """A string array for each of `count` attributes, with NULL where the composite is, and which composites are not.

    Raises CopiedAgain where a value has another number of attributes: they were changed, and older rows show it.
    """
    part = text_bytes(text)
    starts, ends = part.starts, part.ends
    if (ends - starts < len("()")).any():
        raise unreadable(column, table)
    if not ((part.data[starts] == ord("(")) & (part.data[ends - 1] == ord(")"))).all():
        raise unreadable(column, table)
    texts = split_quoted(part, count, column, table)
    if texts is None:
        raise CopiedAgain(
            f"the attributes of {format_type(column)}, the type of column {column.name} of {table}, were changed",
            table=str(table),
            hint=COPIED_AGAIN,
        )
    return texts, part.valid


def split_quoted(part: TextBytes, count: int, column: Column, table: TableName) -> list[Array] | None:
    """A string array for each of `count` texts between a value's first byte and its last, NULL for nothing at all.

    None where a value has more of them or fewer. Raises ValueOutOfRange where a quote is not closed.
    """
    starts, ends = part.starts, part.ends
    is_quote = part.data == ord('"')
    inside = np.bitwise_xor.accumulate(is_quote)
    if inside[ends - 1].any():
        raise unreadable(column, table)
    commas = np.flatnonzero((part.data == ord(",")) & ~inside)
    if (np.diff(np.searchsorted(commas, np.append(starts, part.offsets[-1]))) != count - 1).any():
        return None
    bounds = np.empty((len(starts), count + 1), np.int64)
    bounds[:, 0], bounds[:, -1] = starts, ends - 1
    bounds[:, 1:-1] = commas.reshape(len(starts), count - 1)
    begins, lengths = (bounds[:, :-1] + 1).ravel(), (np.diff(bounds, axis=1) - 1).ravel()
    kept = _kept(part.data, is_quote, inside)
    kept[starts] = kept[ends - 1] = kept[commas] = False
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    given = lengths > 0
    texts = variable_width(
        pa.string(), part.data[kept], offsets_from_lengths(before[begins + lengths] - before[begins]), given
    )
    rows = part.spread(np.arange(len(starts)))
    return [texts.take(fixed_width(pa.int64(), rows * count + at, part.valid)) for at in range(count)]


def _kept(data: Bytes, is_quote: Mask, inside: Mask) -> Mask:
    """All but the quotes around an attribute and one of each two that are doubled."""
    kept = ~is_quote
    # The second of two quotes, which is inside again: the first one only seemed to end it.
    kept[1:] |= is_quote[1:] & inside[1:] & is_quote[:-1] & ~inside[:-1]
    backslashes = np.flatnonzero(data == ord("\\"))
    if len(backslashes):
        kept[backslashes[first_of_pairs(backslashes)]] = False
    return kept
