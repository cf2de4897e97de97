"""Connections to PostgreSQL that give up a server from which nothing is heard any more.

TCP notices a peer that is gone, not a next hop that stays up while what is behind it died: an ssh tunnel, a load
balancer. Such a connection accepts everything and answers nothing, for ever. PostgreSQL's own receiver ends it by
wal_receiver_timeout; a client's library has no such limit, so every wait for an answer goes through a `Watch` here.

A statement may legitimately take hours without a word. So when the limit is reached, the server is asked on another
connection what the session does, and only a session that does not work for us is given up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg

SILENCE = 60.0
"""Seconds without a word after which a connection is given up; what wal_receiver_timeout is by default."""

_STATEMENT = 15.0
"""The same for a wait that hears no stop, so that a process may end meanwhile within half a minute."""
_GRACE = 5.0
"""Seconds that an answer may still be on its way after the server said that the session is idle."""
_CANCEL_TIMEOUT = 5.0

_Value = TypeVar("_Value")


class SilentServer(psycopg.OperationalError):
    """Nothing was heard from the server for the limit, and it does not work for us.

    `is_reachable`: another connection to it could be made.
    """

    def __init__(self, limit: float, *, is_reachable: bool) -> None:
        also = "" if is_reachable else ", and no new connection to it can be made"
        super().__init__(f"nothing was heard from the server for {limit:g} s{also}")
        self.is_reachable = is_reachable


class Watch:
    """One wait for the server. Counts from its beginning, or from the last thing that was heard.

    `is_working` says whether the server is reachable and works for the session that is waited for; None: no answer
    within the limit is reason enough. It may raise psycopg.Error where the server cannot be reached.
    """

    def __init__(self, limit: float, is_working: Callable[[], bool] | None = None) -> None:
        self._limit = limit
        self._is_working = is_working
        self.heard()

    def heard(self) -> None:
        """Something came from the server, or the wait begins only now."""
        self._since = time.monotonic()
        self._idle_since: float | None = None

    def check(self) -> None:
        """To be called when nothing has come for a moment. Raises SilentServer when the server is to be given up."""
        now = time.monotonic()
        if now - self._since < self._limit:
            return
        if self._is_working is None:
            raise SilentServer(self._limit, is_reachable=True)
        if self._idle_since is not None and now - self._idle_since < min(_GRACE, self._limit / 2):
            return
        try:
            is_working = self._is_working()
        except psycopg.Error:
            raise SilentServer(self._limit, is_reachable=False) from None
        if is_working:
            self.heard()
        elif self._idle_since is not None:
            raise SilentServer(self._limit, is_reachable=True)
        else:
            self._idle_since = time.monotonic()


class WatchedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection none of whose waits lasts beyond `silence`, in seconds, unless the server works for it.

    `statement_silence` is the limit, if it is shorter, of what psycopg itself waits for. Connecting is bounded by
    libpq's `connect_timeout`. `is_working` is as in `Watch`.
    """

    silence: float = SILENCE
    statement_silence: float = _STATEMENT
    is_working: Callable[[], bool] | None = None

    def watch(self) -> Watch:
        """A wait that begins now, for those who read the socket themselves."""
        return Watch(self.silence, self.is_working)

    def give_up(self, silent: SilentServer) -> None:
        """Closes the connection, and has the server end what it still does for it: it may hold a slot or locks."""
        if silent.is_reachable and self.is_working is not None:
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=_CANCEL_TIMEOUT)
        self.close()

    def wait(self, gen: Generator[Any, Any, _Value], *args: Any, **kwargs: Any) -> _Value:
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, gen: Generator[Any, Any, _Value]) -> Generator[Any, Any, _Value]:
        """`gen`, given up when it is told for too long that nothing is ready."""
        watch = Watch(min(self.silence, self.statement_silence), self.is_working)
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    watch.heard()
                else:
                    watch.check()
                wanted = gen.send(ready)
        except StopIteration as end:
            value: _Value = end.value
            return value
        except SilentServer as silent:
            gen.close()
            self.give_up(silent)
            raise
