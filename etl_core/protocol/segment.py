"""A segment: the raw frames of row changes under one set of relations, as the reader laid them down.

The reader only appends bytes and remembers where each frame begins. A new segment begins when a Relation message
changes a table, when a Truncate arrives, and when one grows past `SEGMENT_BYTES`, so that decoding is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from etl_core.errors import MalformedMessage
from etl_core.identifiers import TableId
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH

SEGMENT_BYTES = 16 << 20
"""Where a segment is closed. Decoding 16 MiB of frames needs about 60 MB; larger ones are not faster per row."""

PADDING = bytes(8)
"""Behind the last frame, so that a kind byte and a length may be read where a frame with a wrong length ends."""

_SHORTEST_FRAME = XLOG_DATA_HEADER_LENGTH + 8
"""Tag, relation, kind of tuple, number of columns."""


@dataclass(slots=True)
class Segment:
    """Frames in commit order.

    `data` holds whole CopyData payloads of row messages (XLogData header, then the pgoutput message) one after the
    other; `offsets` where each begins. `transactions` has a pair (index of the transaction's first frame in this
    segment, its commit LSN) per transaction; empty ones before the first frame are left out. `truncated` are emptied by
    the first transaction, before the first frame.
    """

    data: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    transactions: list[tuple[int, int]] = field(default_factory=list)
    truncated: frozenset[TableId] = frozenset()
    size: int = 0
    """Bytes of frames in `data`, without the padding."""

    @property
    def rows(self) -> int:
        return len(self.offsets)

    @property
    def is_empty(self) -> bool:
        return not self.offsets and not self.truncated

    def drop_last_transaction(self) -> None:
        """Forgets the frames of the last transaction. Only before the segment is sealed."""
        first, _ = self.transactions.pop()
        self.size = self.offsets[first] if first < len(self.offsets) else self.size
        del self.offsets[first:], self.data[self.size :]

    def seal(self) -> Frames:
        """The segment as arrays, for the splitter. The reader appends nothing afterwards; may be called again.

        Raises MalformedMessage if a frame is too short to be a row message.
        """
        bounds = np.array([*self.offsets, self.size], np.int64)
        if self.offsets and int(np.diff(bounds).min()) < _SHORTEST_FRAME:
            raise MalformedMessage("a row message too short for its tuple", offset=0)
        if len(self.data) == self.size:
            self.data += PADDING
        return Frames(np.frombuffer(self.data, np.uint8), bounds)

    def tables(self) -> frozenset[TableId]:
        """The tables with a change or a truncation in it."""
        if not self.offsets:
            return self.truncated
        return self.truncated | frozenset(map(TableId, np.unique(self.seal().relations()).tolist()))


@dataclass(frozen=True, slots=True)
class Frames:
    """`data` (uint8, padded) and `bounds` (int64, one more than there are frames): frame i is bounds[i]:bounds[i+1]."""

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]

    def relations(self) -> NDArray[np.uint32]:
        """The relation OID of every frame."""
        return big_endian_32(self.data, self.bounds[:-1] + (XLOG_DATA_HEADER_LENGTH + 1))


def big_endian_32(data: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The unsigned 32-bit numbers at the given positions."""
    # Four single-byte gathers: 12 ns a value, against 22 ns for one gather from an unaligned 32-bit view.
    value = data[at].astype(np.uint32)
    for step in (1, 2, 3):
        value <<= 8
        value |= data[at + step]
    return value
