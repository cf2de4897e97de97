"""Where the frames of a transaction larger than memory wait: raw, in one unnamed temporary file a batch.

Frames have everything the source sent. Where the settings hide some of that, what is on the disk is sealed with a key
that nobody has but this process: the file has no name, but its blocks stay on the disk when it is gone.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import tempfile
import threading
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etl_core.errors import TransientError
from etl_core.protocol.segment import PADDING, Frames

_BOUND = np.dtype(np.int64)
_open: weakref.WeakSet[Spool] = weakref.WeakSet()
_SEALED_BYTES = 1 << 20
"""At a time. The keystream is SHAKE-256 of key, piece and place: 2.6 ns a byte, where the disk takes 1 or 2."""


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

    def __init__(self, directory: Path | None = None, *, is_sealed: bool = False) -> None:
        self._directory = directory
        self._key = secrets.token_bytes(32) if is_sealed else None
        self._seals = 0
        try:
            # Unbuffered: what does not fit on the disk is known when it is written, not when it is read or closed.
            self._file: FileIO = tempfile.TemporaryFile(dir=directory, prefix="etl-spool-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise SpoolUnavailable("create a file", directory, error) from error
        self._end = 0
        self._pieces = 0
        # The pieces of one file may be in two batches, of which one is written and given up while the other is read.
        self._lock = threading.Lock()
        _open.add(self)

    @property
    def size(self) -> int:
        """Bytes on disk; 0 once the last of its pieces is gone."""
        return 0 if self._file.closed else self._end

    def put(self, frames: Frames) -> SpooledFrames:
        """Raises SpoolUnavailable when the disk is full or fails."""
        self._seals += 1  # also of what could not be written: no two texts may have one keystream
        try:
            self._file.seek(self._end)
            for part in self._sealed(frames.data[: frames.size], self._seals):
                _write(self._file, part.data)
            _write(self._file, frames.bounds.data.cast("B"))
        except OSError as error:
            self._close_if_empty()
            raise SpoolUnavailable(f"write {frames.size} bytes", self._directory, error) from error
        spooled = SpooledFrames(self, self._end, frames, self._seals)
        self._end += frames.size + frames.bounds.nbytes
        with self._lock:
            self._pieces += 1
        return spooled

    def unseal(self, data: NDArray[np.uint8], seal: int) -> None:
        """In place: what `put` wrote as its piece number `seal`."""
        if self._key is not None:
            at = 0
            for part in self._sealed(data, seal):
                data[at : at + part.size] = part
                at += part.size

    def _sealed(self, data: NDArray[np.uint8], seal: int) -> Iterator[NDArray[np.uint8]]:
        if self._key is None:
            yield data
            return
        for at in range(0, data.size, _SEALED_BYTES):
            part = data[at : at + _SEALED_BYTES]
            place = seal.to_bytes(8, "big") + at.to_bytes(8, "big")
            yield part ^ np.frombuffer(hashlib.shake_256(self._key + place).digest(part.size), np.uint8)

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


def spooled_bytes() -> int:
    """Of all spools of this process, on disk."""
    return sum(spool.size for spool in list(_open))


class SpooledFrames:
    """Frames that are on disk."""

    __slots__ = ("_count", "_is_closed", "_open", "_seal", "_spool", "_start", "size")

    def __init__(self, spool: Spool, start: int, frames: Frames, seal: int) -> None:
        self._spool = spool
        self._start = start
        self._seal = seal
        self._is_closed = False
        self._count: int = frames.bounds.size
        self._open = (frames.open_lsn, frames.truncated, frames.open_time, frames.altered, frames.open_changes)
        self.size = frames.size

    def load(self) -> Frames:
        """Reads the frames back; may be called again, for a second try. Raises SpoolUnavailable."""
        data = np.frombuffer(self._spool.read(self._start, self.size, len(PADDING)), np.uint8)
        self._spool.unseal(data[: self.size], self._seal)
        bounds = np.frombuffer(self._spool.read(self._start + self.size, self._count * _BOUND.itemsize), _BOUND)
        return Frames(data, bounds, *self._open)

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
