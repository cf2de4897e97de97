"""A table that several processes copy together: its asset, its steps, and what becomes of a helper that dies."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from etl_core.errors import TransientError
from etl_core.identifiers import TableName
from etl_core.replication.failpoints import RANGE_STAGED, activated
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.sync.assets import build_initial_sync_assets
from etl_dagster.sync.shared_sync import helpers_wanted
from tests.orchestration.syncing import (
    ORDERS,
    at_source,
    content,
    failures,
    launchpad,
    materializations,
    slots,
    state,
    streaming,
)

EVENTS = TableName("public", "events")
ROWS, PARTS = 4_000, 8


@pytest.fixture
def events(
    replication: PostgresReplicationResource, database: Database, monkeypatch: pytest.MonkeyPatch
) -> PostgresReplicationResource:
    """The pipeline with one more table: eight partitions, each a range of its own."""
    step = ROWS // PARTS
    with psycopg.connect(database.dsn) as connection:
        connection.execute("CREATE TABLE events (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        for first in range(0, ROWS, step):
            bounds = f"FOR VALUES FROM ({first}) TO ({first + step})"
            connection.execute(f"CREATE TABLE events_{first} PARTITION OF events {bounds}".encode())
        connection.execute(f"INSERT INTO events SELECT g, 'value ' || g FROM generate_series(0, {ROWS - 1}) g".encode())  # noqa: S608
        connection.execute("ALTER PUBLICATION shop_pub SET (publish_via_partition_root = true)")
        connection.execute("ALTER PUBLICATION shop_pub ADD TABLE events")
    assert replication.tables is not None
    wider = PostgresReplicationResource(
        name=replication.name,
        publication=replication.publication,
        dsn=replication.dsn,
        tables=[*replication.tables, "public.events"],
        state=replication.state,
        destination=replication.destination,
    )
    monkeypatch.setenv("ETL_TEST_NAME", wider.name)
    monkeypatch.setenv("ETL_TEST_STATE", wider.state.url)
    monkeypatch.setenv("ETL_TEST_DUCKDB", wider.destination.options()["path"])
    return wider


def assets_of(replication: PostgresReplicationResource) -> list[dg.AssetsDefinition]:
    return build_initial_sync_assets(
        replication, [EVENTS], retry_policy=dg.RetryPolicy(max_retries=1), copy_processes={"public.events": 3}
    )


def sync_events(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, **config: Any
) -> dg.ExecuteInProcessResult:
    assets = assets_of(replication)
    return dg.materialize(
        assets,
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=launchpad(**config),
        raise_on_error=False,
    )


def steps(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> list[str]:
    """The steps that succeeded, without the graph's name."""
    return sorted(str(event.step_key).rsplit(".", 1)[-1] for event in result.all_events if event.is_step_success)


def test_in_one_process_the_copy_does_everything_itself(
    events: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    result = sync_events(events, instance, connections=2)
    assert result.success
    assert steps(result) == ["copy", "report", "share"]
    event = materializations(result)["events"]
    assert event.metadata["dagster/row_count"].value == ROWS
    size: Any = event.metadata["etl/bytes_copied"].value
    speed: Any = event.metadata["etl/rows_per_second"].value
    assert size > 0
    assert speed > 0
    assert str(event.metadata["dagster/uri"].value).endswith("/public/events")
    assert content(events, "events") == at_source(database, "events")
    assert state(events, EVENTS) is TableState.FINISHED_COPY


def test_a_table_that_streams_waits_for_the_stream_and_is_not_copied_again(
    events: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync_events(events, instance).success
    with streaming(events):
        database.execute("UPDATE events SET v = 'new' WHERE id < 10")
        result = sync_events(events, instance)
        assert content(events, "events") == at_source(database, "events")
    assert steps(result) == ["copy", "report", "share"]
    again = materializations(result)["events"].metadata
    assert again["etl/brought_up_by"].value == "stream"
    assert "etl/duration_seconds" not in again  # nothing was copied


class WaitsForHelp(PostgresReplicationResource):
    """A copy that goes on after its first range when a helper has staged one, so that one surely takes part."""

    def staged(self) -> None:
        """A helper has staged a range."""
        Path(os.environ["ETL_TEST_HELPED"]).touch()

    @contextlib.contextmanager
    def pipeline(self, **options: Any) -> Iterator[Any]:
        with activated(RANGE_STAGED, self.staged), super().pipeline(**options) as pipeline:
            original = pipeline.copy

            def wait(*_: Any) -> None:
                while not Path(os.environ["ETL_TEST_HELPED"]).exists():
                    assert not pipeline.stop.wait(0.05), "stopped before anybody helped"

            def copy(*args: Any, **more: Any) -> Any:
                pipeline.observer.on_copy_progress = wait  # type: ignore[assignment, method-assign]
                return original(*args, **more)

            pipeline.copy = copy  # type: ignore[method-assign]
            yield pipeline


class FailsToHelp(WaitsForHelp):
    """Its helpers fail with their first range."""

    def staged(self) -> None:
        super().staged()
        raise TransientError("the helper's disk is full")


def shared_job() -> dg.JobDefinition:
    """What a step's process loads: the pipeline that the environment describes."""
    return job_of(WaitsForHelp)


def failing_job() -> dg.JobDefinition:
    return job_of(FailsToHelp)


def job_of(kind: type[PostgresReplicationResource]) -> dg.JobDefinition:
    replication = kind(
        name=os.environ["ETL_TEST_NAME"],
        publication="shop_pub",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        tables=["public.events"],
        copy_connections=1,
        state=StateStoreResource(url=os.environ["ETL_TEST_STATE"]),
        destination=DuckDBDestinationResource(path=os.environ["ETL_TEST_DUCKDB"]),
    )
    job = dg.define_asset_job("sync", executor_def=dg.multiprocess_executor.configured({"max_concurrent": 4}))
    return dg.Definitions(
        assets=assets_of(replication), resources={names.resource_key(replication.name): replication}, jobs=[job]
    ).resolve_job_def("sync")


@pytest.fixture
def helped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "helped"
    monkeypatch.setenv("ETL_TEST_HELPED", str(path))
    return path


def run_in_processes(
    job: Callable[[], dg.JobDefinition], instance: dg.DagsterInstance
) -> tuple[list[str], dg.AssetMaterialization, str]:
    """The steps that succeeded, the materialisation, and what was logged."""
    with dg.execute_job(dg.reconstructable(job), instance=instance) as result:
        assert result.success
        [event] = result.get_asset_materialization_events()
        logged = "\n".join(record.user_message for record in instance.all_logs(result.run_id))
        return steps(result), event.step_materialization_data.materialization, logged


@pytest.mark.usefixtures("helped")
def test_several_processes_copy_one_table(
    events: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    done, event, logged = run_in_processes(shared_job, instance)
    assert done == ["copy", "help[1]", "help[2]", "report", "share"]
    assert event.metadata["dagster/row_count"].value == ROWS
    assert "rows of public.events copied here" in logged
    assert content(events, "events") == at_source(database, "events")
    assert slots(database) == [f"etl_{events.name}"]


@pytest.mark.usefixtures("helped")
def test_a_helper_that_fails_fails_nothing(
    events: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    done, event, logged = run_in_processes(failing_job, instance)
    assert done == ["copy", "help[1]", "help[2]", "report", "share"]
    assert event.metadata["dagster/row_count"].value == ROWS
    assert "stopped helping, the others go on: the helper's disk is full" in logged
    assert content(events, "events") == at_source(database, "events")


def test_a_copy_that_fails_fails_its_asset(
    events: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    database.execute("ALTER TABLE events ADD COLUMN price numeric(8,2)")
    database.execute("UPDATE events SET price = 'NaN' WHERE id = 7")
    result = sync_events(events, instance)
    assert not result.success
    assert materializations(result) == {}
    assert steps(result) == ["share"]
    [(step, (description, _))] = failures(result).items()
    assert step == "events.copy"
    assert "price" in description
    assert state(events, EVENTS) is TableState.ERRORED


def test_nobody_waits_for_ever_for_a_copy_that_does_not_begin(
    events: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.sync.shared_sync._PATIENCE", 0.0)
    assert helpers_wanted(events, EVENTS, "run", 3, threading.Event()) == 0


@pytest.mark.parametrize(
    ("processes", "said"),
    [({"public.nowhere": 2}, "public.nowhere is not a table"), ({"public.orders": 0}, "by one process at least")],
)
def test_wrong_numbers_of_processes_are_refused(
    replication: PostgresReplicationResource, processes: dict[str, int], said: str
) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=said):
        build_initial_sync_assets(replication, [ORDERS], copy_processes=processes)
