"""A 64-bit number per row that is equal exactly where the row is (but for chance, 2⁻⁶⁴), computed in columns.

Both sides of a comparison are hashed here, from the same Arrow types, so that no product's own hash function is
relied on. The sum over rows does not depend on their order. It finds accidents; it does not resist an adversary.

Measured with 8 columns and 50 bytes of text a row: 0.17 µs a row. What is worked on stays in the processor's cache,
and needs less memory than the rows themselves, however long their values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from etl_core.values.text import Array, mask_of, numbers_of, validity, view_buffer

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]

_START = np.uint64(0x2545F4914F6CDD1D)
_NEXT = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit is lost by multiplication
_NULL = np.uint64(0xD1B54A32D192ED03)
_CANONICAL_NAN = np.float64("nan").view(np.uint64)
_BLOCK = 1 << 14
"""Rows or elements at a time: 128 kB of hashes."""
_PIECE = 256
"""Bytes of a value that are hashed one word after the other; the pieces of a longer value are hashed side by side."""


def hash_rows(columns: Sequence[Array], row_count: int) -> Hashes:
    """One hash per row over the columns in order."""
    return next(iter(hash_prefixes(columns, [len(columns)], row_count)))


def hash_prefixes(columns: Sequence[Array], counts: Sequence[int], row_count: int) -> list[Hashes]:
    """`hash_rows` of the first columns, as many as each of `counts`, which grow, says."""
    prefixes = [np.full(row_count, _START, np.uint64) for _ in counts]
    for start in range(0, row_count, _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = prefixes[0][block]
        first = 0
        for prefix, count in zip(prefixes, counts, strict=True):
            prefix[block] = rows
            rows = prefix[block]
            for column in columns[first:count]:
                _chain(rows, _raw(column[block]))
            first = count
    return prefixes


def hash_column(array: Array) -> Hashes:
    """One hash per value; all nulls hash alike."""
    return hash_rows([array], len(array))


def _raw(array: Array) -> Hashes:
    """Numbers that are equal exactly where the values are; perhaps the array's own memory."""
    raw = _raw_values(array)
    valid = validity(array)
    return raw if valid is None else np.where(valid, raw, _NULL)


def _raw_values(array: Array) -> Hashes:
    kind = array.type
    if pa.types.is_list(kind):
        return _hash_lists(array)
    if pa.types.is_fixed_size_list(kind):
        return _hash_lists(array.cast(pa.list_(kind.value_type)))
    if pa.types.is_map(kind):
        return _hash_maps(array)
    if pa.types.is_struct(kind):
        return hash_rows([pc.struct_field(array, [at]) for at in range(kind.num_fields)], len(array))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _hash_text(view_buffer(array.buffers()[2], np.uint8), _offsets(array))
    if pa.types.is_boolean(kind):
        return mask_of(cast("pa.BooleanArray", array)).astype(np.uint64)
    if pa.types.is_floating(kind):
        numbers = numbers_of(array.cast(pa.float64()), np.float64)
        return np.where(np.isnan(numbers), _CANONICAL_NAN, numbers.view(np.uint64))
    width = kind.bit_width // 8
    if width < 8:
        return numbers_of(array, np.dtype(f"u{width}").type).astype(np.uint64)
    values = view_buffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    words = values.view(np.uint64).reshape(len(array), width // 8)
    raw = words[:, 0]
    for place in range(1, width // 8):
        raw = _mix(raw * _NEXT) + words[:, place]
    return raw


def _hash_lists(array: Array) -> Hashes:
    elements = cast("pa.ListArray[Any]", array).values
    return _hash_spans(lambda start, end: hash_column(elements[start:end]), _offsets(array))


def _hash_maps(array: Array) -> Hashes:
    """As lists of pairs."""
    pairs = cast("pa.MapArray[Any, Any]", array)
    keys, values = pairs.keys, pairs.items
    return _hash_spans(lambda start, end: hash_rows([keys[start:end], values[start:end]], end - start), _offsets(array))


def _hash_text(data: NDArray[np.uint8], offsets: Positions) -> Hashes:
    """The first piece of each value; all pieces of a value that has more of them."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = _hash_pieces(data, starts, np.minimum(lengths, _PIECE))
    long = np.flatnonzero(lengths > _PIECE)
    if long.size:
        starts, lengths = starts[long], lengths[long]
        pieces = np.zeros(long.size + 1, np.int64)
        np.cumsum(-(-lengths // _PIECE), out=pieces[1:])

        def hash_some(first: int, end: int) -> Hashes:
            numbers = np.arange(first, end)
            value = np.searchsorted(pieces, numbers, "right") - 1
            skipped = (numbers - pieces[value]) * _PIECE
            return _hash_pieces(data, starts[value] + skipped, np.minimum(lengths[value] - skipped, _PIECE))

        hashes[long] = _hash_spans(hash_some, pieces)
    return hashes


def _hash_pieces(data: NDArray[np.uint8], starts: Positions, lengths: Positions) -> Hashes:
    """One number for each of the pieces of `data`, from its last bytes, its length, and its words in order."""
    if data.size < 8:
        data = np.concatenate([data, np.zeros(8, np.uint8)])
    # The word that begins at each byte: to gather one that does not lie at a multiple of 8 costs 4 ns.
    words: Hashes = np.ndarray((data.size - 7,), "<u8", data, strides=(1,))
    hashes = _tails(words, starts + lengths, lengths)
    hashes |= lengths.astype(np.uint64) << np.uint64(56)
    hashes ^= _START  # else a chain of zeros would stay 0, however long
    counts = (lengths >> 3).astype(np.uint8)
    most = int(counts.max(initial=0))
    if not most:
        return hashes
    # Those with the most words first, so that the ones that are done drop out at the end.
    order = np.argsort(counts, kind="stable")[::-1]
    at, ordered = starts[order], hashes[order]
    for done in np.cumsum(np.bincount(counts, minlength=most))[:most]:
        count = counts.size - int(done)
        _chain(ordered[:count], words[at[:count]])
        at[:count] += 8
    hashes[order] = ordered
    return hashes


def _tails(words: Hashes, ends: Positions, lengths: Positions) -> Hashes:
    """The bytes of each piece after its last whole word, as a number; 0 if there are none."""
    first = ends - 8
    early = np.flatnonzero(first < 0)
    first[early] = 0
    tails = words[first]
    tails[early] <<= (np.minimum(8 - ends[early], 7) * 8).astype(np.uint64)
    tails >>= ((7 - (lengths & 7)) * 8).astype(np.uint64)
    tails >>= np.uint64(8)
    return tails


def _hash_spans(values: Callable[[int, int], Hashes], offsets: Positions) -> Hashes:
    """A hash over the values of each span [offsets[k], offsets[k+1]), in order, and their number.

    `values` gives the hashes of the values from one position up to another: a block at a time.
    """
    sums = np.diff(offsets).astype(np.uint64)
    for start, end in _blocks(int(offsets[0]), int(offsets[-1])):
        low, high = int(np.searchsorted(offsets, start, "right")) - 1, int(np.searchsorted(offsets, end, "left"))
        bounds = np.clip(offsets[low : high + 1], start, end)
        lengths = np.diff(bounds)
        places = np.arange(start, end) - np.repeat(offsets[low:high], lengths)
        mixed = _mix(values(start, end) + places.astype(np.uint64) * _NEXT)
        filled = np.flatnonzero(lengths)
        sums[low + filled] += np.add.reduceat(mixed, bounds[filled] - start)
    return sums


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, _BLOCK):
        yield start, min(start + _BLOCK, last)


def _offsets(array: Array) -> Positions:
    offsets = view_buffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    return offsets.astype(np.int64)


def _chain(hashes: Hashes, values: Hashes) -> None:
    """Takes one more value into each of `hashes`, in place: which one, and after which others, decides the result."""
    hashes *= _NEXT
    hashes += values
    _mix(hashes)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64, in place: every bit of the input moves every bit of the output."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
