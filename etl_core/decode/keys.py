"""Keys as small integers: equal number, equal key.

Texts are compared, as PostgreSQL compares bytes when it decides whether an update changed the key: two spellings of one
number are two keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.decode.split import Cells, Positions, gather
from etl_core.errors import PermanentError
from etl_core.protocol.segment import Indices, eight_bytes
from etl_core.values.text import Array, fixed_width, numbers_of

_WORD = 7
"""Bytes of text that fit into a word, a 64-bit number, with their length."""


def key_texts(data: NDArray[np.uint8], new: Cells, old: Cells) -> list[tuple[Array, Array]]:
    """The texts of one key column of new and of old tuples: binary arrays, or words in one or two columns if short."""
    both = (new, old)
    longest = max(int((cells.end - cells.start).max(initial=0)) for cells in both)
    if longest > 2 * _WORD or any(cells.without_text() is not None for cells in both):
        return [(gather(data, [new]), gather(data, [old]))]
    if longest <= _WORD:
        return [(_words(data, new.start, new.end), _words(data, old.start, old.end))]
    (new_middle, old_middle) = (np.minimum(cells.start + _WORD, cells.end) for cells in both)
    return [
        (_words(data, new.start, new_middle), _words(data, old.start, old_middle)),
        (_words(data, new_middle, new.end), _words(data, old_middle, old.end)),
    ]


def _words(data: NDArray[np.uint8], start: Positions, end: Positions) -> Array:
    if not start.size:
        return pa.nulls(0, pa.uint64())
    length = (end - start).astype(np.uint64)
    words = eight_bytes(data)[start].astype(np.uint64)
    words >>= 64 - 8 * length
    words |= length << 56
    return fixed_width(pa.uint64(), words, None)


def number_keys(columns: Sequence[tuple[Array, Array]], *, with_null: bool = False) -> tuple[Indices, Indices]:
    """Numbers the keys of new and old tuples, given by key column: those of the new tuples, those of the old ones.

    There is at least one column. Raises PermanentError for NULL in a key, unless `with_null`: NULL equals NULL then.
    """
    combined, *others = [_number_texts(new, old, with_null=with_null) for new, old in columns]
    for numbers in others:
        # Both numbers are below the number of tuples, so that their product stays below 2**63; numbered again, the
        # pairs are so too.
        combined = _number(combined * (int(numbers.max(initial=0)) + 1) + numbers)
    count = len(columns[0][0])
    return combined[:count], combined[count:]


def _number_texts(new: Array, old: Array, *, with_null: bool) -> Indices:
    texts = pa.concat_arrays([new, old]) if len(old) else new
    if texts.type == pa.uint64():
        return _number(numbers_of(texts, np.uint64))
    codes = texts.dictionary_encode("encode" if with_null else "mask").indices
    if codes.null_count:
        raise PermanentError(
            "a key column holds NULL",
            hint="give the table a primary key, or a REPLICA IDENTITY index over NOT NULL columns",
        )
    return numbers_of(codes, np.int32).astype(np.int64)


def _number(values: NDArray[np.uint64] | Indices) -> Indices:
    if bool((values[1:] > values[:-1]).all()):  # rows inserted with a number that counts up
        return np.arange(values.size)
    order = np.argsort(values)
    ordered = values[order]
    numbers = np.empty(values.size, np.int64)
    numbers[order] = np.cumsum(np.append(False, ordered[1:] != ordered[:-1]))
    return numbers
