"""How far the main stream is durable, as the state store has it.

What is stored is durable in the destination, and stored before it is confirmed. It is compared when it is stored: a
stream that was replaced stores nothing more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from etl_core.errors import SlotInUse, StateConflict, TransientError
from etl_core.lsn import Lsn
from etl_core.replication.observer import Observer
from etl_core.replication.retry import Backoff
from etl_core.source.server_clock import age
from etl_core.state.store import ReplicationProgress, StateStore


class StoredProgress:
    """Of one stream, which goes on from `resumes`; called by its conducting and its writing thread.

    `is_stopped_within` waits for so many seconds, and says whether the stream ends; `server_now` is the source's clock.
    """

    def __init__(
        self,
        store: StateStore,
        observer: Observer,
        backoff: Backoff,
        is_stopped_within: Callable[[float], bool],
        server_now: Callable[[], datetime],
        *,
        resumes: ReplicationProgress | None,
    ) -> None:
        self._store = store
        self._observer = observer
        self._backoff = backoff
        self._is_stopped_within = is_stopped_within
        self._server_now = server_now
        self._lock = threading.Lock()
        self._rows = resumes.rows if resumes else 0
        self._stored = resumes
        self._stored_at = time.monotonic()
        self.commit_time = resumes.commit_time if resumes else None
        """Of the last transaction that was written."""
        self.written_lsn = resumes.written_lsn if resumes else None
        """The end of the last batch that was written; see `ReplicationProgress`."""

    def store(self, flushed: Lsn, *, rows: int = 0, lag_since: datetime | None = None) -> None:
        """Stores how far everything is durable, `rows` more than before. Tried again while the store is away.

        The lag is the age of the last commit, `lag_since`, by the server's clock; None says that nothing more is there,
        so there is no lag. Raises SlotInUse if another process has the stream since.
        """
        with self._lock:
            self._save(flushed, rows, lag_since)

    def note_lag(self, flushed: Lsn, since: datetime) -> None:
        """Stores that a change which was committed at `since` waits to be written; not while progress is being stored.

        Without it nobody could see how late a stream is that can write nothing.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            stored = self._stored
            if stored is None or stored.flushed_lsn > flushed:
                return
            lag = age(since, self._server_now())
            with contextlib.suppress(TransientError, StateConflict):  # whoever stores progress meets it, too
                self._stored = self._store.save_progress(replace(stored, lag_seconds=lag), stored)
        finally:
            self._lock.release()

    def _save(self, flushed: Lsn, rows: int, lag_since: datetime | None) -> None:
        self._rows += rows
        now, clock = datetime.now(UTC), time.monotonic()
        rate = rows / (clock - self._stored_at)
        self._stored_at = clock
        lag = age(lag_since, self._server_now()) if lag_since else 0.0
        claim = None if self._stored is None else self._stored.claim
        progress = ReplicationProgress(flushed, self.commit_time, self._rows, rate, lag, now, self.written_lsn, claim)
        waits = self._backoff.waits()
        while True:
            try:
                self._stored = self._store.save_progress(progress, self._stored)
                return
            except StateConflict:
                found = self._store.progress()
                if found is not None and replace(found, updated_at=now) == progress:
                    self._stored = found  # by an earlier try, whose answer was lost
                    return
                if found is not None and claim is not None and found.claim == claim and found != self._stored:
                    self._stored = found  # of this stream: a lag whose answer was lost
                    continue
                raise SlotInUse(
                    "another process streams the same pipeline since this one lost its connection",
                    hint="nothing was lost: what it has not stored is read again",
                ) from None
            except TransientError as error:
                wait = next(waits, None)
                if wait is None or self._is_stopped_within(wait):
                    raise
                self._observer.on_retry(error, wait)
