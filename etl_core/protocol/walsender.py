"""The envelope of the stream: what walsender and client say to each other inside CopyData, in both directions.

https://www.postgresql.org/docs/current/protocol-replication.html ("START_REPLICATION"), in the manual's order
and words. Clocks are microseconds since 2000-01-01 UTC (`etl_core.protocol.timestamp`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from etl_core.lsn import Lsn
from etl_core.protocol.wire import Buffer, Reader

XLOG_DATA = ord("w")
PRIMARY_KEEPALIVE = ord("k")
STANDBY_STATUS_UPDATE = ord("r")

XLOG_DATA_HEADER_LENGTH = 25
"""Bytes of an XLogData before its pgoutput message, whose tag is therefore byte 25 of the frame."""

_XLOG_DATA = struct.Struct(">QQq")
_PRIMARY_KEEPALIVE = struct.Struct(">Qq")
_STANDBY_STATUS_UPDATE = struct.Struct(">BQQQqB")


@dataclass(frozen=True, slots=True)
class XLogData:
    """A piece of the stream; for a logical slot exactly one message of the output plugin.

    `wal_start` is the position of the data (0/0 for some messages that stand for no WAL record), `wal_end` the server's
    current end of WAL, `send_time` its clock.
    """

    wal_start: Lsn
    wal_end: Lsn
    send_time: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PrimaryKeepalive:
    """The server is alive: `wal_end` is its current end of WAL as decoded for us.

    With `reply_requested` it wants a status update at once, or it will disconnect (`wal_sender_timeout`).
    """

    wal_end: Lsn
    send_time: int
    reply_requested: bool


@dataclass(frozen=True, slots=True)
class StandbyStatusUpdate:
    """Where we are. Each position is the byte after the last one `received`, `flushed` and `applied`.

    `flushed` is what the slot moves to: everything before it is forgotten by the server for ever.
    """

    received: Lsn
    flushed: Lsn
    applied: Lsn
    send_time: int
    reply_requested: bool = False

    def to_bytes(self) -> bytes:
        """The message, ready to be put into CopyData."""
        return _STANDBY_STATUS_UPDATE.pack(
            STANDBY_STATUS_UPDATE, self.received, self.flushed, self.applied, self.send_time, self.reply_requested
        )


def parse_walsender_message(data: Buffer) -> XLogData | PrimaryKeepalive:
    """Parses the content of one CopyData from the server. Raises MalformedMessage.

    The reader of row messages does not call this: it looks at bytes 0 and XLOG_DATA_HEADER_LENGTH of the frame only.
    """
    reader = Reader(data, "walsender message")
    tag = reader.byte()
    if tag == XLOG_DATA:
        return _parse_xlog_data(reader)
    if tag == PRIMARY_KEEPALIVE:
        return _parse_primary_keepalive(reader)
    raise reader.malformed(f"unknown tag 0x{tag:02x}", offset=0)


def _parse_xlog_data(reader: Reader) -> XLogData:
    reader.message = "XLogData"
    wal_start, wal_end, send_time = reader.unpack(_XLOG_DATA)
    return XLogData(Lsn(wal_start), Lsn(wal_end), send_time, reader.take(reader.remaining))


def _parse_primary_keepalive(reader: Reader) -> PrimaryKeepalive:
    reader.message = "Primary keepalive"
    wal_end, send_time = reader.unpack(_PRIMARY_KEEPALIVE)
    reply_requested = reader.flag("reply requested")
    reader.finish()
    return PrimaryKeepalive(Lsn(wal_end), send_time, reply_requested)
