"""Ages by the server's clock, whatever ours says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from etl_core.protocol.timestamp import from_datetime
from etl_core.source.server_clock import ServerClock, age

SERVER = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""An hour or years from our clock: only the monotonic one is read."""


def test_the_quickest_message_counts_and_a_late_one_changes_nothing() -> None:
    seconds = [100.0]
    clock = ServerClock(lambda: seconds[0])
    clock.on_send_time(from_datetime(SERVER - timedelta(seconds=3)))  # 3 s on the way
    assert clock.now() == SERVER - timedelta(seconds=3)
    clock.on_send_time(from_datetime(SERVER))
    clock.on_send_time(from_datetime(SERVER - timedelta(seconds=40)))  # it waited in a buffer
    seconds[0] += 10
    assert clock.now() == SERVER + timedelta(seconds=10)
    assert age(SERVER, clock.now()) == 10
    assert age(SERVER + timedelta(minutes=1), clock.now()) == 0


def test_it_follows_a_clock_that_drifts_or_is_set_back() -> None:
    seconds = [0.0]
    clock = ServerClock(lambda: seconds[0])
    clock.on_send_time(from_datetime(SERVER))
    back = timedelta(minutes=5)
    for _ in range(3):
        seconds[0] += 61
        clock.on_send_time(from_datetime(SERVER - back + timedelta(seconds=seconds[0])))
    assert clock.now() == SERVER - back + timedelta(seconds=seconds[0])


def test_before_the_first_message_it_is_our_own() -> None:
    before = datetime.now(UTC)
    assert before <= ServerClock().now() <= datetime.now(UTC)
