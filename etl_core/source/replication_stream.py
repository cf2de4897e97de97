"""The reading end of a replication slot: frames into a segment, control messages out, standby status back.

https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-START-REPLICATION

libpq does the connection, its encryption and its framing; this file owns when to read and when to answer. Measured on
PostgreSQL 18 over TCP, 8 columns, CPU of our process per row: blocking reads 3.4 µs (one recv() for every second
row), reads that wait until 64 kB have come 0.8 µs, and the walsender gets 20 % faster because it no longer wakes us
for each of its sends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import pq, sql

from etl_core.errors import EtlError, SourceUnavailable
from etl_core.lsn import Lsn
from etl_core.protocol.messages import Message
from etl_core.protocol.pgoutput import parse_message
from etl_core.protocol.segment import KEPT_TAGS, Segment
from etl_core.protocol.timestamp import from_datetime
from etl_core.protocol.walsender import (
    XLOG_DATA,
    XLOG_DATA_HEADER_LENGTH,
    PrimaryKeepalive,
    StandbyStatusUpdate,
    parse_walsender_message,
)
from etl_core.silence import SilentServer
from etl_core.source.command import finish_command, is_good, result_error, run_command
from etl_core.source.connection import Connection, text_encoding
from etl_core.source.server_clock import ServerClock
from etl_core.source.sqlstate import stream_error, translate
from etl_core.source.tls import read_ahead

_XLOG_DATA: Final = XLOG_DATA
_HEADER: Final = XLOG_DATA_HEADER_LENGTH
_SEND_TIME: Final = 17
"""In a frame with WAL data, 8 bytes: when the server sent it, after the kind and two positions."""
READ_BYTES: Final = 1 << 20
"""After so many bytes somebody looks around, though there is more to be read."""
_READ_SECONDS: Final = 0.02
"""The same after so many seconds, though no message may be whole: one of a gigabyte comes slowly, and with synchronous
replication the server sends a keepalive for each transaction that it skips."""

_LSN: Final = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b")

_LOW_WATER: Final = 64 << 10
_LOW_WATER_WAIT_MS: Final = 5
_GATHER: Final = 0.0002
"""Seconds that a socket without a low-water mark is left alone. A unix socket is full after some 300 messages."""
_DRY_READS: Final = 1
"""How often libpq is asked again after a read that completed no message, where OpenSSL cannot be asked. libpq reads one
TLS record, of 16 kB at most, or as much as fits into the 8 kB that it has free at least: the rest left the socket."""
# The walsender send()s every row. While the window is open each of them crosses the whole TCP stack; while it is shut
# they gather in the sender's own buffer, at 4 instead of 5 µs of its CPU a row, and cross in one piece. So the
# buffer is small, and reading goes on beside decoding.
_RECEIVE_BUFFER: Final = 256 << 10

STATUS_INTERVAL: Final = 5.0
"""Seconds between unasked status updates; wal_sender_timeout is 60 s by default and seldom below 10."""


class Pause(Enum):
    """Why `receive` returned without a message."""

    QUIET = "quiet"
    """Nothing arrived within the given time."""
    READ = "read"
    """All that had come was read, or so much that it is time to look around; maybe no whole frame."""
    ASKED = "asked"
    """The server wants to know where we are. When it shuts down it asks again the moment it is answered, without end,
    until everything it has sent is flushed."""


class ReplicationStream:
    """Streams one slot with pgoutput protocol version 1: whole transactions, in commit order.

    Version 1 has the server hold back a transaction until it commits, so nothing that may still abort ever
    reaches us; large ones wait on the server's disk. One thread uses a stream.
    """

    def __init__(
        self,
        connection: Connection,
        slot: str,
        publication: str,
        start_lsn: Lsn,
        *,
        filtered: Callable[[], Sequence[str]] = tuple,
        messages: bool = False,
    ) -> None:
        """Starts streaming at `start_lsn`, or where the slot was confirmed if that is later; owns the connection.

        `filtered` gives the tables with a row filter, for the error of one that fails. With `messages` those of
        `pg_logical_emit_message` are sent too. Raises SlotInUse, SourceRefused
        or SourceUnavailable, and closes the connection then.
        """
        self.connection = connection
        self._filtered = filtered
        self._pgconn = connection.pgconn
        self.server_lsn = start_lsn
        """The end of WAL the server has sent us everything up to, as its last keepalive said."""
        self.read_bytes = READ_BYTES
        """After so many bytes `receive` returns."""
        self.told_at = 0.0
        """When it said so last, by `time.monotonic`; 0 if it has not yet."""
        self.reply_wanted = False
        """The server asked where we are, and maybe waits for an answer beyond what it was told, as when it shuts down.
        Whoever can answer more sets it back."""
        self._flushed = start_lsn
        self._status_due = time.monotonic() + STATUS_INTERVAL
        self._heard_at = time.monotonic()
        self._asked_at: float | None = None
        self._clock = ServerClock()
        self._dry_reads = 0
        try:
            self._start(slot, publication, start_lsn, messages=messages)
            self._socket = socket.socket(fileno=os.dup(self._pgconn.socket))
        except BaseException:
            connection.close()
            raise
        self._low_water = self._tune()
        self._is_readable = read_ahead(connection)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor of the socket to the server, as a connection has it."""
        return self._pgconn.socket

    def _start(self, slot: str, publication: str, start_lsn: Lsn, *, messages: bool) -> None:
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}{})").format(
            sql.Identifier(slot),
            sql.SQL(str(start_lsn)),
            sql.Literal(sql.Identifier(publication).as_string()),
            sql.SQL(", messages 'true'" if messages else ""),
        )
        try:
            if (encoding := text_encoding(self.connection)) != "UTF8":
                self.connection.execute(sql.SQL("SET client_encoding = {}").format(encoding))
            result = run_command(self.connection, command.as_bytes(self.connection), threading.Event())
            self._pgconn.nonblocking = 1
        except psycopg.Error as error:
            raise translate(error) from None
        if not is_good(result):
            raise result_error(result)

    def _tune(self) -> bool:
        """Whether the socket can wait for a low-water mark: TCP on Linux can, a unix socket ignores it."""
        if self._socket.family == getattr(socket, "AF_UNIX", None):
            return False
        # A server at a distance needs as large a buffer as the kernel finds out: what is on the way must fit in.
        if ipaddress.ip_address(self._socket.getpeername()[0].partition("%")[0]).is_loopback:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _LOW_WATER)
        except OSError:
            return False
        return True

    def receive(self, segment: Segment, wait: float) -> Message | Pause:
        """Appends frames to `segment`: all that has come, after waiting for something at most `wait` seconds.

        Returns a control message (any that is not kept as a frame) as soon as it comes, or a Pause. Raises
        SourceUnavailable when the connection ends or is silent, what `stream_error` makes of an error of the server,
        MalformedMessage.
        """
        get = self._pgconn.get_copy_data
        data, append = segment.data, segment.lengths.append
        begun = at = segment.size
        enough = at + self.read_bytes
        gathered = at
        has_waited, late = False, time.monotonic() + _READ_SECONDS
        try:
            while True:
                size, frame = get(1)
                if size > _HEADER:
                    if frame[_HEADER] in KEPT_TAGS:
                        append(size)
                        data += frame
                        at += size
                        if at >= enough:
                            return Pause.READ
                        continue
                    return self._on_control_message(bytes(frame))
                if size > 0:
                    if self._on_keepalive(bytes(frame)):
                        return Pause.ASKED
                elif size < 0:
                    raise self._end()
                elif at != segment.size:  # the last read brought some of them: there may be more
                    segment.size = at
                    self._dry_reads = 0
                    self._pgconn.consume_input()
                elif self._may_hold_more():
                    self._pgconn.consume_input()
                elif at > begun:
                    if time.monotonic() >= late or not self._flows(at - gathered):
                        return Pause.READ
                    gathered = at
                    self._pgconn.consume_input()
                elif has_waited and time.monotonic() >= late:
                    return Pause.READ
                elif not self._wait(wait):
                    self._check_silence()
                    return Pause.QUIET
                elif not has_waited:
                    has_waited, late = True, time.monotonic() + _READ_SECONDS
        except SilentServer as silent:
            self.connection.give_up(silent)
            raise translate(silent) from None
        except psycopg.Error as error:
            raise translate(error) from None
        finally:
            segment.size = at
            if at > begun:
                self._heard()
                sent = at - segment.lengths[-1] + _SEND_TIME
                self._clock.on_send_time(int.from_bytes(data[sent : sent + 8]))

    def _on_control_message(self, frame: bytes) -> Message:
        if frame[0] != _XLOG_DATA:
            raise SourceUnavailable(f"the server sent an unexpected message {frame[:1]!r} in the replication stream")
        self._heard()
        self._clock.on_send_time(int.from_bytes(frame[_SEND_TIME : _SEND_TIME + 8]))
        return parse_message(frame[_HEADER:])

    def _may_hold_more(self) -> bool:
        """Whether more may have been received than libpq has read: of that the socket says nothing."""
        if self._is_readable is not None:
            return self._is_readable()
        self._dry_reads += 1
        return self._dry_reads <= _DRY_READS

    def _flows(self, size: int) -> bool:
        """Leaves a stream alone for a moment that has brought `size` bytes since the last one; whether more is there.

        Every read costs, and every look around behind it, so that both pay for as much as can be had without delay.
        """
        if self._low_water:
            return size >= _LOW_WATER and bool(self._poll.poll(_LOW_WATER_WAIT_MS))
        if size:
            time.sleep(_GATHER)
        return size > 0

    def _wait(self, seconds: float) -> bool:
        """Waits until something has come and has libpq read it; False if nothing came."""
        # With the low-water mark set, poll() waits for 64 kB, or 5 ms for fewer. Only when not a byte has come
        # do we wait for the first one.
        if not (self._low_water and (self._poll.poll(_LOW_WATER_WAIT_MS) or self._has_bytes())):
            self._set_low_water(1)
            if not self._poll.poll(max(0, int(seconds * 1000))):
                self._set_low_water(_LOW_WATER)
                return False
            self._set_low_water(_LOW_WATER)
        self._pgconn.consume_input()
        self._dry_reads = 0
        self._heard()
        return True

    def _heard(self) -> None:
        self._heard_at, self._asked_at = time.monotonic(), None

    def _check_silence(self) -> None:
        """To be called when nothing is there to be read. Raises SilentServer.

        The server is asked for an answer after half of the limit, as PostgreSQL's own receiver does. Counted from when
        it was asked: while we did something else, what it sent has waited in the socket, and was found just now.
        """
        now, half = time.monotonic(), self.connection.silence / 2
        if self._asked_at is None:
            if now - self._heard_at >= half:
                self._asked_at = now
                self.send_status(reply_requested=True)
        elif now - self._asked_at >= half:
            if self._is_working():
                self._heard_at, self._asked_at = now, None
            else:
                raise SilentServer(self.connection.silence, is_reachable=True)

    def _is_working(self) -> bool:
        """Whether the server is too busy to answer: it may decode a large transaction none of which is published."""
        try:
            return self.connection.is_working is not None and self.connection.is_working()
        except psycopg.Error:
            raise SilentServer(self.connection.silence, is_reachable=False) from None

    def _end(self) -> EtlError:
        """Why the server ended the COPY, as its answer behind it says."""
        result = finish_command(self.connection)
        if result is None or is_good(result):
            return SourceUnavailable("the server ended the replication stream")
        # "slot …, output plugin …, in the change callback, associated LSN …", in the server's language.
        context = (result.error_field(pq.DiagnosticField.CONTEXT) or b"").decode("utf-8", "replace")
        lsn = _LSN.search(context)
        return stream_error(result_error(result), lsn=lsn and lsn[0], filtered=self._filtered())

    def _set_low_water(self, size: int) -> None:
        if self._low_water:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _has_bytes(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True  # also at the end of the stream, which consume_input() reports

    def _on_keepalive(self, frame: bytes) -> bool:
        """Takes note of the server's position, and answers if asked; whether it was."""
        message = parse_walsender_message(frame)
        if not isinstance(message, PrimaryKeepalive):
            raise SourceUnavailable(f"the server sent an unexpected message {frame[:1]!r} in the replication stream")
        self._heard()
        self.told_at = self._heard_at
        self.server_lsn = max(self.server_lsn, message.wal_end)
        self._clock.on_send_time(message.send_time)
        if message.reply_requested:
            self.reply_wanted = True
            self.send_status()
        return message.reply_requested

    def server_now(self) -> datetime:
        """The time by the server's clock, a little early; by ours before the server has said anything."""
        return self._clock.now()

    @property
    def awaits_reply(self) -> bool:
        """Whether the server, silent for long, was asked for a word and has not answered."""
        return self._asked_at is not None

    @property
    def flushed(self) -> Lsn:
        """What the server is told to be durable."""
        return self._flushed

    def confirm(self, flushed: Lsn) -> None:
        """Sets what the next status update reports as durable; it only grows. Durable and stored first, then this."""
        self._flushed = max(self._flushed, flushed)

    def keep_alive(self) -> None:
        """Sends a status update if one is due. To be called every second or so, also while nothing is read."""
        if time.monotonic() >= self._status_due:
            self.send_status()

    def send_status(self, *, reply_requested: bool = False) -> None:
        """Tells the server what is flushed, now; it answers a request with a keepalive. Raises SourceUnavailable."""
        self._status_due = time.monotonic() + STATUS_INTERVAL
        # "Written" is told as flushed too: what we hold in memory must not count for anything on the server.
        update = StandbyStatusUpdate(
            self._flushed, self._flushed, self._flushed, from_datetime(datetime.now(UTC)), reply_requested
        )
        try:
            self._pgconn.put_copy_data(update.to_bytes())
            self._pgconn.flush()
        except psycopg.Error as error:
            raise translate(error) from None

    def cut(self) -> None:
        """Ends the connection from another thread: whoever reads or writes next meets its end, the server at once."""
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the stream and the connection; the server frees the slot a moment later. Idempotent."""
        self._socket.close()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
