"""Frames to columns: finds every value of every row without making an object of any.

All tuples of one relation are walked side by side: read kind and length at each row's position, advance every position,
next column. This is done for as many rows at a time as stay in a processor's cache, with all that is made of them.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html#PROTOCOL-LOGICALREP-MESSAGE-FORMATS-TUPLEDATA
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.errors import MalformedMessage
from etl_core.protocol.segment import DELETE, INSERT, UPDATE, Frames, Indices, eight_bytes, tags_of
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH as MESSAGE
from etl_core.values.text import Array, buffer_of, fixed_width

KEY_TUPLE, OLD_TUPLE, NEW_TUPLE = ord("K"), ord("O"), ord("N")
_NULL, _UNCHANGED, _TEXT = ord("n"), ord("u"), ord("t")
_KIND = np.uint64(1 << 56)
"""The kind of a value in the eight bytes from it on; four bytes of length follow, then three of the value."""
_LENGTH_SHIFT = np.uint64(24)

_BLOCK_BYTES = 1 << 20
_BLOCK_ROWS = 1 << 10
"""Tuples are walked by blocks of so many bytes, but not of fewer rows than that: a column costs a few calls a block."""

Mask = NDArray[np.bool_]
Positions = NDArray[np.int32]
"""In the buffer: int32 suffices, for a message has 1 GiB at most, and a segment not much more than its last one."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One column of a set of tuples: where each value's text lies in the buffer, and which have none.

    `null` and `unchanged` are None where no row is.
    """

    start: Positions
    end: Positions
    null: Mask | None
    unchanged: Mask | None

    def __len__(self) -> int:
        return self.start.size

    def take(self, rows: Indices) -> Cells:
        """Those of the tuples numbered `rows`, in that order."""
        null = None if self.null is None else self.null[rows]
        unchanged = None if self.unchanged is None else self.unchanged[rows]
        return Cells(self.start[rows], self.end[rows], null, unchanged)

    def without_text(self) -> Mask | None:
        """Which values are NULL or unchanged; None if none is."""
        if self.null is None or self.unchanged is None:
            return self.unchanged if self.null is None else self.null
        return self.null | self.unchanged


@dataclass(frozen=True, slots=True)
class Tuples:
    """Tuples of one relation. `rows` says to which row change each belongs, ascending."""

    rows: Indices
    columns: tuple[Cells, ...]


@dataclass(frozen=True, slots=True)
class RowChanges:
    """All row changes of one relation in one segment, in commit order.

    `tag` is the message's tag per row; `new` has the new tuples of inserts and updates, `old` the key or old tuples of
    deletes and of the updates that carry one. An unchanged value of a new tuple that its old tuple holds is taken from
    there: that of a TOASTed key column, or any with REPLICA IDENTITY FULL. If `has_borrowed`, some were, so that the
    values of a new tuple need not follow each other in the buffer.
    """

    tag: NDArray[np.uint8]
    new: Tuples
    old: Tuples
    has_borrowed: bool = False

    def old_of_row(self) -> Indices:
        """For every row change the number of its old tuple, or -1."""
        by_row = np.full(self.tag.size, -1, np.int64)
        by_row[self.old.rows] = np.arange(self.old.rows.size)
        return by_row

    def old_of_new(self) -> Indices:
        """For every new tuple the number of the old tuple of the same row change, or -1."""
        return self.old_of_row()[self.new.rows]


def split(frames: Frames, selected: Indices, column_count: int) -> RowChanges:
    """Splits the frames numbered `selected` (ascending, all of one relation).

    Raises MalformedMessage for anything but an Insert, Update or Delete of tuples of `column_count` columns, NULL,
    unchanged or text, that ends where its frame ends.
    """
    data = frames.data
    start = frames.bounds[selected]
    end = frames.bounds[selected + 1]
    heads = frames.heads[selected]
    tag = tags_of(heads)
    block = max(_BLOCK_ROWS, _BLOCK_BYTES * selected.size // max(int((end - start).sum()), 1))
    has_old = _has_old_tuple(tag, (heads >> 16).astype(np.uint8), start)
    position = _behind_count(heads & 0xFFFF, start + (MESSAGE + 6), start, column_count)
    if has_old.any():
        has_new = tag != DELETE
        old_rows, new_rows = np.flatnonzero(has_old), np.flatnonzero(has_new)
        old_columns, position[old_rows] = _walk(data, position[old_rows], start[old_rows], column_count, block)
        both = np.flatnonzero(has_old & has_new)
        at, stop = position[both], end[both]
        wrong = (at >= stop) | (data[np.minimum(at, stop - 1)] != NEW_TUPLE)
        if wrong.any():
            raise _malformed(at, start[both], wrong, "an update without a new tuple")
        counts = eight_bytes(data)[at + 1].astype(np.uint64) >> 48
        position[both] = _behind_count(counts, at + 1, start[both], column_count)
        new_columns, position[new_rows] = _walk(data, position[new_rows], start[new_rows], column_count, block)
    else:
        old_rows, new_rows = np.empty(0, np.int64), np.arange(selected.size)
        nowhere = np.empty(0, np.int32)
        old_columns = tuple(Cells(nowhere, nowhere, None, None) for _ in range(column_count))
        new_columns, position = _walk(data, position, start, column_count, block)
    if not np.array_equal(position, end):
        raise _malformed(position, start, position != end, "a tuple does not end with its message")
    changes = RowChanges(tag, Tuples(new_rows, new_columns), Tuples(old_rows, old_columns))
    if old_rows.size and any(cells.unchanged is not None for cells in new_columns):
        return _with_old_values(changes)
    return changes


def _has_old_tuple(tag: NDArray[np.uint8], kind: NDArray[np.uint8], start: Indices) -> Mask:
    is_new = kind == NEW_TUPLE
    is_insert = tag == INSERT
    if is_insert.all() and is_new.all():
        return np.zeros(tag.size, np.bool_)
    is_old: Mask = (kind == KEY_TUPLE) | (kind == OLD_TUPLE)
    right = is_new & (is_insert | (tag == UPDATE)) | is_old & ((tag == UPDATE) | (tag == DELETE))
    if not right.all():
        raise _malformed(start + (MESSAGE + 5), start, ~right, "not an insert, update or delete with its tuple")
    return is_old


def _with_old_values(changes: RowChanges) -> RowChanges:
    old_of_new = changes.old_of_new()
    columns = tuple(
        new if new.unchanged is None else _with_old_cells(new, new.unchanged, old, old_of_new)
        for new, old in zip(changes.new.columns, changes.old.columns, strict=True)
    )
    return RowChanges(changes.tag, Tuples(changes.new.rows, columns), changes.old, has_borrowed=True)


def _with_old_cells(new: Cells, unchanged: Mask, old: Cells, old_of_new: Indices) -> Cells:
    # A key tuple has NULL where a column is not part of the key: only a value there is one.
    held = np.ones(old.start.size, np.bool_)
    for absent in (old.null, old.unchanged):
        if absent is not None:
            held &= ~absent
    rows = np.flatnonzero(unchanged & (old_of_new >= 0))
    rows = rows[held[old_of_new[rows]]]
    start, end, still = new.start.copy(), new.end.copy(), unchanged.copy()
    start[rows], end[rows], still[rows] = old.start[old_of_new[rows]], old.end[old_of_new[rows]], False
    return Cells(start, end, new.null, still if still.any() else None)


def _behind_count(counts: NDArray[np.integer[Any]], position: Indices, start: Indices, column_count: int) -> Indices:
    """Where the first columns are of tuples whose number of columns, two bytes, is at `position`."""
    if (counts != column_count).any():
        raise _malformed(position, start, counts != column_count, f"a tuple does not have {column_count} columns")
    return position + 2


def _walk(
    data: NDArray[np.uint8], position: Indices, start: Indices, column_count: int, block: int
) -> tuple[tuple[Cells, ...], Indices]:
    """The values of the tuples whose first column is at `position`, and where each tuple ends."""
    shape = (column_count, position.size)
    walked = _Walked(np.empty(shape, np.int32), np.empty(shape, np.int32), {}, {})
    ends = np.empty(position.size, np.int64)
    for first in range(0, position.size, block):
        rows = slice(first, first + block)
        ends[rows] = _walk_block(data, position[rows], start[rows], walked, rows)
    return walked.columns(), ends


@dataclass(frozen=True, slots=True)
class _Walked:
    """Cells being filled in: a row of `start` and `end` per column; masks by column, only where there are any."""

    start: Positions
    end: Positions
    null: dict[int, Mask]
    unchanged: dict[int, Mask]

    def mark(self, masks: dict[int, Mask], number: int, rows: slice, mask: Mask) -> None:
        if mask.any():
            if number not in masks:
                masks[number] = np.zeros(self.start.shape[1], np.bool_)
            masks[number][rows] = mask

    def columns(self) -> tuple[Cells, ...]:
        return tuple(
            Cells(start, end, self.null.get(number), self.unchanged.get(number))
            for number, (start, end) in enumerate(zip(self.start, self.end, strict=True))
        )


def _walk_block(data: NDArray[np.uint8], position: Indices, start: Indices, walked: _Walked, rows: slice) -> Indices:
    # Positions are clipped to the buffer before every read, but beyond every frame's end: a wrong length is found by
    # the caller, where the last position is not the frame's end.
    last = data.size - 8
    words = eight_bytes(data)
    position = np.minimum(position, last)
    for number in range(walked.start.shape[0]):
        word = words[position].astype(np.uint64)
        word ^= _TEXT * _KIND
        if word.max() < _KIND:  # all are text
            position += 5
            length = (word >> _LENGTH_SHIFT).view(np.int64)
        else:
            word ^= _TEXT * _KIND
            length = _mixed_lengths(word, position, start, walked, number, rows)
        walked.start[number, rows] = position
        position += length
        np.minimum(position, last, out=position)
        walked.end[number, rows] = position
    return position


def _mixed_lengths(
    word: NDArray[np.uint64], position: Indices, start: Indices, walked: _Walked, number: int, rows: slice
) -> Indices:
    """Moves `position` to the values of one column, of which not all are text, and returns the values' lengths."""
    kind = tags_of(word)
    is_text, null, unchanged = kind == _TEXT, kind == _NULL, kind == _UNCHANGED
    known = is_text | null | unchanged
    if not known.all():
        raise _malformed(position, start, ~known, "unknown kind of column value")
    walked.mark(walked.null, number, rows, null)
    walked.mark(walked.unchanged, number, rows, unchanged)
    position += np.where(is_text, 5, 1)
    return np.where(is_text, (word >> _LENGTH_SHIFT).astype(np.int64) & 0xFFFFFFFF, 0)


def _malformed(position: Indices, start: Indices, wrong: Mask, what: str) -> MalformedMessage:
    first = int(np.flatnonzero(wrong)[0])
    return MalformedMessage(what, offset=int(position[first] - start[first]) - MESSAGE)


def gather(data: NDArray[np.uint8], columns: Sequence[Cells]) -> Array:
    """The texts of columns, end to end, as a BinaryArray; nulls and unchanged are null."""
    # An array whose elements are, in turn, what stands between two values and a value: every second element of it is
    # wanted, and Arrow's own take() copies just those. It looks at no other, so that values may come in any order.
    count = sum(map(len, columns))
    offsets = np.empty(2 * count + 1, np.int32)
    offsets[0] = 0
    first = 0
    for cells in columns:
        last = first + 2 * len(cells)
        offsets[first + 1 : last + 1 : 2] = cells.start
        offsets[first + 2 : last + 2 : 2] = cells.end
        first = last
    interleaved = pa.Array.from_buffers(pa.binary(), 2 * count, [None, buffer_of(offsets), buffer_of(data)])
    wanted = np.arange(1, 2 * count, 2, dtype=np.int32)
    return interleaved.take(fixed_width(pa.int32(), wanted, _have_text(columns, count)))


def _have_text(columns: Sequence[Cells], count: int) -> Mask | None:
    without = [cells.without_text() for cells in columns]
    if all(mask is None for mask in without):
        return None
    valid = np.ones(count, np.bool_)
    first = 0
    for cells, mask in zip(columns, without, strict=True):
        if mask is not None:
            np.logical_not(mask, out=valid[first : first + len(cells)])
        first += len(cells)
    return valid
