"""A bounds-checked reader over one message: every length is checked before it is used.

Integers on the wire are big-endian. A fixed-width prefix is read as one precompiled `struct.Struct`, which
costs a tenth of one call per field. Whatever the bytes are, the only error raised is MalformedMessage.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

from etl_core.errors import MalformedMessage
from etl_core.lsn import ZERO, Lsn

Buffer: TypeAlias = bytes | bytearray | memoryview

_LENGTH = struct.Struct(">i")


class Reader:
    """Reads one message from its first byte to its last.

    `message` names the message in errors; `offset` is the position of the next byte to read.
    """

    __slots__ = ("_data", "message", "offset")

    def __init__(self, data: Buffer, message: str = "message") -> None:
        self._data = bytes(data)
        self.message = message
        self.offset = 0

    @property
    def remaining(self) -> int:
        """How many bytes are not read yet."""
        return len(self._data) - self.offset

    def malformed(self, what: str, *, offset: int | None = None) -> MalformedMessage:
        """The error to raise for what was found at `offset` (by default the next byte). Never holds the bytes."""
        return MalformedMessage(f"{self.message}: {what}", offset=self.offset if offset is None else offset)

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The fields of a fixed-width layout."""
        start = self._advance(layout.size)
        return layout.unpack_from(self._data, start)

    def byte(self) -> int:
        """One byte, unsigned."""
        return self._data[self._advance(1)]

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        start = self._advance(length)
        return self._data[start : self.offset]

    def sized(self) -> bytes:
        """Bytes that follow their own Int32 length."""
        start = self.offset
        (length,) = self.unpack(_LENGTH)
        if length < 0:
            raise self.malformed("negative length", offset=start)
        return self.take(length)

    def string(self) -> str:
        """A NUL-terminated string; our sessions have client_encoding UTF8."""
        start = self.offset
        end = self._data.find(b"\0", start)
        if end < 0:
            raise self.malformed("a string has no end")
        self.offset = end + 1
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError as error:
            raise self.malformed("a string is not UTF-8", offset=start + error.start) from None

    def flag(self, what: str) -> bool:
        """One byte that is 0 or 1."""
        value = self.byte()
        if value > 1:
            raise self.malformed(f"{what} is neither 0 nor 1", offset=self.offset - 1)
        return value == 1

    def no_flags(self) -> None:
        """The flags byte of a message that has none yet; PostgreSQL's own subscriber refuses others too."""
        if self.byte():
            raise self.malformed("unknown flags", offset=self.offset - 1)

    def position(self, value: int, what: str, *, offset: int) -> Lsn:
        """`value`, unpacked at `offset`, as the LSN of a transaction's end, which is never 0/0.

        A commit at 0/0 would lie before every watermark and be skipped: it is refused here instead.
        """
        if value == ZERO:
            raise self.malformed(f"{what} is 0/0", offset=offset)
        return Lsn(value)

    def finish(self) -> None:
        """Raises MalformedMessage unless the whole message was read."""
        if self.remaining:
            raise self.malformed(f"trailing bytes ({self.remaining})")

    def _advance(self, length: int) -> int:
        start = self.offset
        if length > len(self._data) - start:
            raise self.malformed(f"cut short: {length} more bytes expected, {self.remaining} there")
        self.offset = start + length
        return start
