"""The stream worker: reads the main slot, cuts batches, has them written, confirms them, takes tables in.

One thread conducts (this one); the `Writer`'s thread writes. A batch is written while the next is read, never more.

Invariants:
- what is confirmed was stored, what was stored is durable in the destination;
- a keepalive moves the position only when nothing is in flight;
- tables are taken in, and the stream held, at the end of a batch, while nothing of the open transaction was described.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from etl_core.config import BatchConfig
from etl_core.errors import EtlError, SourceUnavailable
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.applier import Applier
from etl_core.replication.assembler import Assembled, Assembler
from etl_core.replication.batching import batch_is_due, bytes_per_read
from etl_core.replication.failpoints import CONFIRMED, reach
from etl_core.replication.writer import Writer
from etl_core.source.replication_stream import Pause, ReplicationStream
from etl_core.source.server_clock import age
from etl_core.source.shutdown_watch import ShutdownWatch

_WAIT = 0.2
"""Seconds to wait for data before looking at the rest of the world."""
_WAIT_AT_HAND = 0.005
"""The same while transactions are at hand, which may become due."""
_NEAR_LIMIT = 0.02
"""Seconds without data after which the server is asked whether it has passed the limit."""
_WAIT_ASKED = 0.05
"""Seconds to wait for the batch in flight before a server that asks again and again is told the same."""
_LOOK_AROUND = 0.5
"""Seconds between two looks at table states and holds."""
_STATUS_UNREAD = 0.5
"""Seconds between two status updates while nothing is read."""
_SHUTDOWN_PATIENCE = 3.0
"""Seconds in which what is being written may be finished and confirmed when the server shuts down."""
_NOTE_LAG = 2.0
"""Seconds between two notes of how long a change waits to be written."""
_STORE_IDLE = 5.0
"""Seconds between two stored positions while nothing changes: how far WAL is kept on a quiet database, and how old what
`etl status` knows of the lag may be. The server says unasked only twice a minute that nothing has changed."""


class Ended(Enum):
    """Why a stream ended."""

    REACHED = "reached"
    """The limit."""
    STOPPED = "stopped"
    """Somebody asked."""
    TIME = "time"
    """The time given."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """How a stream ended, and where: everything up to `lsn` is durable."""

    ended: Ended
    lsn: Lsn


class Boundary(Protocol):
    """What else happens behind a whole transaction, maybe while the next one is read; see `handover.py`."""

    def look_around(self, position: Lsn, busy_wait: Callable[[], bool]) -> Lsn | None:
        """Takes tables in that are ready for it at `position`, the end of the last batch cut.

        `busy_wait` is called again and again while it waits, and returns whether the stream was asked to stop.
        Returns the LSN at which the stream is to be held, None if it is not.
        """

    def passed(self, tables: Collection[TableId], end_lsn: Lsn) -> None:
        """A batch that ends at `end_lsn` was cut; it holds changes of `tables`, replicated or not."""

    def held_at(self, lsn: Lsn) -> None:
        """The stream stands at `lsn`, everything before it durable."""

    def leave(self) -> None:
        """The server shuts down: lets go of every connection that would keep it from that."""

    def is_settled(self) -> bool:
        """Whether no table is still to be taken in, so that a stream may end without leaving one behind."""


class StreamWorker:
    """Streams until a limit, a time or a stop. Used once."""

    def __init__(
        self,
        stream: ReplicationStream,
        assembler: Assembler,
        applier: Applier,
        boundary: Boundary,
        limits: BatchConfig,
        *,
        name: str,
        stop: threading.Event,
        watch: ShutdownWatch | None = None,
    ) -> None:
        self._stream = stream
        stream.read_bytes = bytes_per_read(limits)
        self._assembler = assembler
        self._applier = applier
        self._boundary = boundary
        self._limits = limits
        self._stop = stop
        self._position = assembler.end_lsn
        self._writer = Writer(applier, name=name, start_lsn=assembler.end_lsn)
        self._batch_since: float | None = None
        self._next_look = 0.0
        self._watch = watch
        self._next_watch = 0.0
        self._leave_at: float | None = None
        self._next_status = 0.0
        self._next_lag = time.monotonic() + _NOTE_LAG
        self._next_store = time.monotonic() + _STORE_IDLE
        self._next_question = self._next_store
        self._stored_at = 0.0
        self._deadline: float | None = None
        self._over_at: Lsn | None = None
        self._finishes: Callable[[], bool] = lambda: False
        self._quiet = False
        self._hold: Lsn | None = None

    def run(
        self,
        *,
        until: Lsn | None = None,
        seconds: float | None = None,
        finishes: Callable[[], bool] | None = None,
    ) -> Streamed:
        """Streams until the position `until` is reached exactly, for `seconds`, or until stopped.

        When they are over it goes on as long as `finishes()`, and to the end of the transaction that is being read.
        On return the writer is done and the last position confirmed. Raises what ended it: SourceUnavailable,
        DestinationUnavailable, a PermanentError.
        """
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._finishes = finishes or self._finishes
        try:
            # Before the first batch: the stream may be held where it stands.
            self._hold = self._boundary.look_around(self._position, self._service)
            while True:
                ended = self._step(until)
                if ended is not None:
                    return Streamed(ended, self._finish())
        finally:
            self._assembler.discard()
            self._applier.give_up()
            self._writer.close()

    def _step(self, until: Lsn | None) -> Ended | None:
        limit = self._limit(until)
        wait = _NEAR_LIMIT if limit is not None else _WAIT if self._batch_since is None else _WAIT_AT_HAND
        try:
            message = self._stream.receive(self._assembler.segment, wait)
        except EtlError:
            self._write_received(limit)
            raise
        self._quiet = message is Pause.QUIET
        # What is beyond the limit is put aside, not dropped: a hold ends or moves on, and it goes on.
        while self._assembler.scan(limit) and limit is not None:
            ended = self._at_limit(limit, until)
            if ended is not None:
                return ended
            limit = self._limit(until)
        if message is Pause.ASKED:
            self._writer.wait_idle(_WAIT_ASKED)
        elif not isinstance(message, Pause):
            self._assembler.on_message(message)
        self._keep_alive()
        return self._after_read(until)

    def _limit(self, until: Lsn | None) -> Lsn | None:
        if self._hold is None or until is None:
            return until if self._hold is None else self._hold
        return min(until, self._hold)

    def _after_read(self, until: Lsn | None) -> Ended | None:
        """What is looked at once per read. A transaction may be open: all is done behind the last whole one."""
        now = time.monotonic()
        if self._assembler.has_changes and self._batch_since is None:
            self._batch_since = now
        if self._stop.is_set():
            self._cut()
            return Ended.STOPPED
        if self._is_over(now) and self._may_end():
            self._cut()
            return Ended.TIME
        if self._is_due(now):
            self._cut()
        elif not self._assembler.has_changes and not self._assembler.in_transaction:
            self._advance_idle(now)
        limit = self._limit(until)
        if limit is not None and self._received() >= limit:
            return self._at_limit(limit, until)
        if limit is not None and self._quiet:
            self._stream.send_status(reply_requested=True)
        # A table is taken in at the position of the last cut, so nothing may be at hand. What was described of the open
        # transaction was so by what was replicated then.
        if now >= self._next_look and not self._assembler.has_changes and not self._assembler.has_described:
            self._next_look = now + _LOOK_AROUND
            self._hold = self._boundary.look_around(self._position, self._service)
        return None

    def _received(self) -> Lsn:
        """Up to where everything has come. Within a transaction the server's position says nothing of its end."""
        end = self._assembler.end_lsn
        return end if self._assembler.in_transaction else max(end, self._stream.server_lsn)

    def _is_over(self, now: float) -> bool:
        if self._deadline is None or now < self._deadline:
            return False
        if not self._finishes():
            return True
        self._deadline, self._over_at = now + _LOOK_AROUND, None
        return False

    def _may_end(self) -> bool:
        """Whether the transaction that was open when the time was over has come wholly.

        One that takes longer than the time given would never be passed: the next run reads it from its beginning.
        """
        if self._over_at is None:
            self._over_at = self._assembler.end_lsn
        return not self._assembler.in_transaction or self._assembler.end_lsn > self._over_at

    def _is_due(self, now: float) -> bool:
        if self._batch_since is None:
            return False
        return batch_is_due(
            self._limits,
            rows=self._assembler.rows,
            size=self._assembler.size,
            age=now - self._batch_since,
            quiet=self._quiet or self._stream.reply_wanted,
            writer_idle=self._writer.is_idle,
            last_write=self._writer.last_write,
        )

    def _cut(self) -> None:
        """Hands what is at hand to the writer, waiting for it to be free. Returns while it writes."""
        self._wait_writer()
        if self._assembler.has_changes:
            batch = self._assembler.take()
            self._position = batch.end_lsn
            self._boundary.passed(batch.tables, batch.end_lsn)
            self._writer.submit(batch)
        self._batch_since = None

    def _write_received(self, limit: Lsn | None) -> None:
        """Has written what came whole before the stream broke, which may break at the same place the next time.

        Returns while it is written. Raises nothing: the first error is the one to tell.
        """
        with contextlib.suppress(EtlError):
            self._assembler.scan(limit)
            if self._assembler.has_changes:
                batch = self._assembler.take()
                while not self._writer.wait_idle(_WAIT):
                    pass
                self._boundary.passed(batch.tables, batch.end_lsn)
                self._writer.submit(batch)

    def _advance_idle(self, now: float) -> None:
        """Moves the position over WAL that holds nothing of ours, when nothing is in flight."""
        if not self._writer.is_idle:
            return
        position = self._received()
        self._position = max(self._position, position)
        if self._applier.is_rename_due(position):
            self._writer.submit(Assembled((), position, None, 0))
            return
        is_old = now >= self._next_store
        moved = position > self._writer.flushed and (is_old or self._stream.reply_wanted)
        if moved or (is_old and self._stream.told_at > self._stored_at):
            self._store_idle(position)
            self._keep_alive()
            self._stream.send_status()
        elif is_old and self._quiet and now >= self._next_question:
            self._next_question = now + _STORE_IDLE
            self._stream.send_status(reply_requested=True)
        self._stream.reply_wanted = False

    def _store_idle(self, position: Lsn) -> None:
        self._stored_at = time.monotonic()
        self._next_store = self._stored_at + _STORE_IDLE
        self._applier.store_progress(position)
        self._writer.moved(position)

    def _at_limit(self, limit: Lsn, until: Lsn | None) -> Ended | None:
        """All before `limit` has come, and is made durable. Ends, or stands still while held.

        The position is exactly `limit` then, unless it was beyond when the limit was set.
        """
        self._cut()
        self._wait_writer()
        self._position = max(self._position, limit)
        if self._applier.is_rename_due(limit):
            self._writer.submit(Assembled((), limit, None, 0))
            self._wait_writer()
        if limit > self._writer.flushed:
            self._store_idle(limit)
        if until is not None and limit >= until:
            self._settle()
            return Ended.REACHED
        while self._hold is not None and self._hold <= limit and not self._stop.is_set():
            if self._is_over(time.monotonic()):
                return Ended.TIME
            self._boundary.held_at(limit)
            self._stop.wait(_WAIT / 2)
            self._keep_alive_unread()
            self._hold = self._boundary.look_around(self._position, self._service)
        return Ended.STOPPED if self._stop.is_set() else None

    def _settle(self) -> None:
        """Waits at the limit for the tables that are being copied or catch up."""
        while not (self._boundary.is_settled() or self._stop.wait(_WAIT / 2)):
            self._service()
            self._boundary.look_around(self._position, self._service)

    def _wait_writer(self) -> None:
        while not self._writer.wait_idle(_WAIT):
            self._keep_alive_unread()

    def _service(self) -> bool:
        """What must go on while the conductor waits for something else; whether it was asked to stop meanwhile."""
        self._keep_alive_unread()
        self._writer.is_idle  # noqa: B018 raises what the writer failed with
        return self._stop.is_set()

    def _keep_alive_unread(self) -> None:
        """While nothing is read: the server's question after half its wal_sender_timeout is answered unasked."""
        self._keep_alive()
        if time.monotonic() >= self._next_status:
            self._next_status = time.monotonic() + _STATUS_UNREAD
            self._stream.send_status()

    def _note_lag(self) -> None:
        """Every `_NOTE_LAG` seconds while a change waits for more than that: the store is told how long."""
        now = time.monotonic()
        if now < self._next_lag or self._stop.is_set():
            return
        self._next_lag = now + _NOTE_LAG
        since = self._writer.waiting_since or self._assembler.waiting_since
        if since is not None and age(since, self._stream.server_now()) >= _NOTE_LAG:
            self._applier.note_lag(self._writer.flushed, since)

    def _leave_on_shutdown(self) -> None:
        """Raises SourceUnavailable, the connection closed, when the server has waited long enough for our last word."""
        now = time.monotonic()
        if self._watch is None or now < self._next_watch:
            return
        self._next_watch = now + _WAIT
        if self._leave_at is None:
            self._leave_at = now + _SHUTDOWN_PATIENCE if self._watch.sees_shutdown() else None
        elif now >= self._leave_at:
            self._boundary.leave()
            self._stream.close()
            raise SourceUnavailable(
                "the server of the source is shutting down",
                hint="it was not kept waiting for what is not written yet: that is read again when it is up",
            )

    def _keep_alive(self) -> None:
        self._leave_on_shutdown()
        self._note_lag()
        flushed = self._writer.flushed
        if flushed > self._stream.flushed:
            self._stream.confirm(flushed)
            reach(CONFIRMED, self._stream)
        self._stream.keep_alive()

    def _finish(self) -> Lsn:
        """Waits for the last batch and tells the server. The position everything is durable up to."""
        self._wait_writer()
        self._stream.confirm(self._writer.flushed)
        with contextlib.suppress(EtlError):  # the position is stored; else the server is told at the next start
            self._stream.send_status()
        return self._writer.flushed
