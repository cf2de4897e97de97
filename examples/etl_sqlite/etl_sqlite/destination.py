"""SQLite as a destination. **Exactly once:** rows, watermarks and the stream's position are one transaction of a file.

BEGIN IMMEDIATE admits one writer at a time, so that the fence of `etl_core.destination.sql` sees what it compares; a
process that is killed before COMMIT leaves the state of before, which SQLite's log restores.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from etl_core.destination.sql.driver import DriverDestination
from etl_sqlite.dialect import DIALECT
from etl_sqlite.failures import explain
from etl_sqlite.session import SqliteSession


class SqliteDatabase:
    """See Database. In WAL mode readers and the one writer do not wait for each other."""

    def __init__(self, path: Path, wait_seconds: float) -> None:
        self._path = path
        self._wait_seconds = wait_seconds

    def exists(self) -> bool:
        return self._path.exists()

    def reading(self, *, wait_seconds: float | None = None) -> AbstractContextManager[SqliteSession]:
        return self._session("BEGIN", self._wait_seconds if wait_seconds is None else wait_seconds)

    def transaction(self, *, tables: int = 1) -> AbstractContextManager[SqliteSession]:  # noqa: ARG002
        return self._session("BEGIN IMMEDIATE", self._wait_seconds)

    @contextmanager
    def _session(self, begin: str, wait_seconds: float) -> Iterator[SqliteSession]:
        try:
            # A reader's generator may be closed by another thread.
            opened = sqlite3.connect(self._path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
            with closing(opened) as connection:
                for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", begin):
                    connection.execute(statement)
                yield SqliteSession(connection)
                if connection.in_transaction:
                    connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise explain(error) from None


class SqliteDestination(DriverDestination[SqliteSession]):
    """See Destination."""

    def __init__(self, path: Path, pipeline: str, wait_seconds: float = 60.0) -> None:
        staging = path.with_name(path.name + ".staging") / pipeline
        super().__init__(DIALECT, SqliteDatabase(path, wait_seconds), pipeline, staging)
