"""How batches to BigQuery slow down and hurry again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from etl_core.destination.bigquery import pace as module
from etl_core.destination.bigquery.pace import Pace


@dataclass
class Clock:
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def write(pace: Pace, clock: Clock, ends: Callable[[], None], seconds: float = 1.0) -> None:
    pace.wait()
    clock.now += seconds
    ends()


def test_without_a_refusal_nothing_waits(clock: Clock) -> None:
    pace = Pace()
    for _ in range(50):
        write(pace, clock, pace.accepted)
    assert clock.slept == []


def test_refusals_double_the_distance_up_to_an_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    pace = Pace()
    for _ in range(5):
        write(pace, clock, pace.refused)
    assert clock.slept == [4.0, 9.0, 19.0, 29.0]
    assert "from now on a batch every 30 s at most" in caplog.text


def test_a_batch_that_took_longer_than_the_distance_does_not_wait(clock: Clock) -> None:
    pace = Pace()
    write(pace, clock, pace.refused)
    clock.now += 60
    write(pace, clock, pace.accepted)
    assert clock.slept == []


def test_after_batches_without_a_refusal_it_hurries_again(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="etl_core.destination.bigquery.pace")
    pace = Pace()
    for _ in range(3):
        write(pace, clock, pace.refused)
    distances = []
    for _ in range(61):
        write(pace, clock, pace.accepted)
        distances.append(pace.distance)
    assert (distances[18], distances[19], distances[39], distances[59]) == (20.0, 10.0, 5.0, 0.0)
    assert "from now on as batches come" in caplog.text
