"""From PostgreSQL into a lake, by the whole engine: what it has is what the source has, whatever happens on the way."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from etl_core.config import DestinationConfig
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(900)
PATIENCE = 300.0


@pytest.fixture(autouse=True)
def into_a_lake(lab: Lab) -> None:
    """Its catalog is in SQLite; compaction goes on all the time."""
    folder = lab.path.parent
    options = {
        "catalog": f"sqlite:{folder / 'catalog.sqlite'}",
        "data": str(folder / "files"),
        "staging": str(folder / "staging"),
        "compact_every": "1ms",
    }
    lab.config = replace(lab.config, destination=DestinationConfig("ducklake", options))


def _assert_same(lab: Lab) -> None:
    pipeline = lab.caught_up(lab.pipeline())
    others = {s.name.name: s.error for s in pipeline.store.tables() if s.state is not TableState.READY}
    assert not others
    assert not [comparison for comparison in pipeline.verify() if not comparison.is_equal]


def test_types_and_schema_changes(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE a (id int PRIMARY KEY, name varchar(5), price numeric(6,2), span interval, at timetz, doc jsonb,"
        " bits bit(3), spans interval[], big text, gone int)"
    )
    lab.execute("ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE lines (line text, span interval); ALTER TABLE lines REPLICA IDENTITY FULL")
    row = (
        "'one', 1.5, '-1 year 3 days -00:00:00.000001', '12:00+05:30', '{\"a\": 1}', B'101', array['1 day'::interval],"
        " repeat('x', 9000), 1"
    )
    lab.execute(f"INSERT INTO a VALUES (1, {row}), (2, {row})")
    lab.execute(
        "CREATE TABLE zeros (id int PRIMARY KEY, f float8, p point, fs float4[]); INSERT INTO zeros VALUES"
        " (1, 0, '(0,0)', '{0,-0}'), (2, '-0', '(-0,1)', NULL)"
    )
    lab.config = replace(lab.config, types={"out_of_range": "clamp"})
    lab.execute("INSERT INTO lines VALUES ('a', '30 days'), ('a', '1 month'), ('a', '1 month'), (NULL, NULL)")
    lab.publish()
    lab.synced().close()
    for statement in (  # each a transaction of its own
        "UPDATE a SET name = 'uno' WHERE id = 1",  # big is not sent
        "ALTER TABLE a ADD COLUMN extra interval DEFAULT '-1 s'",
        f"INSERT INTO a VALUES (3, {row})",
        "ALTER TABLE a RENAME COLUMN name TO label",
        "BEGIN; DELETE FROM a WHERE id = 2; ALTER TABLE a ADD COLUMN later int;"
        " INSERT INTO a (id, later) VALUES (9, 9);"
        " ALTER TABLE a RENAME COLUMN later TO late; UPDATE a SET late = 10 WHERE id = 9; COMMIT",
        "ALTER TABLE a ALTER COLUMN label TYPE text, ALTER COLUMN price TYPE numeric(12,2)",
        "ALTER TABLE a DROP COLUMN gone",
        "DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines WHERE span = '1 month' AND span::text = '1 mon')",
        "INSERT INTO lines VALUES ('b', '1 day')",
        "ALTER TABLE a RENAME TO b",
        "UPDATE b SET id = id + 100",
        "INSERT INTO zeros SELECT i, CASE WHEN i % 2 = 0 THEN '-0' ELSE 0 END FROM generate_series(3, 40) i",
    ):
        lab.execute(statement)
    lab.caught_up(lab.pipeline())
    lab.pipeline().sync()  # what is copied again by itself
    _assert_same(lab)


@pytest.mark.parametrize(
    "failpoint",
    [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.BATCH_WRITTEN, failpoints.CATCHUP_WRITTEN],
)
def test_killed_where_the_lake_has_it_and_nobody_knows(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.pipeline().sync()
    _assert_same(lab)
