"""A DuckDB without a file of its own, in which a catalog is attached: the engine that reads and writes it.

It is opened when it is first used, and kept: to load the extensions costs a fifth of a second and more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb

_SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET threads = 2",
    "SET preserve_insertion_order = false",
)


class Instance:
    """Used by several threads, each by cursors of its own.

    `prepare` loads, configures and attaches what is needed into an instance that was just opened.
    """

    def __init__(self, prepare: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        self._prepare = prepare
        self._guard = threading.Lock()
        self._opened: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own for the `with` block. Raises what DuckDB and `prepare` raise.

        After a failure that says that DuckDB itself cannot go on, the next one is of a new instance.
        """
        with self._guard:
            if self._opened is None:
                self._opened = self._open()
            opened = self._opened
            cursor = opened.cursor()
        try:
            yield cursor
        except (duckdb.FatalException, duckdb.InternalException):
            self._leave(opened)
            raise
        finally:
            cursor.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        try:
            for setting in _SETTINGS:
                connection.execute(setting)
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _leave(self, opened: duckdb.DuckDBPyConnection) -> None:
        """Cursors of other threads keep the instance until they are closed."""
        with self._guard:
            if self._opened is opened:
                self._opened = None
        opened.close()

    def close(self) -> None:
        """The next cursor opens it again. Idempotent."""
        with self._guard:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
