"""Connections to the destination's PostgreSQL: settings as the source's have them, and a lock is not waited for long.

A connection is kept for the next transaction: to connect costs 10 ms and more, which is what a small batch costs.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import psycopg
from psycopg import IsolationLevel

from etl_core.destination.postgres.failures import explain, explain_commit, unavailable
from etl_core.errors import ConfigError, DestinationError, SourceRefused, SourceUnavailable
from etl_core.source.connection import Connection, connect

_KEPT = 2
# Readers and others wait behind a lock that is waited for. The work is tried again after it.
_LOCK_TIMEOUT = "SET lock_timeout = '30s'"
# Where it is off, NULL in an array is read as the word.
_NULLS = "SET array_nulls = on"
# What was reported as committed must be there after a crash of the server.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"

Mode = Literal["read", "write"]


class Server:
    """The destination's database, not connected yet. Used by several threads."""

    def __init__(self, conninfo: str, pipeline: str) -> None:
        self._conninfo = conninfo
        self._pipeline = pipeline
        self._guard = threading.Lock()
        self._kept: list[Connection] = []

    @contextmanager
    def transaction(self, mode: Mode) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end of the block, and rolled back if that fails.

        One that reads sees one state. Raises DestinationUnavailable, DestinationError.
        """
        connection = self._take()
        explained = explain
        try:
            is_reading = mode == "read"
            connection.isolation_level = IsolationLevel.REPEATABLE_READ if is_reading else IsolationLevel.READ_COMMITTED
            connection.read_only = is_reading
            yield connection
            explained = explain_commit
            connection.commit()
        except psycopg.Error as error:
            self._drop(connection, is_lost=connection.closed or isinstance(error, psycopg.OperationalError))
            raise explained(error) from None
        except BaseException:
            self._drop(connection, is_lost=connection.closed)
            raise
        self._keep(connection)

    def open(self) -> Connection:
        """A connection of one's own, for a `COPY` that may be left in the middle."""
        try:
            connection = connect(self._conninfo, pipeline=self._pipeline, role="destination", autocommit=True)
        except SourceUnavailable as error:
            raise unavailable(error) from None
        except SourceRefused as error:
            raise DestinationError(f"destination: {error}", hint=error.hint) from None
        except ConfigError as error:
            raise ConfigError(
                str(error).replace("source", "destination"), field="destination.dsn", hint=error.hint
            ) from None
        try:
            connection.execute(_LOCK_TIMEOUT)
            connection.execute(_NULLS)
            connection.execute(_DURABLE)
            connection.autocommit = False
        except psycopg.Error as error:
            connection.close()
            raise explain(error) from None
        return connection

    def _take(self) -> Connection:
        with self._guard:
            while self._kept:
                connection = self._kept.pop()
                if not connection.closed and _is_silent(connection):
                    return connection
                connection.close()
        return self.open()

    def _keep(self, connection: Connection) -> None:
        with self._guard:
            if len(self._kept) < _KEPT and not connection.closed:
                self._kept.append(connection)
                return
        connection.close()

    def _drop(self, connection: Connection, *, is_lost: bool) -> None:
        """After a failure. A lost connection means that the kept ones are lost, too, as after a restart."""
        with suppress(psycopg.Error):
            connection.close()  # which rolls back
        if is_lost:
            self.close()

    def close(self) -> None:
        """Closes what is kept. Idempotent."""
        with self._guard:
            kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()


def _is_silent(connection: Connection) -> bool:
    """Whether the server has said nothing since the last transaction, as it does when it ends the session."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)
