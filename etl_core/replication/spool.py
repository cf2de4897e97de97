"""Where the frames of a transaction larger than memory wait: raw, in one unnamed temporary file a batch."""

from __future__ import annotations

import errno
import tempfile
import threading
from io import FileIO
from pathlib import Path

import numpy as np

from etl_core.errors import TransientError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.segment import PADDING, Frames

_BOUND = np.dtype(np.int64)


class SpoolUnavailable(TransientError):
    """The spool cannot be written or read."""

    def __init__(self, what: str, directory: Path | None, error: OSError) -> None:
        hint = "make room there, set TMPDIR to a larger disk, or raise batch.max_bytes so that less is spooled"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "raise the limit of open files (ulimit -n)"
        where = directory or tempfile.gettempdir()
        super().__init__(f"cannot {what} in the spool in {where}: {error.strerror or error}", hint=hint)


class Spool:
    """The file. It never has a name, so that a crash leaves nothing behind; it goes with the last of its pieces.

    Raw frames are spooled rather than Arrow: writing them costs the reader no decoding, and they are smaller. Where
    each row begins goes there too: of a hundred million rows that would be gigabytes in memory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        try:
            # Unbuffered: what does not fit on the disk is known when it is written, not when it is read or closed.
            self._file: FileIO = tempfile.TemporaryFile(dir=directory, prefix="etl-spool-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise SpoolUnavailable("create a file", directory, error) from error
        self._end = 0
        self._pieces = 0
        # The pieces of one file may be in two batches, of which one is written and given up while the other is read.
        self._lock = threading.Lock()

    def put(self, frames: Frames) -> SpooledFrames:
        """Raises SpoolUnavailable when the disk is full or fails."""
        try:
            self._file.seek(self._end)
            _write(self._file, frames.data[: frames.size].data)
            _write(self._file, frames.bounds.data.cast("B"))
        except OSError as error:
            self._close_if_empty()
            raise SpoolUnavailable(f"write {frames.size} bytes", self._directory, error) from error
        spooled = SpooledFrames(self, self._end, frames)
        self._end += frames.size + frames.bounds.nbytes
        with self._lock:
            self._pieces += 1
        return spooled

    def read(self, start: int, size: int, padding: int = 0) -> bytearray:
        """So many bytes, and so many zeros behind them. Raises SpoolUnavailable."""
        data = bytearray(size + padding)
        try:
            self._file.seek(start)
            with memoryview(data) as view:
                _read(self._file, view[:size])
        except OSError as error:
            raise SpoolUnavailable(f"read {size} bytes", None, error) from error
        return data

    def release(self) -> None:
        """One of its pieces is no longer needed; with the last one the disk space is given back."""
        with self._lock:
            self._pieces -= 1
            self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._pieces == 0:
            self._file.close()


class SpooledFrames:
    """Frames that are on disk."""

    __slots__ = ("_count", "_is_closed", "_open_lsn", "_spool", "_start", "_truncated", "size")

    def __init__(self, spool: Spool, start: int, frames: Frames) -> None:
        self._spool = spool
        self._start = start
        self._is_closed = False
        self._count: int = frames.bounds.size
        self._open_lsn: Lsn | None = frames.open_lsn
        self._truncated: frozenset[TableId] = frames.truncated
        self.size = frames.size

    def load(self) -> Frames:
        """Reads the frames back; may be called again, for a second try. Raises SpoolUnavailable."""
        data = self._spool.read(self._start, self.size, len(PADDING))
        bounds = np.frombuffer(self._spool.read(self._start + self.size, self._count * _BOUND.itemsize), _BOUND)
        return Frames(np.frombuffer(data, np.uint8), bounds, self._open_lsn, self._truncated)

    def close(self) -> None:
        """Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._spool.release()


def _write(file: FileIO, data: memoryview) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])


def _read(file: FileIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        count = file.readinto(data[done:])
        if not count:
            raise OSError(f"the file ends after {done} bytes")
        done += count
