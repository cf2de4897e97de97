"""Connections that see one exported snapshot, each kept for the next table when one is done with it.

A connection costs 4 ms of CPU here and as much on the server, more than a small table does, and at a distance several
round trips.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psycopg

from etl_core.source.connection import Connection
from etl_core.source.snapshot import import_snapshot


class SnapshotConnections:
    """May be used from several threads. The connection that exported the snapshot must stay open.

    `connect` opens an ordinary connection in autocommit mode. One that is given back is closed, unless it `keeps` them.
    """

    def __init__(self, connect: Callable[[], Connection], snapshot_name: str, *, keeps: bool = False) -> None:
        self._connect = connect
        self._snapshot_name = snapshot_name
        self._keeps = keeps
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._taken: set[Connection] = set()

    def take(self) -> Connection:
        """One in a read-only transaction that sees what the snapshot does, without a lock on any table.

        Raises as `import_snapshot`, and as `connect`.
        """
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            import_snapshot(connection, self._snapshot_name)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._taken.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Ends its transaction, and with that its locks. One that was closed, or failed, is not used again. Idempotent.

        Never while a statement runs on it.
        """
        with self._lock:
            if connection not in self._taken:
                return
            self._taken.remove(connection)
        if not self._keeps or connection.closed:
            connection.close()
            return
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            connection.close()
            return
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        """Closes those that are not taken. Idempotent."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
