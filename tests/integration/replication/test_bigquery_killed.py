"""The engine into BigQuery, killed by SIGKILL again and again while others write and change columns: it ends exact."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.config import DestinationConfig
from etl_core.errors import EtlError
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(600)
PATIENCE = 120.0
WRITTEN = (
    failpoints.COPY_STAGED,
    failpoints.COPY_PUBLISHED,
    failpoints.BATCH_WRITTEN,
    failpoints.CATCHUP_WRITTEN,
)


@pytest.fixture
def into_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> Lab:
    lab.config = replace(lab.config, destination=DestinationConfig("bigquery", bigquery_options))
    return lab


def proves_it(lab: Lab) -> None:
    """Brings BigQuery to where the source is, and compares every row of every table."""
    pipeline = lab.caught_up(lab.pipeline())
    others = {s.name.name: s.error for s in pipeline.store.tables() if s.state is not TableState.READY}
    assert not others
    different = [comparison for comparison in pipeline.verify() if not comparison.is_equal]
    assert not different
    assert lab.slots() == {f"etl_{lab.config.pipeline}"}


@pytest.mark.parametrize(
    "failpoint",
    [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.BATCH_WRITTEN, failpoints.CATCHUP_WRITTEN],
)
def test_killed_where_bigquery_has_it_and_nobody_knows(
    into_bigquery: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    lab = into_bigquery
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.pipeline().sync()
    proves_it(lab)


def test_killed_at_any_moment_while_columns_come_and_go(
    into_bigquery: Lab, churn: Callable[..., Churn], churned: Callable[..., None]
) -> None:
    lab = into_bigquery
    draw = random.Random(4)
    churned("a", "b")
    lab.publish()
    assert not [error for error in lab.pipeline().sync() if isinstance(error, EtlError)]
    with churn("a", "b"):
        for number in range(6):
            process = lab.process("run")
            lab.execute(
                f"ALTER TABLE a {'DROP COLUMN extra' if number % 2 else f'ADD COLUMN extra int DEFAULT {number}'}"
            )
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(draw.uniform(1.5, 5.0))
            process.kill()
            process.wait()
            lab.caught_up(lab.pipeline())  # each change in a backlog of its own
    lab.pipeline().sync()  # where a column came and went before the next one came, older rows are copied again
    proves_it(lab)
