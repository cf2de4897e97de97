"""A segment: the raw frames of transactions under one set of relations, as the reader laid them down.

The reader only appends bytes and remembers how long each frame is. A new segment begins when a batch is taken, when a
Relation message changes a table, when a Truncate arrives, and when one grows past `SEGMENT_BYTES`, so that decoding is
bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH as MESSAGE

SEGMENT_BYTES = 16 << 20
"""Where a segment is closed. Decoding 16 MiB of frames needs about 60 MB; larger ones are not faster per row."""

BEGIN, COMMIT, INSERT, UPDATE, DELETE = b"BCIUD"
KEPT_TAGS = frozenset((BEGIN, COMMIT, INSERT, UPDATE, DELETE))
"""The messages that stay frames: of all others there are few, and each has to be looked at by itself."""

FINAL_LSN = MESSAGE + 1
"""Where the commit record's LSN stands in the frame of a Begin."""
_COMMIT_TIME = FINAL_LSN + 8

PADDING = bytes(16)
"""Behind the last frame, so that eight bytes may be read where a frame with a wrong length ends, and beyond."""

Indices = NDArray[np.int64]


@dataclass(slots=True)
class Segment:
    """`data` holds CopyData payloads (XLogData header, then the pgoutput message) in commit order, of KEPT_TAGS only.

    `lengths` are the frames' in bytes, `size` all of them together.
    """

    data: bytearray = field(default_factory=bytearray)
    lengths: list[int] = field(default_factory=list)
    size: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.lengths

    def append(self, frame: bytes) -> None:
        """What the reader does in its loop."""
        self.data += frame
        self.lengths.append(len(frame))
        self.size += len(frame)

    def bounds(self, first: int, at: int) -> Indices:
        """The bounds of the frames from the one numbered `first` on, which begins at byte `at`."""
        lengths = self.lengths[first:] if first else self.lengths
        bounds = np.empty(len(lengths) + 1, np.int64)
        bounds[0] = at
        np.cumsum(np.array(lengths, np.int64), out=bounds[1:])
        bounds[1:] += at
        return bounds

    def split(
        self,
        count: int,
        size: int,
        open_lsn: Lsn | None,
        truncated: frozenset[TableId],
        open_time: int | None = None,
        altered: frozenset[TableId] = frozenset(),
        open_changes: int = 0,
    ) -> tuple[Frames, Segment]:
        """The first `count` frames, of `size` bytes, and what is behind them. The reader goes on with the latter."""
        rest = Segment(self.data[size : self.size], self.lengths[count:], self.size - size)
        del self.lengths[count:]
        if not rest.size:
            self.data += PADDING
        data = np.frombuffer(self.data, np.uint8)[: size + len(PADDING)]
        frames = Frames(data, self.bounds(0, 0), open_lsn, truncated, open_time, altered, open_changes)
        return frames, rest


@dataclass(frozen=True)  # without slots, for a cached property needs a place
class Frames:
    """`data` (uint8, padded) and `bounds` (int64, one more than there are frames): frame i is bounds[i]:bounds[i+1].

    `open_lsn` is the commit LSN of the transaction that began before the first frame, None if none did. `truncated` are
    emptied by that transaction, before the first frame; `altered` are altered by it there. `open_time` is its commit
    time, as on the wire, `open_changes` how many changes of it came before all of that: rows of any table, and
    truncations.
    """

    data: NDArray[np.uint8]
    bounds: Indices
    open_lsn: Lsn | None = None
    truncated: frozenset[TableId] = frozenset()
    open_time: int | None = None
    altered: frozenset[TableId] = frozenset()
    open_changes: int = 0

    @property
    def size(self) -> int:
        """Bytes of frames, without the padding."""
        return int(self.bounds[-1])

    @cached_property
    def heads(self) -> NDArray[np.uint64]:
        """The first eight bytes of each message: if of a row, tag, relation, and its first tuple's kind and width."""
        return eight_bytes(self.data)[self.bounds[:-1] + MESSAGE].astype(np.uint64)

    def transactions(self) -> tuple[Indices, NDArray[np.uint64]]:
        """The number of each transaction's first frame, and its commit LSN."""
        begins = np.flatnonzero(tags_of(self.heads) == BEGIN)
        lsn = big_endian_64(self.data, self.bounds[begins] + FINAL_LSN, 1)[:, 0]
        if self.open_lsn is None:
            return begins, lsn
        return np.append(0, begins), np.append(np.uint64(self.open_lsn), lsn)

    def commit_times(self) -> Indices:
        """The commit time of each of `transactions`, in microseconds since 2000."""
        begins = np.flatnonzero(tags_of(self.heads) == BEGIN)
        times = big_endian_64(self.data, self.bounds[begins] + _COMMIT_TIME, 1)[:, 0].astype(np.int64)
        if self.open_lsn is None:
            return times
        if self.open_time is None:
            raise ValueError("the commit time of the open transaction is not known")
        return np.append(self.open_time, times)

    def changes_at_end(self) -> int:
        """How many changes there are, up to the last frame, of the transaction that is open behind it."""
        tags = tags_of(self.heads)
        begins = np.flatnonzero(tags == BEGIN)
        if begins.size:
            return int(tags.size - 1 - begins[-1])
        return self.open_changes + bool(self.truncated) + int(tags.size)

    def places(self, frames: Indices) -> tuple[Indices, Indices]:
        """Of row messages, by number: which of `transactions` each belongs to, and its place among the changes of it.

        The first change of a transaction has place 1. All tables count, so that places tell the order between them.
        """
        first, _ = self.transactions()
        transaction: Indices = np.searchsorted(first, frames, side="right") - 1
        place = frames - first[transaction]
        if self.open_lsn is not None:  # without a Begin in front
            place += (transaction == 0) * (1 + self.open_changes + bool(self.truncated))
        return transaction, place

    def tables(self) -> frozenset[TableId]:
        """The tables with a change, a truncation or an alteration in it."""
        relations = relations_of(self.heads[row_numbers(tags_of(self.heads))])
        ends = np.flatnonzero(np.append(relations[1:] != relations[:-1], relations.size > 0))
        return self.truncated | self.altered | frozenset(map(TableId, np.unique(relations[ends]).tolist()))


def tags_of(heads: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Which message each frame is."""
    return (heads >> 56).astype(np.uint8)


def relations_of(heads: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The relation OID of row messages."""
    return (heads >> 24).astype(np.uint32)


def row_numbers(tags: NDArray[np.uint8]) -> Indices:
    """The numbers of the frames that are row messages."""
    return np.flatnonzero((tags != BEGIN) & (tags != COMMIT))


def eight_bytes(data: NDArray[np.uint8]) -> NDArray[Any]:
    """For each position the eight bytes from it on as a big-endian number, overlapping, without a copy."""
    # One such gather takes 4 to 6 ns a value, one of single bytes 1 to 4 ns: it pays from the second byte on.
    return np.ndarray((data.size - 7,), ">u8", data, 0, (1,))


def big_endian_64(data: NDArray[np.uint8], at: Indices, count: int) -> NDArray[np.uint64]:
    """`count` unsigned 64-bit numbers, one after the other, from each of the given positions: (positions, count)."""
    width = 8 * count
    if not at.size:
        return np.empty((0, count), np.uint64)
    windows: NDArray[np.uint8] = np.ndarray((data.size - width + 1, width), np.uint8, data, 0, (1, 1))
    return windows[at].view(">u8").astype(np.uint64)
