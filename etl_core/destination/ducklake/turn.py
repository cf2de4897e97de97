"""Writers of one catalog take turns: DuckLake gives up the later of two transactions only when it commits.

That keeps work from being done in vain, and nothing depends on it: of two writers that meet nevertheless DuckLake
refuses one (`connection`). A catalog in a DuckDB file is held by the process that has it open, which is turn enough.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg

from etl_core.destination.ducklake.catalog import Catalog
from etl_core.destination.ducklake.failures import unavailable
from etl_core.destination.ducklake.server import connect_catalog
from etl_core.errors import DestinationError

_SPACE = 0x65746C
"""Of our advisory locks."""

Try = Callable[[], bool]
"""Takes the turn if nobody has it, and tells whether it did."""


def turn_of(catalog: Catalog, pipeline: str) -> AbstractContextManager[Try]:
    """What takes the turn until the end of the `with` block."""
    match catalog.kind:
        case "duckdb":
            return _free()
        case "sqlite":
            return _of_file(Path(catalog.address + ".turn"))
        case "postgres":
            return _of_server(catalog, pipeline)


@contextmanager
def _free() -> Iterator[Try]:
    yield lambda: True


@contextmanager
def _of_file(path: Path) -> Iterator[Try]:
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be written: {error.strerror}", hint="give this user the right to write the directory"
        ) from None

    def take() -> bool:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        yield take
    finally:
        os.close(opened)


@contextmanager
def _of_server(catalog: Catalog, pipeline: str) -> Iterator[Try]:
    """An advisory lock of a transaction, so that a pooler in between gives it back, too."""
    connection = connect_catalog(catalog, pipeline)
    key = int.from_bytes(hashlib.sha256(b"etl ducklake").digest()[:4], "big", signed=True)

    def take() -> bool:
        try:
            found = connection.execute("SELECT pg_catalog.pg_try_advisory_xact_lock(%s, %s)", (_SPACE, key)).fetchone()
        except psycopg.Error as error:
            raise unavailable(catalog, error) from None
        return found is not None and bool(found[0])

    try:
        yield take
    finally:
        connection.close()
