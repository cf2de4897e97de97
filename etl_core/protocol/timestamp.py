"""Timestamps as the server sends them: microseconds since 2000-01-01 00:00 UTC, signed 64 bits.

They stay numbers until a person or a clock needs a datetime; only then is the range narrowed to Python's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_datetime(microseconds: int) -> datetime:
    """The moment in UTC. Raises ValueError outside the years 1 to 9999."""
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        raise ValueError(f"{microseconds} µs since 2000 lies outside the years 1 to 9999") from None


def from_datetime(moment: datetime) -> int:
    """Microseconds since 2000-01-01 UTC. Raises ValueError if `moment` has no time zone."""
    if moment.utcoffset() is None:
        raise ValueError("a moment without a time zone has no position on the server's clock")
    return (moment - EPOCH) // _MICROSECOND
