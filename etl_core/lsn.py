"""Log sequence numbers: positions in the write-ahead log, unsigned 64 bits.

https://www.postgresql.org/docs/current/datatype-pg-lsn.html
"""

from __future__ import annotations

from typing import Self

_LIMIT = 1 << 64


class Lsn(int):
    """A WAL position. Prints as PostgreSQL prints `pg_lsn` (`16/B374D848`) and compares as a number."""

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        if not 0 <= value < _LIMIT:
            raise ValueError(f"an LSN is an unsigned 64-bit number, not {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`'16/B374D848'` → Lsn. Raises ValueError for anything else."""
        high, slash, low = text.partition("/")
        if not slash or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
            raise ValueError(f"not an LSN: {text!r}")
        try:
            return cls((int(high, 16) << 32) | int(low, 16))
        except ValueError:
            raise ValueError(f"not an LSN: {text!r}") from None

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


ZERO = Lsn(0)
"""PostgreSQL's InvalidXLogRecPtr: before every position."""
