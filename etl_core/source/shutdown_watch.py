"""Hears that the server shuts down, so that a stream which cannot confirm what it was sent lets go of it.

A fast shutdown ends ordinary sessions first, and then waits, without a limit, until every walsender's client has
confirmed everything. A client that waits for its destination, or for a state store on that same server, would keep the
server from going down. So a session that does nothing watches: it is ended the moment the shutdown begins.
https://www.postgresql.org/docs/current/server-shutdown.html
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable

import psycopg

from etl_core.errors import EtlError
from etl_core.source.connection import Connection


class ShutdownWatch:
    """One thread's. `connect` opens an ordinary session."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._session: Connection | None = None

    def begin(self) -> None:
        """Opens the session. Raises what `connect` raises."""
        self._session = self._connect()

    def sees_shutdown(self) -> bool:
        """Whether the server refuses sessions since it ended ours; costs one poll as long as it has not."""
        if self._session is None:
            return True
        if not self._is_ended(self._session):
            return False
        self.close()
        try:
            self._session = self._connect()
        except EtlError:
            return True
        return False  # somebody ended just that session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _is_ended(self, session: Connection) -> bool:
        poll = select.poll()
        with contextlib.suppress(psycopg.Error):
            poll.register(session.pgconn.socket, select.POLLIN)
            if not poll.poll(0):
                return False
            session.pgconn.consume_input()
            # The server's last words come before the end of the connection, which the next look finds.
            return False
        return True
