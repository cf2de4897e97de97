"""Arrow text arrays as numpy arrays of bytes, and numpy arrays back as Arrow arrays; nothing is copied twice.

Arrays are built from buffers and read through them. `pa.array`, `pa.scalar` and `to_numpy` first ask whether their
argument is a pandas object, and pyarrow imports pandas for that: 1.4 s of CPU and 56 MB in the middle of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array: TypeAlias = "pa.Array[Any]"
Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)

_FIRST_NOT_ASCII = 0x80


@dataclass(frozen=True, slots=True)
class TextBytes:
    """The values' bytes end to end: value i is `data[offsets[i]:offsets[i + 1]]`, empty if it is NULL.

    `valid` is None if no value is NULL.
    """

    data: Bytes
    offsets: Positions
    valid: Mask | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def starts(self) -> Positions:
        """Where each value that is not NULL begins."""
        return self.offsets[:-1] if self.valid is None else self.offsets[:-1][self.valid]

    @property
    def ends(self) -> Positions:
        """Where each value that is not NULL ends."""
        return self.offsets[1:] if self.valid is None else self.offsets[1:][self.valid]

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value per row from one per row that is not NULL; zero for the others."""
        if self.valid is None:
            return values
        spread = np.zeros(len(self), dtype=values.dtype)
        spread[self.valid] = values
        return spread


def as_string(text: Array) -> Array:
    """The same bytes as a string array; `is_utf8` validates it."""
    return text if pa.types.is_string(text.type) else text.view(pa.string())


def is_utf8(strings: Array) -> bool:
    """Whether every value of a string array is UTF-8, which a server vouches for unless its encoding is SQL_ASCII.

    ASCII alone is found out at 0.04 ns a byte, the rest at 8 ns a value (a value costs 50 to find and gather).
    """
    if own_bytes(strings).max(initial=0) < _FIRST_NOT_ASCII:
        return True
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def as_binary(text: Array) -> Array:
    """The same bytes as a binary array."""
    return text if pa.types.is_binary(text.type) else text.view(pa.binary())


def own_bytes(text: Array) -> Bytes:
    """The bytes of a string or binary array from its first value to its last, also those that a NULL hides; no copy.

    Its buffer may be one that thousands of columns share.
    """
    if len(text) == 0:
        return np.zeros(0, np.uint8)
    _, offset_buffer, data_buffer = text.buffers()
    offsets = view_buffer(offset_buffer, np.int32)
    return view_buffer(data_buffer, np.uint8)[offsets[text.offset] : offsets[text.offset + len(text)]]


def text_bytes(text: Array) -> TextBytes:
    """The bytes of a string or binary array, without a copy unless a NULL hides bytes."""
    if len(text) == 0:
        return TextBytes(np.zeros(0, np.uint8), np.zeros(1, np.int64), None)
    _, offset_buffer, data_buffer = text.buffers()
    offsets = view_buffer(offset_buffer, np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    data = view_buffer(data_buffer, np.uint8)
    data = data[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    valid = validity(text)
    if valid is not None:
        lengths = np.diff(offsets)
        if lengths[~valid].any():
            data = data[np.repeat(valid, lengths)]
            offsets = offsets_from_lengths(np.where(valid, lengths, 0))
    return TextBytes(data, offsets, valid)


def nulled(strings: Array, hidden: Mask) -> Array:
    """The string array with NULL where `hidden` is true; it shares the bytes."""
    _, offsets, data = strings.buffers()
    shifted = None if offsets is None else offsets.slice(strings.offset * np.int32().itemsize)
    return pa.Array.from_buffers(pa.string(), len(strings), [bitmap(~hidden), shifted, data])


def validity(array: Array) -> Mask | None:
    """True for each value that is not NULL; None if all are."""
    bitmap = array.buffers()[0]
    if bitmap is None or array.null_count == 0:
        return None
    bits = np.unpackbits(view_buffer(bitmap, np.uint8), count=array.offset + len(array), bitorder="little")
    mask: Mask = bits[array.offset :].view(np.bool_)
    return mask


def first_of_pairs(places: Positions) -> Mask:
    """Of places that ascend, every other one of each run without a gap, beginning with its first."""
    continues = np.diff(places, prepend=-2) == 1
    number = np.arange(len(places))
    run_start = np.maximum.accumulate(np.where(continues, 0, number))
    first: Mask = (number - run_start) % 2 == 0
    return first


def offsets_from_lengths(lengths: npt.NDArray[np.integer[Any]]) -> Positions:
    """The n + 1 offsets of n values."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def bitmap(mask: Mask | None) -> pa.Buffer | None:
    """A validity bitmap, or the values of a boolean array."""
    return None if mask is None else buffer_of(np.packbits(mask, bitorder="little"))


def view_buffer(buffer: pa.Buffer | None, dtype: type[Number]) -> npt.NDArray[Number]:
    """The buffer's memory as numbers; none for an absent buffer."""
    return np.zeros(0, dtype) if buffer is None else np.frombuffer(memoryview(buffer), dtype)


def buffer_of(values: npt.NDArray[Any]) -> pa.Buffer:
    """The memory of `values` as an Arrow buffer."""
    return pa.py_buffer(np.ascontiguousarray(values).data)


def boolean(mask: Mask) -> Array:
    """A boolean array without NULL."""
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, bitmap(mask)])


def numbers_of(array: Array, dtype: type[Number]) -> npt.NDArray[Number]:
    """The values of a fixed-width array as `dtype`, its own width, without a copy; undefined where NULL."""
    return view_buffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def mask_of(array: pa.BooleanArray) -> Mask:
    """The values of a boolean array without NULL."""
    bits = np.unpackbits(view_buffer(array.buffers()[1], np.uint8), count=array.offset + len(array), bitorder="little")
    mask: Mask = bits[array.offset :].view(np.bool_)
    return mask


def equals(strings: Array, word: str) -> Mask:
    """Which values are `word`; NULL is not."""
    same = mask_of(pc.equal(strings, one_text(word)[0]))
    valid = validity(strings)
    return same if valid is None else same & valid


def one_text(value: str | None) -> Array:
    """A string array of one value."""
    data = np.frombuffer((value or "").encode(), np.uint8)
    valid = np.zeros(1, np.bool_) if value is None else None
    return variable_width(pa.string(), data, np.array([0, len(data)], np.int64), valid)


def text_array(values: Sequence[str]) -> Array:
    """Some texts as a string array; for few of them."""
    data = [value.encode() for value in values]
    offsets = offsets_from_lengths(np.fromiter(map(len, data), np.int64, len(data)))
    return variable_width(pa.string(), np.frombuffer(b"".join(data), np.uint8), offsets, None)


def fixed_width(arrow_type: pa.DataType, values: npt.NDArray[Any], valid: Mask | None) -> Array:
    """An array of a fixed-width type over `values`, whose memory it shares."""
    return pa.Array.from_buffers(arrow_type, len(values), [bitmap(valid), buffer_of(values)])


def variable_width(arrow_type: pa.DataType, data: Bytes, offsets: Positions, valid: Mask | None) -> Array:
    """A string or binary array over `data`, whose memory it shares."""
    buffers = [bitmap(valid), buffer_of(offsets.astype(np.int32)), buffer_of(data)]
    return pa.Array.from_buffers(arrow_type, len(offsets) - 1, buffers)
