"""When a silent server is given up, decided without a socket."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from etl_core.silence import SilentServer, Watch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("etl_core.silence.time.monotonic", clock)
    return clock


def silent_for(clock: Clock, watch: Watch, seconds: float) -> None:
    clock.now += seconds
    watch.check()


def test_before_the_limit_nothing_is_asked(clock: Clock) -> None:
    def is_working() -> bool:
        raise AssertionError("it was asked")

    watch = Watch(60.0, is_working)
    silent_for(clock, watch, 59.0)
    watch.heard()
    silent_for(clock, watch, 59.0)


def test_without_anybody_to_ask_the_limit_is_the_end(clock: Clock) -> None:
    watch = Watch(20.0)
    silent_for(clock, watch, 19.9)
    with pytest.raises(SilentServer, match="nothing was heard from the server for 20 s"):
        silent_for(clock, watch, 0.1)


def test_a_session_that_works_may_be_silent_for_hours(clock: Clock) -> None:
    watch = Watch(60.0, lambda: True)
    for _ in range(500):
        silent_for(clock, watch, 60.0)


def test_an_idle_session_is_given_up_once_its_answer_cannot_be_on_the_way(clock: Clock) -> None:
    watch = Watch(60.0, lambda: False)
    silent_for(clock, watch, 60.0)
    silent_for(clock, watch, 4.0)
    watch.heard()  # it was
    silent_for(clock, watch, 60.0)
    with pytest.raises(SilentServer) as given_up:
        silent_for(clock, watch, 5.0)
    assert given_up.value.is_reachable


def refused() -> bool:
    raise psycopg.OperationalError("refused")


@pytest.mark.parametrize(("ask", "words"), [(refused, "no new connection to it can be made")])
def test_a_server_that_cannot_be_asked_is_given_up(clock: Clock, ask: Callable[[], bool], words: str) -> None:
    watch = Watch(60.0, ask)
    with pytest.raises(SilentServer, match=words) as given_up:
        silent_for(clock, watch, 60.0)
    assert not given_up.value.is_reachable
