"""Where the frames of a transaction larger than memory wait: raw, in an unnamed temporary file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

from etl_core.protocol.segment import Segment


class SpooledSegment:
    """A segment whose bytes are on disk. The file never has a name, so that a crash leaves nothing behind.

    Raw frames are spooled rather than Arrow: writing them costs the reader no decoding, and they are smaller.
    """

    __slots__ = ("_file", "_offsets", "_transactions", "_truncated", "rows", "size")

    def __init__(self, segment: Segment, directory: Path | None = None) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=directory, prefix="etl-spool-")  # noqa: SIM115 close() ends it
        with memoryview(segment.data) as data:
            self._file.write(data[: segment.size])
        self.size = segment.size
        self.rows = segment.rows
        self._offsets = segment.offsets
        self._transactions = segment.transactions
        self._truncated = segment.truncated

    def load(self) -> Segment:
        """Reads the segment back; may be called again, for a second try. Raises OSError."""
        self._file.seek(0)
        data = bytearray(self._file.read(self.size))
        if len(data) != self.size:
            raise OSError(f"the spool file gave {len(data)} of {self.size} bytes")
        return Segment(data, self._offsets, self._transactions, self._truncated, self.size)

    def close(self) -> None:
        """Gives the disk space back. Idempotent."""
        self._file.close()
