"""Where the frames of a transaction larger than memory wait: raw, in an unnamed temporary file."""

from __future__ import annotations

import tempfile
from io import FileIO
from pathlib import Path

from etl_core.errors import TransientError
from etl_core.protocol.segment import Segment


class SpoolUnavailable(TransientError):
    """The spool cannot be written or read."""

    def __init__(self, what: str, directory: Path | None, error: OSError) -> None:
        super().__init__(
            f"cannot {what} in the spool in {directory or tempfile.gettempdir()}: {error.strerror or error}",
            hint="make room there, set TMPDIR to a larger disk, or raise batch.max_bytes so that less is spooled",
        )


class SpooledSegment:
    """A segment whose bytes are on disk. The file never has a name, so that a crash leaves nothing behind.

    Raw frames are spooled rather than Arrow: writing them costs the reader no decoding, and they are smaller.
    Raises SpoolUnavailable when the disk is full or fails.
    """

    __slots__ = ("_file", "_offsets", "_transactions", "_truncated", "rows", "size")

    def __init__(self, segment: Segment, directory: Path | None = None) -> None:
        try:
            # Unbuffered: what does not fit on the disk is known here, and not when the file is read or closed.
            self._file: FileIO = tempfile.TemporaryFile(dir=directory, prefix="etl-spool-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise SpoolUnavailable("create a file", directory, error) from error
        try:
            _write(self._file, segment)
        except OSError as error:
            self._file.close()
            raise SpoolUnavailable(f"write {segment.size} bytes", directory, error) from error
        self.size = segment.size
        self.rows = segment.rows
        self._offsets = segment.offsets
        self._transactions = segment.transactions
        self._truncated = segment.truncated

    def load(self) -> Segment:
        """Reads the segment back; may be called again, for a second try. Raises SpoolUnavailable."""
        data = bytearray(self.size)
        try:
            _read(self._file, data)
        except OSError as error:
            raise SpoolUnavailable(f"read {self.size} bytes", None, error) from error
        return Segment(data, self._offsets, self._transactions, self._truncated, self.size)

    def close(self) -> None:
        """Gives the disk space back. Idempotent."""
        self._file.close()


def _write(file: FileIO, segment: Segment) -> None:
    with memoryview(segment.data) as data:
        written = 0
        while written < segment.size:
            written += file.write(data[written : segment.size])


def _read(file: FileIO, data: bytearray) -> None:
    file.seek(0)
    with memoryview(data) as view:
        done = 0
        while done < len(data):
            count = file.readinto(view[done:])
            if not count:
                raise OSError(f"the file ends after {done} bytes")
            done += count
