"""From PostgreSQL into a double of Snowflake: what changes at the source, and processes that are killed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("snowflake.connector", reason="the extra is missing: pip install 'etl-dagster[snowflake]'")

from etl_core.config import DestinationConfig
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import create_database

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(600)
PATIENCE = 300.0


@pytest.fixture(autouse=True)
def _double(lab: Lab) -> Iterator[None]:
    """Another database of the server, which stands for Snowflake."""
    made = create_database(lab.database.server)
    options = {"dsn": made.dsn, "staging": str(lab.path.with_name("staging"))}
    lab.config = replace(
        lab.config, destination=DestinationConfig("etl_core.testing.servers.snowflake_double:DOUBLE", options)
    )
    yield
    lab.close()
    made.drop()


def _assert_same(lab: Lab) -> None:
    pipeline = lab.caught_up(lab.pipeline())
    assert not {s.name.name: s.error for s in pipeline.store.tables() if s.state is not TableState.READY}
    compared = list(pipeline.verify())
    assert compared
    assert not [comparison for comparison in compared if not comparison.is_equal]


def test_schema_changes_follow_with_and_without_a_key(lab: Lab) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, name varchar(5), price numeric(6,2), gone int, tags text[])")
    lab.execute("INSERT INTO a VALUES (1, 'one', 1.5, 1, '{a,NULL}'), (2, 'two', 2.5, 2, NULL)")
    lab.execute("CREATE TABLE lines (n int, line text); ALTER TABLE lines REPLICA IDENTITY FULL")
    lab.execute("INSERT INTO lines SELECT nullif(i % 3, 0), 'equal' FROM generate_series(1, 9) i")
    lab.publish()
    lab.synced().close()
    for statement in (  # each a transaction of its own
        "UPDATE a SET name = 'uno' WHERE id = 1",
        "ALTER TABLE a ADD COLUMN extra int DEFAULT 7",
        "INSERT INTO a VALUES (3, 'three', 3.5, 3, '{}', 3)",
        "ALTER TABLE a RENAME COLUMN name TO label",
        "UPDATE a SET extra = 8 WHERE id = 1",
        "ALTER TABLE a ALTER COLUMN price TYPE numeric(12,2)",
        "INSERT INTO a VALUES (4, 'four', 1234567.25, 4)",
        "ALTER TABLE a DROP COLUMN gone",
        "DELETE FROM a WHERE id = 3",
        "UPDATE lines SET n = 7 WHERE ctid = (SELECT min(ctid) FROM lines WHERE n IS NULL)",
        "DELETE FROM lines WHERE ctid IN (SELECT ctid FROM lines WHERE n > 0 ORDER BY n, ctid LIMIT 2)",
        "ALTER TABLE lines ADD COLUMN more float8",
        "INSERT INTO lines VALUES (1, 'equal', '-0'), (1, 'equal', 0), (1, 'equal', 'NaN')",
        "DELETE FROM lines WHERE n = 1 AND (more::text = '-0' OR more IS NULL)",
        "CREATE SCHEMA archive",
        "ALTER TABLE a SET SCHEMA archive",
        "INSERT INTO archive.a VALUES (5, 'five', 5)",
    ):
        lab.execute(statement)
    lab.caught_up(lab.pipeline())
    lab.pipeline().sync()  # what is copied again by itself
    _assert_same(lab)


@pytest.mark.parametrize(
    "failpoint",
    [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.BATCH_WRITTEN, failpoints.CATCHUP_WRITTEN],
)
def test_killed_where_snowflake_has_it_and_nobody_knows(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.pipeline().sync()
    _assert_same(lab)
