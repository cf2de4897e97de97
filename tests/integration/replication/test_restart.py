"""Killed at every boundary: the `etl` process dies there by SIGKILL while others write, starts again, ends exact."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from etl_core.replication import failpoints

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

PATIENCE = 120.0
BOUNDARIES = [name for name in failpoints.ALL if name != failpoints.RANGE_STAGED]
"""The other one is reached by helpers of a shared copy only: see test_shared_copy."""


@pytest.mark.parametrize("failpoint", BOUNDARIES)
def test_killed_twice_at_a_boundary(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):  # the second process recovers from the first one's end, and dies in the same place
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.assert_equal(pipeline)


def test_killed_again_and_again(lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None]) -> None:
    draw = random.Random(1)
    churned("a", "b", "c")
    lab.publish()
    with churn("a", "b", "c"):
        for _ in range(5):
            failpoint = f"{draw.choice(BOUNDARIES)}:kill:{draw.randint(1, 3)}"
            ended = lab.process("run", "--for", "2s", failpoint=failpoint).wait(PATIENCE)
            assert ended in (0, -signal.SIGKILL)
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.assert_equal(pipeline)
