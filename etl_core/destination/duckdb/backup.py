"""A consistent copy of the file while others may be waiting to write it: all is in the file, and it is held meanwhile.

A checkpoint empties the write-ahead log first, so that the copy is one file. It gets its name when it is whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.same_file import wal_path
from etl_core.errors import DestinationError, DestinationUnavailable

_PIECE = 1 << 30


def back_up(file: DatabaseFile, target: Path) -> int:
    """Copies the file to `target`, which must not be there; returns its bytes.

    Raises DestinationError, and DestinationUnavailable while another process holds the file.
    """
    target = target.absolute()
    if not file.exists():
        raise DestinationError(f"there is nothing to back up: {file.path} does not exist", hint="etl run makes it")
    if target.exists() or wal_path(target).exists():
        raise DestinationError(
            f"{target}, or a .wal beside it, exists already; nothing was copied", hint="name a new file"
        )
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as writing:
            _copy_alone(file, writing)
        partial.rename(target)
    except OSError as error:
        reason = error.strerror if error.errno is None else os.strerror(error.errno)
        raise DestinationError(
            f"cannot write the backup {target}: {reason}", hint="name a file on a disk with room for it"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _copy_alone(file: DatabaseFile, writing: IO[bytes]) -> None:
    # A process that closes any descriptor of a file loses its lock on it (POSIX): closed after DuckDB's connection is.
    with ExitStack() as afterwards, file.alone() as connection:
        file.compression.checkpoint(connection)
        if wal_path(file.path).exists():
            raise DestinationUnavailable(f"another connection of this process changes {file.path}")
        reading = afterwards.enter_context(file.path.open("rb"))
        if not _copied_by_the_system(reading.fileno(), writing.fileno()):
            shutil.copyfileobj(reading, writing, 1 << 24)
        writing.flush()
        os.fsync(writing.fileno())


def _copied_by_the_system(source: int, target: int) -> bool:
    """By reference where the file system can do that, which takes no time; False if nothing was copied."""
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    try:
        while piece := os.copy_file_range(source, target, _PIECE):
            copied += piece
    except OSError:
        if copied:
            raise
        return False
    return copied > 0
