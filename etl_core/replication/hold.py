"""A hold of the stream belongs to a live session: it ends with the process that asked for it, within a moment.

Whoever compares (see `verify.py`) takes an advisory lock on the source's server before it places the hold in the state
store, and keeps that session to the end. A stream that finds a hold asks the server whether the session is there. No
clock of a host decides: the time until which a hold is in force in the store only bounds what is left behind there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from etl_core.errors import EtlError, StateConflict
from etl_core.lsn import Lsn
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.source.connection import Connection
from etl_core.source.server import Turn, TurnHolder, end_turn, try_turn, turn_holder
from etl_core.state.store import Hold, StateStore

IN_FORCE = timedelta(days=7)
"""In the store, by the host's clock: longer than clocks differ and comparisons last."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at the holder's session."""


class StreamHold:
    """The hold as a stream sees it. `look` is one thread's."""

    def __init__(self, source: Source, store: StateStore, observer: Observer) -> None:
        self._source = source
        self._store = store
        self._observer = observer
        self._seen: tuple[str, float] | None = None
        self.is_told = True
        """Whether the observer is told; not by a comparison of its own hold."""

    def look(self) -> Hold | None:
        """The hold in force, if any. One whose session has ended is released. Raises TransientError."""
        hold = self._store.hold()
        if hold is None:
            self._seen = None
            return None
        if self._seen is not None and self._seen[0] == hold.owner and time.monotonic() < self._seen[1] + _LOOK_EVERY:
            return hold
        with self._source.connect("hold") as connection:
            holder = turn_holder(connection, Turn.HOLD, self._source.pipeline)
        if holder is None:
            self._store.release_hold(hold.owner)
            self._observer.on_waiting(f"the stream goes on: {hold.owner}, which held it, has ended; waiting is over")
            self._seen = None
            return None
        if self.is_told and (self._seen is None or self._seen[0] != hold.owner):
            self._observer.on_waiting(f"the stream is held by {_words(hold, holder)}: it waits until that has ended")
        self._seen = (hold.owner, time.monotonic())
        return hold

    def describe(self, connection: Connection) -> str | None:
        """Who holds the stream and since when, for a person; None if nobody does."""
        hold = self._store.hold()
        holder = None if hold is None else turn_holder(connection, Turn.HOLD, self._source.pipeline)
        return None if hold is None or holder is None else _words(hold, holder)


@contextlib.contextmanager
def holding(source: Source, store: StateStore) -> Iterator[str]:
    """A session that may place holds under the owner's name that it gives; they end with the block.

    Raises StateConflict while another process has it.
    """
    owner = f"verify-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    with source.connect("verify_hold") as connection:
        if not try_turn(connection, Turn.HOLD, source.pipeline):
            hold, holder = store.hold(), turn_holder(connection, Turn.HOLD, source.pipeline)
            who = "another comparison" if hold is None or holder is None else _words(hold, holder)
            raise StateConflict(
                f"pipeline {source.pipeline} is held by {who}", hint="wait until that comparison has ended"
            )
        left = store.hold()
        if left is not None:
            store.release_hold(left.owner)  # of a process that died: its session is gone
        try:
            yield owner
        finally:
            store.release_hold(owner)
            with contextlib.suppress(EtlError):  # it ends with the session, which the server may see a moment later
                end_turn(connection, Turn.HOLD, source.pipeline)


def place_hold(store: StateStore, owner: str, lsn: Lsn) -> None:
    """Asks every stream of the pipeline to stop at `lsn`, for as long as the owner's session is there."""
    store.request_hold(Hold(owner, datetime.now(UTC) + IN_FORCE, lsn))


def _words(hold: Hold, holder: TurnHolder) -> str:
    since = "" if holder.since is None else f", since {holder.since.astimezone():%H:%M:%S}"
    return f"{hold.owner} (server process {holder.pid}{since})"
