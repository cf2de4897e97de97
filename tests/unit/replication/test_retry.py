"""The waits between tries."""

from __future__ import annotations

import pytest

from etl_core.replication.retry import Backoff


@pytest.mark.parametrize("tries", [1, 2, 8])
def test_one_wait_fewer_than_tries(tries: int) -> None:
    assert len(list(Backoff(tries=tries).waits())) == tries - 1


def test_waits_double_up_to_the_longest_and_are_shortened_by_a_quarter_at_most() -> None:
    for wait, full in zip(Backoff(1.0, 5.0, 7).waits(), [1.0, 2.0, 4.0, 5.0, 5.0, 5.0], strict=True):
        assert 0.75 * full <= wait <= full


def test_a_first_wait_beyond_the_longest_is_the_longest() -> None:
    assert max(Backoff(60.0, 5.0, 3).waits()) <= 5.0


def test_workers_do_not_wait_alike() -> None:
    assert len({next(Backoff().waits()) for _ in range(20)}) > 1
