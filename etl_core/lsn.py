"""Log sequence numbers: positions in the write-ahead log, unsigned 64 bits.

https://www.postgresql.org/docs/current/datatype-pg-lsn.html
"""

from __future__ import annotations

import re
from typing import Self

_LIMIT = 1 << 64
_TEXT = re.compile("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


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
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


ZERO = Lsn(0)
"""PostgreSQL's InvalidXLogRecPtr: before every position."""
