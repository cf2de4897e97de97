"""A DuckDB without a file of its own, in which a catalog is attached: the engine that reads and writes it.

It is opened when it is first used, and kept: to load the extensions costs a fifth of a second and more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import duckdb

_SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET threads = 2",
    "SET preserve_insertion_order = false",
)


@dataclass(slots=True)
class _Opened:
    connection: duckdb.DuckDBPyConnection
    cursors: int = 0
    is_left: bool = False
    """Closed with its last cursor."""


class Instance:
    """Used by several threads, each by cursors of its own.

    `prepare` loads, configures and attaches what is needed into an instance that was just opened. What must not stay
    attached, such as a file that others wait for, `attach` attaches before the first cursor, and `detach` takes it away
    after the last: they are statements.
    """

    def __init__(
        self,
        prepare: Callable[[duckdb.DuckDBPyConnection], None],
        *,
        attach: str | None = None,
        detach: str | None = None,
    ) -> None:
        self._prepare = prepare
        self._attach = attach
        self._detach = detach
        self._guard = threading.Lock()
        self._opened: _Opened | None = None

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own for the `with` block. Raises what DuckDB and `prepare` raise.

        After a failure in the block the next one is of a new instance, once nobody else uses what only one can attach:
        DuckDB itself may not be able to go on, or what it is connected to does not answer.
        """
        opened, cursor = self._begin()
        try:
            yield cursor
        except Exception:
            self._leave(opened)
            raise
        finally:
            self._end(opened, cursor)

    def _begin(self) -> tuple[_Opened, duckdb.DuckDBPyConnection]:
        with self._guard:
            opened = self._opened
            if opened is None:
                opened = self._opened = _Opened(self._open())
            if not opened.cursors and self._attach is not None:
                opened.connection.execute(self._attach)
            cursor = opened.connection.cursor()
            opened.cursors += 1
        return opened, cursor

    def _end(self, opened: _Opened, cursor: duckdb.DuckDBPyConnection) -> None:
        with self._guard:
            cursor.close()
            opened.cursors -= 1
            if opened.cursors:
                return
            if self._detach is not None:
                try:  # also of one that is closed next: whoever still has rows of it would keep what is attached
                    opened.connection.execute(self._detach)
                except duckdb.Error:  # it is taken away with the instance, then
                    opened.is_left = True
            if opened.is_left:
                self._forget(opened)
                opened.connection.close()

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

    def _leave(self, opened: _Opened) -> None:
        """The cursors of other threads keep the instance until they are closed."""
        with self._guard:
            opened.is_left = True
            if self._attach is None:  # else what is attached cannot be attached in another one meanwhile
                self._forget(opened)

    def close(self) -> None:
        """The next cursor opens it again; cursors that are open keep it. Idempotent."""
        with self._guard:
            opened = self._opened
            if opened is None:
                return
            opened.is_left = True
            if self._attach is None or not opened.cursors:
                self._opened = None
            if not opened.cursors:
                with suppress(duckdb.Error):
                    opened.connection.close()

    def _forget(self, opened: _Opened) -> None:
        if self._opened is opened:
            self._opened = None
