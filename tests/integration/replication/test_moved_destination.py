"""One pipeline and its state, moved from each destination to each other: never past rows, copied on request."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.config import DestinationConfig
from etl_core.destination.bigquery.destination import from_options
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.errors import DestinationError, EtlError, SlotInUse
from etl_core.replication.handover import Handover
from etl_core.state.table_state import COPIED, TableState
from etl_core.testing.postgres import Database, create_database

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

pytestmark = pytest.mark.timeout(900)
TOUR = "duckdb postgres duckdb memory duckdb bigquery postgres memory postgres bigquery memory bigquery duckdb"
"""Each of the twelve moves between two of them once."""


@pytest.fixture
def warehouse(lab: Lab) -> Iterator[Database]:
    made = create_database(lab.database.server)
    yield made
    lab.close()
    made.drop()


@pytest.fixture
def opened(lab: Lab, warehouse: Database, bigquery_options: dict[str, str]) -> Callable[[str], Watched]:
    """The pipeline, prepared over the destination of that type."""
    database, own = MemoryDatabase(), lab.config.destination
    postgres = {"dsn": warehouse.dsn, "staging": str(lab.path.with_name("staging"))}

    def open_pipeline(kind: str) -> Watched:
        if kind == "postgres":
            lab.config = replace(lab.config, destination=DestinationConfig(kind, postgres))
            return lab.pipeline()
        lab.config = replace(lab.config, destination=own)
        name = lab.config.pipeline
        if kind == "memory":
            return lab.pipeline(destination=MemoryDestination(database, name))
        return lab.pipeline(destination=from_options(bigquery_options, name) if kind == "bigquery" else None)

    return open_pipeline


def states(pipeline: Watched) -> list[TableState]:
    return [status.state for status in pipeline.store.tables()]


def change(lab: Lab, step: int) -> None:
    lab.execute(f"INSERT INTO often VALUES ({step}, {step}); UPDATE often SET n = n + 1")
    lab.execute(f"DELETE FROM often WHERE id = {step - 3}")


def assert_equal(lab: Lab, pipeline: Watched) -> None:
    lab.caught_up(pipeline)
    assert {status.name.name: status.error for status in pipeline.store.tables()} == {"often": None, "rare": None}
    assert states(pipeline) == [TableState.READY] * 2
    assert [comparison.problem for comparison in pipeline.verify() if not comparison.is_equal] == []


def test_from_each_to_each(lab: Lab, opened: Callable[[str], Watched]) -> None:
    """`rare` has no change after the first destination: only its position there tells that it is wanting."""
    for table in ("often", "rare"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1000, 0)")
    lab.publish()
    visited: set[str] = set()
    for step, kind in enumerate(TOUR.split(), 1):
        pipeline = opened(kind)
        if visited and kind not in visited:
            before = pipeline.store.tables()
            for begin in (pipeline.check_destination, lambda pipeline=pipeline: lab.caught_up(pipeline)):
                with pytest.raises(DestinationError, match=r"has nothing of pipeline .* copied before") as caught:
                    begin()
                assert "etl sync --all" in str(caught.value.hint)
            assert pipeline.store.tables() == before
        elif step == len(TOUR.split()):  # one that was left and has missed what came since
            lab.caught_up(pipeline)
            assert states(pipeline) == [TableState.ERRORED] * 2
            assert all("etl sync --all" in str(status.hint) for status in pipeline.store.tables())
        change(lab, step)
        assert not [outcome for outcome in pipeline.sync_all() if isinstance(outcome, EtlError)]
        change(lab, step + 100)
        assert_equal(lab, pipeline)
        visited.add(kind)
        pipeline.close()
    assert visited == {"bigquery", "duckdb", "memory", "postgres"}


def test_tables_that_were_never_streamed_are_not_taken_for_copied(lab: Lab, opened: Callable[[str], Watched]) -> None:
    """Nothing was written by a stream, so its position tells nothing; and back where an older copy of them is."""
    for table in ("often", "rare"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1000, 0)")
    lab.publish()
    pipeline = opened("duckdb")
    pipeline.sync()
    lab.execute("UPDATE rare SET n = 5")
    moved = opened("memory")
    with pytest.raises(DestinationError, match="has nothing of pipeline"):
        lab.caught_up(moved)
    moved.sync_all()
    lab.caught_up(pipeline)
    assert states(pipeline) == [TableState.ERRORED] * 2
    pipeline.sync_all()
    assert_equal(lab, pipeline)


def test_while_a_stream_writes_elsewhere_nothing_is_copied(lab: Lab, opened: Callable[[str], Watched]) -> None:
    lab.execute("CREATE TABLE often (id int PRIMARY KEY, n int); CREATE TABLE rare (LIKE often INCLUDING ALL)")
    lab.publish()
    pipeline = lab.synced()
    moved = opened("memory")
    with lab.running(pipeline, pipeline.stream):
        change(lab, 1)
        pipeline.observer.until_flushed(pipeline.current_lsn())
        with pytest.raises(SlotInUse, match="is streaming into another destination"):
            moved.sync_all()
        assert set(states(moved)) <= COPIED
    # Copied table by table, as a materialisation does: what was copied into it is in it, the rest says that it is not.
    lab._until_released(pipeline)
    moved.sync([status.name for status in moved.store.tables() if status.name.name == "often"])
    lab.caught_up(moved)
    assert states(moved) == [TableState.READY, TableState.ERRORED]
    moved.sync_all()
    assert_equal(lab, moved)


def test_nothing_is_copied_into_another_destination_before_it_is_refused(
    lab: Lab, opened: Callable[[str], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new table of the source is copied in the background; with it the destination would no longer be empty."""
    for table in ("often", "rare"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1000, 0)")
    lab.publish()
    pipeline = opened("duckdb")
    pipeline.sync()
    lab.caught_up(pipeline)
    pipeline.close()
    lab.execute("CREATE TABLE fresh (id int PRIMARY KEY, n int); INSERT INTO fresh VALUES (1, 0)")
    elsewhere = opened("postgres")
    elsewhere.prepare()
    before = {status.name.name: (status.state, status.error) for status in elsewhere.store.tables()}
    assert before["fresh"] == (TableState.INIT, None)
    begin = Handover.start

    def begin_late(handover: Handover, *given: Any) -> Any:
        while any(status.state not in COPIED for status in elsewhere.store.tables()):
            time.sleep(0.01)
        return begin(handover, *given)

    monkeypatch.setattr(Handover, "start", begin_late)
    with pytest.raises(DestinationError, match="has nothing of pipeline"):
        elsewhere.run(seconds=1)
    assert {status.name.name: (status.state, status.error) for status in elsewhere.store.tables()} == before
    assert elsewhere.destination.positions().tables == {}
