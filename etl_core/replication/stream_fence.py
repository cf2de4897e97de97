"""The position of the main stream in the destination: what the next write expects there, and where it moves it.

A destination that is older than what was written to it (a restored file, a dataset of yesterday) is recognised by it:
at the start by what the state store knows, while it runs by the fence of every write. Positions of two incarnations of
the source are never compared: LSNs of another cluster say nothing about this one.
"""

from __future__ import annotations

from etl_core.batch import StreamMove, StreamPosition
from etl_core.lsn import ZERO, Lsn


class StreamFence:
    """What one stream knows of its position: set before it streams, then used by the writing thread alone."""

    def __init__(self, incarnation: str, written: Lsn | None) -> None:
        """`written` is where the last batch ended that the destination is known to have, None before the first."""
        self._incarnation = incarnation
        self._written = written
        self._known: StreamPosition | None = None

    @property
    def written(self) -> Lsn | None:
        """The destination has everything up to here, unless it was replaced."""
        return self._written

    def is_older(self, found: StreamPosition | None) -> bool:
        """Whether a destination that says `found` lacks what was written to it."""
        if found is not None and self.is_of_another_source(found):
            return True
        known = self._known
        seen = known.lsn if known is not None and not self.is_of_another_source(known) else ZERO
        furthest = max(self._written or ZERO, seen)
        return furthest > ZERO if found is None else found.lsn < furthest

    def is_of_another_source(self, found: StreamPosition) -> bool:
        return found.incarnation not in (self._incarnation, None)

    def told(self, found: StreamPosition | None) -> str:
        """What is wrong with a destination that says `found`."""
        if found is not None and self.is_of_another_source(found):
            return f"the destination has the position of another source or an earlier slot ({found.incarnation})"
        where = "no position of it" if found is None else f"{found.lsn}"
        known = self._written if self._known is None else self._known.lsn
        return f"the stream was written up to {known}, but the destination has {where}"

    def expect(self, found: StreamPosition | None) -> None:
        """Takes what the destination says, if it is not older: an earlier try or another process wrote it."""
        self._known = found

    def move(self, end: Lsn) -> StreamMove:
        """The move of a batch that ends at `end`. Never back: after a crash, batches are read again, cut elsewhere."""
        known = self._known
        is_ours = known is not None and not self.is_of_another_source(known)
        furthest = max(end, self._written or ZERO, known.lsn if known is not None and is_ours else ZERO)
        return StreamMove(known, StreamPosition(furthest, self._incarnation))

    def moved(self, move: StreamMove) -> None:
        """The move was made."""
        self._known = move.new
        self._written = max(self._written or ZERO, move.new.lsn)


def begin_stream(incarnation: str, start: Lsn, found: StreamPosition | None) -> StreamMove:
    """The move by which a destination becomes that of a new incarnation, wherever it was in an older one."""
    return StreamMove(found, StreamPosition(start, incarnation))
