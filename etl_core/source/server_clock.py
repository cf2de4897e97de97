"""The server's clock, as its messages tell it: ages of changes must not show how far two machines' clocks are apart.

A message says when it was sent; the time it was on the way, or waited for us, is not known. The message that was the
quickest is the nearest to the truth, so the greatest difference to our monotonic clock counts. Clocks drift, so it is
that of the last minute or two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from etl_core.protocol.timestamp import to_datetime

_PERIOD = 60.0


class ServerClock:
    """Told by one thread; any may ask. `monotonic` gives seconds that only grow."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # (microseconds of the server's clock at our monotonic zero, of this period and the one before)
        self._offsets: tuple[float, float] | None = None
        self._period_ends = 0.0

    def on_send_time(self, send_time: int) -> None:
        """A message was sent at `send_time`, in PostgreSQL's microseconds since 2000."""
        now = self._monotonic()
        offset = send_time - now * 1e6
        if self._offsets is None:
            self._offsets, self._period_ends = (offset, offset), now + _PERIOD
        elif now >= self._period_ends:
            self._offsets, self._period_ends = (offset, self._offsets[0]), now + _PERIOD
        elif offset > self._offsets[0]:
            self._offsets = (offset, self._offsets[1])

    def now(self) -> datetime:
        """The server's time, never later than it is; ours before the first message."""
        if self._offsets is None:
            return datetime.now(UTC)
        return to_datetime(int(max(self._offsets) + self._monotonic() * 1e6))


def age(since: datetime, now: datetime) -> float:
    """Seconds, never negative: two readings of one clock may cross."""
    return max(0.0, (now - since) / timedelta(seconds=1))
