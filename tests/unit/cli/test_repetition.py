"""A failure that repeats is said at once, and then ever less often."""

from __future__ import annotations

import itertools

import pytest

from etl_core.cli.repetition import FIRST_PAUSE, LONGEST_PAUSE, Repetition
from etl_core.errors import EtlError, SourceUnavailable


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repetition(clock: Clock) -> Repetition:
    return Repetition(clock)


def lost(process: int = 7) -> EtlError:
    return SourceUnavailable(f"process {process} was lost at 0/{process:X}A", hint="wait")


def test_the_first_is_said_with_its_hint(repetition: Repetition) -> None:
    assert repetition.sentence(lost(), 0.4) == "process 7 was lost at 0/7A; trying again in 0.4 s → wait"


def test_no_sentence_promises_a_try_in_no_time(repetition: Repetition) -> None:
    assert repetition.sentence(SourceUnavailable("lost"), 0.0) == "lost; trying again"


def test_the_pauses_between_the_same_failure_grow(repetition: Repetition, clock: Clock) -> None:
    said, process = [], 1
    for _ in range(2 * 3600):
        if repetition.sentence(lost(process), 0.0) is not None:
            said.append(clock.now)
        clock.now += 0.5
        process += 1
    pauses = [after - before for before, after in itertools.pairwise(said)]
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert max(pauses) == LONGEST_PAUSE


def test_how_often_it_was_not_said_is_told(repetition: Repetition, clock: Clock) -> None:
    repetition.sentence(lost(), 1.0)
    for _ in range(10):
        clock.now += 1.0
        sentence = repetition.sentence(lost(), 1.0)
    assert sentence == "process 7 was lost at 0/7A (10 times in 10 s); trying again in 1.0 s → wait"


def test_another_failure_is_said_at_once(repetition: Repetition) -> None:
    assert repetition.sentence(lost(), 1.0)
    assert repetition.sentence(SourceUnavailable("refused"), 1.0)


def test_a_failure_that_was_over_begins_anew(repetition: Repetition, clock: Clock) -> None:
    for _ in range(100):
        repetition.sentence(lost(), 1.0)
        clock.now += 1.0
    clock.now += 2 * LONGEST_PAUSE
    assert repetition.sentence(lost(), 1.0) == "process 7 was lost at 0/7A; trying again in 1.0 s → wait"
