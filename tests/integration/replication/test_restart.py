"""Killed at every boundary: the `etl` process dies there by SIGKILL while others write, starts again, ends exact."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from etl_core.cli.exit_status import DONE, NOT_FINISHED
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

PATIENCE = 300.0
ELSEWHERE = {
    failpoints.RANGE_STAGED,  # test_shared_copy
    failpoints.POSITION_MOVED,  # these: test_restart_stopped
    failpoints.GROUP_WRITTEN,
    failpoints.SLOT_COPIED,
    failpoints.COMPLETE_TOLD,
    failpoints.TABLE_STOPPED,
    failpoints.GAP_STORED,
    failpoints.TABLE_SET_BACK,
}
BOUNDARIES = [name for name in failpoints.ALL if name not in ELSEWHERE]
"""Those that an ordinary run reaches."""
OF_CATCH_UPS = {failpoints.CATCHUP_WRITTEN, failpoints.SYNC_DONE_STORED}
"""Those that the second process need not reach: the first one's table has caught up, and the other may need not."""
OF_COPIES = {
    failpoints.COPY_STARTED,
    failpoints.SLOT_CREATED,
    failpoints.COPY_STAGED,
    failpoints.COPY_PUBLISHED,
    failpoints.COPY_FINISHED,
}
"""Both tables are copied together first. The second process dies in a copy of one alone, if the stream passed it."""


def stop_when_ready(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    """Waits until it has died, or every table streams."""
    with lab.unprepared() as pipeline:
        while process.poll() is None:
            if all(status.state is TableState.READY for status in pipeline.store.tables()):
                process.terminate()
                return
            time.sleep(0.05)


@pytest.mark.parametrize("failpoint", [*BOUNDARIES, f"{failpoints.SLOT_RECORDED}:2"])
def test_killed_twice_at_a_boundary(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        name, _, time = failpoint.partition(":")  # the second slot is that of a copy
        for number in range(2):  # the second process recovers from the first one's end, and dies in the same place
            hits = 2 if number and name in OF_COPIES else time or 1
            process = lab.process("run", failpoint=f"{name}:kill:{hits}")
            if number and name in OF_CATCH_UPS | OF_COPIES:
                stop_when_ready(lab, process)
            assert process.wait(PATIENCE) in ((0, -signal.SIGKILL) if number else (-signal.SIGKILL,))
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
            assert ended in (DONE, NOT_FINISHED, -signal.SIGKILL)  # a table may be to be copied again by then
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.assert_equal(pipeline)
