"""Initial syncs by several processes at once, and interrupted: nothing is half copied, nothing is left behind."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import psycopg
import pytest

from etl_core.identifiers import TableName
from etl_core.replication.failpoints import COPY_STARTED, SLOT_CREATED, activated
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.sync.assets import build_initial_sync_assets
from etl_dagster.sync.step import CopyProgress, run_interruptibly
from tests.orchestration.syncing import (
    NOTES,
    ORDERS,
    TABLES,
    at_source,
    await_row,
    content,
    failures,
    like,
    materializations,
    slots,
    state,
    sync,
)

# --- several processes ----------------------------------------------------------------------------------------


class AtStart:
    """Holds the first copy that reaches COPY_STARTED, in this process, until `go` is set."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            self.go.wait()


@contextlib.contextmanager
def copied_elsewhere(replication: PostgresReplicationResource, table: TableName) -> Iterator[AtStart]:
    """Another pipeline object copies `table` beside the block, and stands before its snapshot.

    So what begins in the block needs nothing that is not in that copy, whatever WAL the server writes by itself.
    """
    hold = AtStart()
    with activated(COPY_STARTED, hold), replication.pipeline() as other:
        other.prepare()
        thread = threading.Thread(target=lambda: other.sync([table]))
        thread.start()
        try:
            assert hold.reached.wait(300)
            yield hold
        finally:
            hold.go.set()
            thread.join()


def test_a_copy_under_way_elsewhere_is_left_alone(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    with copied_elsewhere(replication, ORDERS):
        result = sync(replication, instance, ORDERS, NOTES, full_refresh=True)
    [(description, hint)] = failures(result).values()
    assert description == "1 of 2 tables failed: another process is copying public.orders now"
    assert "materialise again" in hint
    assert set(materializations(result)) == {"notes"}
    assert state(replication, ORDERS) is TableState.FINISHED_COPY
    assert content(replication, "orders") == at_source(database, "orders")


def test_a_copy_under_way_elsewhere_is_waited_for(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copied_elsewhere(replication, ORDERS) as hold:

        class Told(CopyProgress):
            def say(self, news: str) -> None:
                super().say(news)
                hold.go.set()  # only now that it is waited for

        monkeypatch.setattr("etl_dagster.sync.sync_op.CopyProgress", Told)
        result = sync(replication, instance, ORDERS)
    event = materializations(result)["orders"]
    assert event.metadata["dagster/row_count"].value == 100
    assert "etl/duration_seconds" not in event.metadata  # it did not copy
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    assert [line for line in logged if "another process is copying public.orders" in line]


def job_from_environment() -> dg.JobDefinition:
    """What a step's process loads: the pipeline that the environment describes."""
    return job_of(PostgresReplicationResource)


def held_job_from_environment() -> dg.JobDefinition:
    return job_of(Held)


def job_of(kind: type[PostgresReplicationResource]) -> dg.JobDefinition:
    replication = kind(
        name=os.environ["ETL_TEST_NAME"],
        publication="shop_pub",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        tables=os.environ["ETL_TEST_TABLES"].split(","),
        state=StateStoreResource(url=os.environ["ETL_TEST_STATE"]),
        destination=DuckDBDestinationResource(path=os.environ["ETL_TEST_DUCKDB"]),
    )
    tables = replication.selection().names
    job = dg.define_asset_job("sync", executor_def=dg.multiprocess_executor.configured({"max_concurrent": 3}))
    return dg.Definitions(
        assets=build_initial_sync_assets(replication, tables, copy_processes=dict.fromkeys(map(str, tables), 1)),
        resources={names.resource_key(replication.name): replication},
        jobs=[job],
    ).resolve_job_def("sync")


def run_in_processes(job: Callable[[], dg.JobDefinition], instance: dg.DagsterInstance) -> list[str]:
    """Runs it, each step in a process of its own; the tables whose assets were materialised, by name."""
    with dg.execute_job(dg.reconstructable(job), instance=instance) as result:
        events = result.get_asset_materialization_events()
        return sorted(event.step_materialization_data.materialization.asset_key.path[-1] for event in events)


@pytest.fixture
def environment(replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `job_from_environment` reads, for `replication`."""
    assert replication.tables is not None
    monkeypatch.setenv("ETL_TEST_NAME", replication.name)
    monkeypatch.setenv("ETL_TEST_TABLES", ",".join(replication.tables))
    monkeypatch.setenv("ETL_TEST_STATE", replication.state.url)
    monkeypatch.setenv("ETL_TEST_DUCKDB", replication.destination.options()["path"])


@pytest.mark.usefixtures("environment")
def test_several_processes_copy_at_once(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert run_in_processes(job_from_environment, instance) == ["customers", "notes", "orders"]
    for table in ("orders", "customers", "notes"):
        assert content(replication, table) == at_source(database, table)
    assert {state(replication, table) for table in TABLES} == {TableState.FINISHED_COPY}
    assert slots(database) == [f"etl_{replication.name}"]


# --- interrupting ---------------------------------------------------------------------------------------------


class Held(PostgresReplicationResource):
    """Its copies stand still under their snapshot until they are stopped; the file ETL_TEST_REACHED says that one does.

    Works in a step's process as in ours, because it holds itself.
    """

    @contextlib.contextmanager
    def pipeline(self, **options: Any) -> Iterator[Any]:
        stop = options["stop"]

        def hold() -> None:
            Path(os.environ["ETL_TEST_REACHED"]).touch()
            assert stop.wait(300), "nobody stopped the copy"

        with activated(SLOT_CREATED, hold), super().pipeline(**options) as pipeline:
            yield pipeline


@contextlib.contextmanager
def interrupted(reached: Path) -> Iterator[None]:
    """This process gets SIGINT, as Dagster's termination of a run sends it, when a held copy has begun in the block."""
    ended = threading.Event()

    def interrupt() -> None:
        while not reached.exists():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        reached.unlink(missing_ok=True)


@pytest.fixture
def reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "reached"
    monkeypatch.setenv("ETL_TEST_REACHED", str(path))
    return path


def assert_interrupted(result: dg.ExecuteInProcessResult) -> None:
    """The step ended by the interruption itself, not by what the copy made of it."""
    [event] = result.get_step_failure_events()
    assert event.step_failure_data.error is not None
    assert event.step_failure_data.error.cls_name == "DagsterExecutionInterruptedError"


def assert_not_copied(replication: PostgresReplicationResource, database: Database) -> None:
    """Nothing of `orders` is left but its entry in the store, and nobody works for it any more."""
    path = replication.destination.options()["path"]
    with duckdb.connect(path, read_only=True) as connection:
        present = connection.execute("SELECT 1 FROM information_schema.tables WHERE table_name = 'orders'").fetchall()
    assert not present
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        await_row(
            connection,
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'etl\\_%\\_copy\\_%')",
        )
    assert slots(database) == [f"etl_{replication.name}"]


def test_a_terminated_run_leaves_nothing_half_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    with interrupted(reached):
        assert_interrupted(sync(like(replication, Held), instance, ORDERS))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sync", "copy"))]
    assert_not_copied(replication, database)
    assert sync(replication, instance, ORDERS).success
    assert content(replication, "orders") == at_source(database, "orders")


@pytest.mark.usefixtures("environment")
def test_a_terminated_run_of_several_processes_leaves_nothing_half_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    with interrupted(reached):
        assert run_in_processes(held_job_from_environment, instance) == []
    [run] = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE  # CANCELED if Dagster had been asked for it
    assert_not_copied(replication, database)
    assert sync(replication, instance, ORDERS).success
    assert content(replication, "orders") == at_source(database, "orders")


def test_a_terminated_copy_again_leaves_readers_what_was_there(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    assert sync(replication, instance, ORDERS).success
    before = content(replication, "orders")
    database.execute("DELETE FROM orders WHERE id = 1")
    with interrupted(reached):
        assert_interrupted(sync(like(replication, Held), instance, ORDERS, full_refresh=True))
    assert content(replication, "orders") == before
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        assert pipeline.find(ORDERS).state is TableState.INIT  # not failed: nobody asked for it yet


def test_work_that_does_not_hear_the_interruption_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_dagster.sync.step._PATIENCE", 0.05)
    stop, ends, done = threading.Event(), threading.Event(), threading.Event()

    def deaf() -> None:
        ends.wait()
        done.set()

    class Interruption(BaseException):
        pass

    def report() -> None:
        raise Interruption

    monkeypatch.setattr("etl_dagster.sync.step._REPORT_EVERY", 0.01)
    with pytest.raises(Interruption):
        run_interruptibly(deaf, stop, report)
    assert stop.is_set()
    assert not done.is_set()
    ends.set()
    assert done.wait(300)
