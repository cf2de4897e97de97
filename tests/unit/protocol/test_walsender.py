"""The walsender envelope: both directions, truncation, flipped bytes, clocks."""

from __future__ import annotations

import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import MalformedMessage
from etl_core.lsn import Lsn
from etl_core.protocol.timestamp import from_datetime, to_datetime
from etl_core.protocol.walsender import (
    XLOG_DATA_HEADER_LENGTH,
    PrimaryKeepalive,
    StandbyStatusUpdate,
    XLogData,
    parse_walsender_message,
)
from etl_core.testing.pgoutput import build_primary_keepalive, build_xlog_data

lsns = st.integers(0, 2**64 - 1).map(Lsn)
times = st.integers(-(2**63), 2**63 - 1)


@given(lsns, lsns, times, st.binary(max_size=40))
def test_xlog_data_carries_one_message(wal_start: Lsn, wal_end: Lsn, send_time: int, message: bytes) -> None:
    frame = build_xlog_data(message, wal_start=wal_start, wal_end=wal_end, send_time=send_time)
    assert frame[XLOG_DATA_HEADER_LENGTH:] == message
    assert parse_walsender_message(frame) == XLogData(wal_start, wal_end, send_time, message)
    assert parse_walsender_message(memoryview(frame)) == XLogData(wal_start, wal_end, send_time, message)


@given(lsns, times, st.booleans())
def test_a_keepalive_is_parsed_back(wal_end: Lsn, send_time: int, reply: bool) -> None:
    frame = build_primary_keepalive(wal_end, send_time=send_time, reply_requested=reply)
    assert parse_walsender_message(frame) == PrimaryKeepalive(wal_end, send_time, reply)


@pytest.mark.parametrize("frame", [build_primary_keepalive(Lsn(7)), build_xlog_data(b"")], ids=["keepalive", "xlog"])
def test_a_header_cut_at_any_byte_is_malformed(frame: bytes) -> None:
    for length in range(len(frame)):
        with pytest.raises(MalformedMessage) as caught:
            parse_walsender_message(frame[:length])
        assert caught.value.offset <= length


@given(st.sampled_from([build_primary_keepalive(Lsn(7)), build_xlog_data(b"E")]), st.integers(1, 255))
def test_a_flipped_byte_is_malformed_or_another_message(frame: bytes, flip: int) -> None:
    for at in range(len(frame)):
        flipped = bytearray(frame)
        flipped[at] ^= flip
        with suppress(MalformedMessage):
            parse_walsender_message(flipped)


def test_a_keepalive_ends_where_it_ends() -> None:
    with pytest.raises(MalformedMessage, match=r"Primary keepalive: trailing bytes \(1\) at byte 18"):
        parse_walsender_message(build_primary_keepalive(Lsn(7)) + b"\0")


@given(lsns, lsns, lsns, times, st.booleans())
def test_a_status_update_is_what_the_manual_says(
    received: Lsn, flushed: Lsn, applied: Lsn, send_time: int, reply: bool
) -> None:
    data = StandbyStatusUpdate(received, flushed, applied, send_time, reply).to_bytes()
    assert len(data) == 34
    assert struct.unpack("!cQQQqB", data) == (b"r", received, flushed, applied, send_time, int(reply))


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_survives_the_servers_clock(moment: datetime) -> None:
    assert to_datetime(from_datetime(moment)) == moment


def test_the_servers_clock_begins_in_2000_utc() -> None:
    assert to_datetime(0) == datetime(2000, 1, 1, tzinfo=UTC)
    assert to_datetime(-1) == datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert from_datetime(datetime(2000, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0


@pytest.mark.parametrize("extreme", [2**63 - 1, -(2**63)])
def test_a_clock_beyond_python_raises_value_error(extreme: int) -> None:
    with pytest.raises(ValueError, match="years 1 to 9999"):
        to_datetime(extreme)


def test_a_moment_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        from_datetime(datetime(2026, 1, 1))
