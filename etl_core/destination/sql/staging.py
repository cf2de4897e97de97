"""Where the rows of a copy wait: a directory for each pipeline and table, one Arrow IPC file per writing thread.

Arrow IPC keeps every Arrow type, and a row of eight columns costs 0.03 µs of CPU to write and 80 bytes of disk. LZ4
would make that 45 bytes, and the copy cost 15 % more CPU in all; Parquet costs 0.2 µs. A copy locks its directory while
it lives, so that a running copy, maybe of another process, can be told from what a crashed one left behind.

Processes that help with a copy put files of their own beside its files. A marker named after the copy's address tells
them that this is the directory of that very copy, and that it is the same disk.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.ipc

from etl_core.errors import DestinationError, DestinationUnavailable

try:
    import fcntl
except ImportError:  # Windows: a directory with an open file in it cannot be removed, which protects as well
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"
_ROWS = ".arrow"
_MARKER = ".copy"


class Staging:
    """The directory of one copy, locked and empty. Raises DestinationUnavailable if another copy lives in it."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._directory = directory
        self._guard = threading.Lock()
        self._files: dict[int, StagingFile] = {}
        self._included: list[Path] = []
        self.address = secrets.token_hex(8)
        try:
            lock = _lock_new(directory)
        except OSError as error:
            raise disk_trouble(directory, error) from None
        if lock is None:
            raise DestinationUnavailable(
                f"another copy into {directory} is running", hint="wait for it, or end the process that runs it"
            )
        self._lock: IO[bytes] = lock
        try:
            for pattern in (f"*{_ROWS}", f"*{_MARKER}"):
                for file in directory.glob(pattern):
                    file.unlink()
            (directory / (self.address + _MARKER)).touch()
        except OSError as error:
            lock.close()
            raise disk_trouble(directory, error) from None

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends to the calling thread's file."""
        try:
            self._file().write(rows)
        except OSError as error:
            raise disk_trouble(self._directory, error) from None

    def _file(self) -> StagingFile:
        thread = threading.get_ident()
        with self._guard:
            file = self._files.get(thread)
            if file is None:
                file = StagingFile(self._directory / f"{len(self._files)}{_ROWS}", self._schema)
                self._files[thread] = file
        return file

    def include(self, receipt: str) -> None:
        """Has `read` read a file of a helping process."""
        path = self._directory / Path(receipt).name
        if not path.is_file():
            raise DestinationError(
                f"rows of a shared copy are not in {self._directory}, where another process staged them",
                hint="the processes that share a copy must see one disk at that path",
            )
        self._included.append(path)

    def read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """All that was written and included, in batches, under a schema of the same types. No more may be written."""
        try:
            for file in self._files.values():
                file.close()
        except OSError as error:
            raise disk_trouble(self._directory, error) from None
        for path in (*(file.path for file in self._files.values()), *self._included):
            # Not memory-mapped: mapped pages would count as memory of this process.
            with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    def discard(self) -> None:
        """Removes the directory. Idempotent."""
        for file in self._files.values():
            file.abandon()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.close()
        _remove_empty(self._directory.parent)


class StagingFile:
    """One thread's rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, schema)

    def write(self, rows: pa.RecordBatch) -> None:
        self._writer.write_batch(rows)

    def close(self) -> None:
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def abandon(self) -> None:
        """Closes it though the disk may be full: its end is not wanted any more."""
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self._sink.close()


class StagedPart:
    """See CopyPart: a file beside those of the copy at `address`."""

    def __init__(self, directory: Path, address: str, schema: pa.Schema) -> None:
        if not (directory / (address + _MARKER)).is_file():
            raise DestinationUnavailable(
                f"the copy to be helped with is not in {directory}",
                hint="it is over, or these processes see different disks at that path",
            )
        try:
            self._file = StagingFile(directory / f"part-{secrets.token_hex(8)}{_ROWS}", schema)
        except OSError as error:
            raise disk_trouble(directory, error) from None

    def write(self, rows: pa.RecordBatch) -> None:
        try:
            self._file.write(rows)
        except OSError as error:
            raise disk_trouble(self._file.path.parent, error) from None

    def finish(self) -> str:
        try:
            self._file.close()
        except OSError as error:
            raise disk_trouble(self._file.path.parent, error) from None
        return self._file.path.name

    def discard(self) -> None:
        self._file.abandon()
        self._file.path.unlink(missing_ok=True)


def discard_abandoned(root: Path) -> None:
    """Removes the directories under `root` in which no copy lives, then `root` if nothing is left."""
    if not root.is_dir():
        return
    for directory in root.iterdir():
        lock = _try_lock(directory)
        if lock is not None:
            shutil.rmtree(directory, ignore_errors=True)
            lock.close()
    _remove_empty(root)


def _lock_new(directory: Path) -> IO[bytes] | None:
    """Creates the directory and locks it; None if someone alive holds it."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = _try_lock(directory)
            if lock is None or os.path.samestat(os.fstat(lock.fileno()), (directory / _LOCK).stat()):
                return lock
        except FileNotFoundError:
            pass
        # `discard_abandoned` of another process removed the directory in between: begin again.


def _remove_empty(pipeline_directory: Path) -> None:
    """Removes the pipeline's directory and the one above, as far as nothing is in them."""
    with suppress(OSError):
        pipeline_directory.rmdir()
        pipeline_directory.parent.rmdir()


def _try_lock(directory: Path) -> IO[bytes] | None:
    """The open lock file, or None if someone alive holds it."""
    lock = (directory / _LOCK).open("ab")
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def disk_trouble(directory: Path, error: OSError) -> DestinationError:
    """The error for what the operating system refused while rows were staged; nothing of the copy is used then."""
    reason = error.strerror if error.errno is None else os.strerror(error.errno)
    return DestinationError(
        f"cannot stage rows in {directory}: {reason}; the table there was before is unchanged",
        hint="that disk needs room for the table's rows, and twice the room where the database is on it too, and this "
        "user the right to write there; then copy it again: etl resync TABLE",
    )
