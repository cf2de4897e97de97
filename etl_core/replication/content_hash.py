"""A 64-bit number per row that is equal exactly where the row is (but for chance, 2⁻⁶⁴), computed in columns.

Both sides of a comparison are hashed here, from the same Arrow types, so that no product's own hash function is
relied on. The sum over rows does not depend on their order. It finds accidents; it does not resist an adversary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.values.text import Array, view_buffer

Hashes = NDArray[np.uint64]

_NULL = np.uint64(0x9E3779B97F4A7C15)
_RADIX = 0x5851F42D4C957F2D  # odd, so that it has an inverse modulo 2⁶⁴
_INVERSE = np.uint64(pow(_RADIX, -1, 1 << 64))
_BLOCK = 1 << 20
_CANONICAL_NAN = np.float64("nan").view(np.uint64)


def hash_rows(columns: Sequence[Array], row_count: int) -> Hashes:
    """One hash per row over the columns in order."""
    total = np.full(row_count, 0x2545F4914F6CDD1D, np.uint64)
    for column in columns:
        total = _mix(total * np.uint64(0x100000001B3) + hash_column(column))
    return total


def hash_column(array: Array) -> Hashes:
    """One hash per value; all nulls hash alike."""
    hashes = _mix(_raw(array))
    if array.null_count:
        hashes[np.asarray(array.is_null())] = _NULL
    return hashes


def _raw(array: Array) -> Hashes:
    kind = array.type
    if pa.types.is_list(kind):
        return _hash_lists(array)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        offsets, data = _offsets(array), view_buffer(array.buffers()[2], np.uint8)
        return _hash_spans(lambda start, end: data[start:end].astype(np.uint64) + np.uint64(1), offsets)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
        return _fixed_width(array, 1)[:, 0]
    if pa.types.is_floating(kind):
        values = _fixed_width(array.cast(pa.float64()), 8)[:, 0]
        return np.where(np.isnan(values.view(np.float64)), _CANONICAL_NAN, values)
    words = _fixed_width(array, kind.bit_width // 8)
    if words.shape[1] == 1:
        return words[:, 0]
    return _mix(words[:, 0]) + words[:, 1]


def _fixed_width(array: Array, width: int) -> Hashes:
    """The values' bytes as 64-bit words, shape (rows, words per value)."""
    raw = view_buffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    if width >= 8:
        return raw.view(np.uint64).reshape(len(array), width // 8)
    return raw.view(f"u{width}").astype(np.uint64).reshape(len(array), 1)


def _hash_lists(array: Array) -> Hashes:
    offsets = _offsets(array)
    elements = hash_column(cast("pa.ListArray[Any]", array).values)
    return _hash_spans(lambda start, end: elements[start:end], offsets)


def _hash_spans(values: Callable[[int, int], Hashes], offsets: NDArray[np.int64]) -> Hashes:
    """The polynomial Σ value·radixⁱ over each span [offsets[k], offsets[k+1]), and its length.

    `values` gives the values from one position up to another: a block at a time, as a value needs 40 bytes meanwhile.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    if first == last:
        return np.zeros(offsets.size - 1, np.uint64)
    powers = _powers(np.uint64(_RADIX), min(_BLOCK, last - first))
    sums = np.zeros(offsets.size, np.uint64)
    carry, base = np.zeros(1, np.uint64), np.ones(1, np.uint64)
    for start in range(first, last, _BLOCK):
        end = min(start + _BLOCK, last)
        prefix = np.concatenate([carry, values(start, end) * powers[: end - start] * base])
        np.cumsum(prefix, out=prefix)
        here = slice(int(np.searchsorted(offsets, start)), int(np.searchsorted(offsets, end, "right")))
        sums[here] = prefix[offsets[here] - start]
        carry, base = prefix[-1:], base * powers[end - start]
    # A span's sum is a difference of prefix sums, brought back to where it would be if the span began at 0.
    back = _inverse_powers(offsets[:-1] - first)
    return (sums[1:] - sums[:-1]) * back + (offsets[1:] - offsets[:-1]).astype(np.uint64)


def _powers(base: np.uint64, count: int) -> Hashes:
    powers = np.full(count + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _inverse_powers(exponents: NDArray[np.int64]) -> Hashes:
    """The inverse of the radix to the power of each exponent, which is below 2³²."""
    low = _powers(_INVERSE, 1 << 16)
    high = _powers(low[-1], int(exponents.max()) >> 16)
    powers: Hashes = low[exponents & 0xFFFF] * high[exponents >> 16]
    return powers


def _offsets(array: Array) -> NDArray[np.int64]:
    offsets = view_buffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    return offsets.astype(np.int64)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
