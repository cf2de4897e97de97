"""Materialising brings up to now: what is copied, what waits for the stream, and what is said when neither can be."""

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from etl_core.errors import TransientError
from etl_core.identifiers import TableName
from etl_core.pipeline import Pipeline
from etl_core.replication.failpoints import COPY_STAGED
from etl_core.replication.table_errors import kept_update
from etl_core.state.store import TableStatus, TableUpdate
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.assets import build_initial_sync_assets
from etl_dagster.sync.bring_up import BringUp, as_it_is
from etl_dagster.sync.step import CopyProgress
from tests.orchestration.syncing import (
    CUSTOMERS,
    ORDERS,
    TABLES,
    at_source,
    content,
    failures,
    launchpad,
    like,
    materializations,
    state,
    sync,
)


def brought_up_by(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {table: event.metadata["etl/brought_up_by"].value for table, event in materializations(result).items()}


def logged(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(record.user_message for record in instance.all_logs(run_id))


def test_what_streams_waits_for_the_stream_and_what_does_not_is_copied(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert brought_up_by(sync(replication, instance, ORDERS, CUSTOMERS)) == {"orders": "copy", "customers": "copy"}
    database.execute("UPDATE orders SET n = -n; DELETE FROM customers WHERE id > 50; INSERT INTO notes VALUES (1, 'x')")
    with replication.pipeline() as pipeline:
        before = pipeline.current_lsn()
    is_waited_for = threading.Event()

    class Told(CopyProgress):
        def say(self, news: str) -> None:
            super().say(news)
            if "nothing streams" in news:
                is_waited_for.set()

    monkeypatch.setattr("etl_dagster.sync.sync_op.CopyProgress", Told)

    def stream_once_it_is_waited_for() -> None:
        assert is_waited_for.wait(300)
        with replication.pipeline() as other:
            other.prepare()
            other.stream(until=other.current_lsn())

    thread = threading.Thread(target=stream_once_it_is_waited_for)
    thread.start()
    result = sync(replication, instance)
    thread.join()
    assert result.success
    assert brought_up_by(result) == {"orders": "stream", "customers": "stream", "notes": "copy"}
    for table in ("orders", "customers", "notes"):
        assert content(replication, table) == at_source(database, table)
    assert "nothing streams pipeline" in logged(instance, result.run_id)
    with replication.pipeline() as pipeline:
        progress = pipeline.store.progress()
        positions = pipeline.destination.positions().tables
        told = materializations(result)["orders"]
        assert told.metadata["etl/lsn"].value == str(positions[pipeline.find(ORDERS).table_id])
    assert progress is not None
    assert progress.flushed_lsn >= before
    assert "dagster/row_count" not in told.metadata  # nobody counted


def test_a_position_that_was_read_before_the_stream_came_is_not_reported(
    replication: PostgresReplicationResource, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.sync.bring_up._POSITIONS_FOR", 3600.0)
    with replication.pipeline() as pipeline, replication.pipeline() as other:
        other.prepare()
        other.sync([ORDERS])
        other.stream(until=other.current_lsn())
        database.execute("DELETE FROM orders WHERE id > 10")
        together = BringUp(pipeline, CopyProgress(), full_refresh=False)
        other.sync([CUSTOMERS])
        assert together.table(CUSTOMERS).rows == 100  # the positions are read, of orders too
        other.stream(until=other.current_lsn())
        found = together.table(ORDERS)
        assert found.lsn == other.destination.positions().tables[other.find(ORDERS).table_id]
        assert found.rows is None


def test_a_table_that_caught_up_is_not_reported_with_the_rows_of_its_copy(
    replication: PostgresReplicationResource, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replication.pipeline() as pipeline, replication.pipeline() as other:
        pipeline.prepare()

        def reached(place: str, *_: object) -> None:
            if place == COPY_STAGED:
                database.execute("INSERT INTO orders SELECT i, i FROM generate_series(101, 150) i")
                other.stream(until=other.current_lsn())

        monkeypatch.setattr("etl_core.replication.copy.reach", reached)
        pipeline.sync([ORDERS])
        pipeline.stream(until=pipeline.current_lsn())
        status = pipeline.find(ORDERS)
        mark = pipeline.destination.positions().tables[status.table_id]
        assert (status.state, status.snapshot_lsn, status.rows_copied) == (TableState.READY, mark, 100)
        found = as_it_is(pipeline, status, mark)
        assert found is not None
        assert found.rows is None
    assert len(content(replication, "orders")) == 150


def test_a_table_that_stops_on_the_way_is_not_taken_for_brought_up(
    replication: PostgresReplicationResource, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replication.pipeline() as pipeline, replication.pipeline() as other:
        other.prepare()
        other.sync([ORDERS])
        other.stream(until=other.current_lsn())
        database.execute("DELETE FROM orders WHERE id > 10")
        together = BringUp(pipeline, CopyProgress(), full_refresh=False)
        look = together._status

        def stops_just_then(table: TableName) -> TableStatus:
            status = look(table)
            if status.state is TableState.READY:
                other.store.transition(status, TableState.ERRORED, TableUpdate(error="a value does not fit"))
                other.stream(until=other.current_lsn())
            return status

        monkeypatch.setattr(together, "_status", stops_just_then)
        found = together.table(ORDERS)
        assert (found.rows, found.cost is None) == (10, False), "copied again, as it has stopped"


def test_a_table_that_was_set_back_is_copied_again(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance).success
    database.execute("DELETE FROM orders WHERE id > 10")
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.resync(ORDERS)
    assert brought_up_by(sync(replication, instance, ORDERS)) == {"orders": "copy"}
    assert content(replication, "orders") == at_source(database, "orders")


def test_without_a_stream_the_failure_says_what_to_start(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("etl_dagster.sync.bring_up._NO_STREAM_PATIENCE", 0.5)
    assert sync(replication, instance, ORDERS, CUSTOMERS).success
    database.execute("DELETE FROM orders")
    result = sync(replication, instance)
    assert set(materializations(result)) == {"notes"}
    [(description, hint)] = failures(result).values()
    told = f"2 of 3 tables failed: public.orders, public.customers: nothing streams pipeline {replication.name}"
    assert description.startswith(told)
    assert names.stream_job_name(replication.name) in hint
    assert "full_refresh: true" in hint
    assert state(replication, ORDERS) is TableState.FINISHED_COPY


def test_a_copy_as_new_as_the_source_needs_no_stream(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = materializations(sync(replication, instance, ORDERS))["orders"]
    with replication.pipeline() as pipeline:
        snapshot_lsn = pipeline.find(ORDERS).snapshot_lsn
    # The server writes WAL by itself now and then, such as what is running, every 15 seconds.
    monkeypatch.setattr(Pipeline, "current_lsn", lambda _: snapshot_lsn)
    again = sync(replication, instance, ORDERS)
    assert materializations(again)["orders"].metadata["etl/lsn"] == first.metadata["etl/lsn"]
    assert materializations(again)["orders"].metadata["dagster/row_count"].value == 100
    assert "waiting" not in logged(instance, again.run_id)


def test_a_stream_that_does_not_move_is_not_waited_for_for_ever(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sync(replication, instance, ORDERS).success
    database.execute("DELETE FROM orders")
    monkeypatch.setattr("etl_dagster.sync.bring_up._STALLED_PATIENCE", 0.5)
    [(description, hint)] = failures(sync(replication, instance, ORDERS)).values()
    assert description.startswith(f"the stream of pipeline {replication.name} has been at 0/0 for")
    assert names.stream_job_name(replication.name) in hint


def test_the_error_that_ended_the_stream_is_told_at_once(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance, ORDERS).success
    database.execute("DELETE FROM orders")
    with replication.pipeline() as pipeline:
        pipeline.store.save_stream_error("the slot was dropped", "create another one", is_permanent=True)
    [(description, hint)] = failures(sync(replication, instance, ORDERS)).values()
    assert description == f"the stream of pipeline {replication.name} has ended: the slot was dropped"
    assert hint == "create another one"


def test_an_error_after_which_the_stream_is_tried_again_is_waited_out(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("etl_dagster.sync.bring_up._NO_STREAM_PATIENCE", 0.5)
    assert sync(replication, instance, ORDERS).success
    database.execute("DELETE FROM orders")
    with replication.pipeline() as pipeline:
        pipeline.store.save_stream_error("division by zero", "correct the row filter", is_permanent=False)
    result = sync(replication, instance, ORDERS)
    assert "waiting 0 s for a stream run; it ended last with: division by zero" in logged(instance, result.run_id)
    [(description, hint)] = failures(result).values()
    assert description.startswith(f"nothing streams pipeline {replication.name}")
    assert description.endswith("; it ended last with: division by zero")
    assert hint.startswith("correct the row filter; ")


def test_a_paused_table_says_so_and_copying_it_again_is_one_switch_away(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    assert sync(replication, instance, ORDERS).success
    with replication.pipeline() as pipeline:
        pipeline.pause(ORDERS)
    [(description, hint)] = failures(sync(replication, instance, ORDERS)).values()
    assert description == "public.orders is paused, so nothing brings it up to now"
    assert "full_refresh: true" in hint
    assert state(replication, ORDERS) is TableState.PAUSED
    assert brought_up_by(sync(replication, instance, ORDERS, full_refresh=True)) == {"orders": "copy"}


def test_a_table_that_stopped_with_its_changes_kept_says_why(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    assert sync(replication, instance, ORDERS).success
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
        status = pipeline.find(ORDERS)
        assert status.snapshot_lsn is not None
        error = TransientError("the disk is full", hint="make room")
        update = kept_update(status, error, "etl_kept", status.snapshot_lsn, 2**30, timedelta(minutes=1))
        pipeline.store.transition(status, TableState.ERRORED, update)
        pipeline.store.record_slot("etl_kept", status.table_id)
    [(description, hint)] = failures(sync(replication, instance, ORDERS)).values()
    assert description == "public.orders is stopped, so nothing brings it up to now: the disk is full"
    assert "make room" in hint


def test_one_switch_copies_all_again_whatever_steps_there_are(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assets = build_initial_sync_assets(replication, TABLES, copy_processes={"public.notes": 1})
    assert [len(list(asset.keys)) for asset in assets] == [2, 1]
    resources = {names.resource_key(replication.name): replication}
    assert dg.materialize(assets, instance=instance, resources=resources).success
    database.execute("DELETE FROM orders; DELETE FROM customers; INSERT INTO notes VALUES (1, 'x')")
    result = dg.materialize(
        assets, instance=instance, resources=resources, run_config=launchpad(full_refresh=True), raise_on_error=False
    )
    assert brought_up_by(result) == {"orders": "copy", "customers": "copy", "notes": "copy"}
    assert (content(replication, "orders"), len(content(replication, "notes"))) == ([], 1)


# --- checks that come with a materialisation --------------------------------------------------------------------------

CHEAP = {"replication_lag", "table_state", "schema_matches"}
REPOSITORY = Path(__file__).parent.parent.parent


def test_whole_tables_are_compared_when_asked_for_and_not_with_a_materialisation(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {
        "DAGSTER_HOME": instance.root_directory,
        "TEST_PIPELINE": replication.name,
        "TEST_DSN": database.dsn,
        "TEST_STATE": replication.state.url,
        "TEST_DUCKDB": replication.destination.options()["path"],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    location = Path(__file__).with_name("location.py")
    dagster = str(Path(sys.executable).with_name("dagster"))
    command = [dagster, "asset", "materialize", "-d", str(REPOSITORY), "-f", str(location)]

    subprocess.run([*command, "--select", "duckdb/public/orders"], check=True, cwd=tmp_path)
    [run] = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.SUCCESS
    evaluated = evaluations(instance, run.run_id)
    assert {check for check, _ in evaluated} == CHEAP
    assert {table for _, table in evaluated} == {"orders"}
    assert "equals_source reads whole tables" in logged(instance, run.run_id)

    from tests.orchestration import location as loaded

    job = loaded.defs.resolve_job_def(names.check_job_name(replication.name))
    asked = job.execute_in_process(instance=instance)
    assert asked.success
    evaluated = evaluations(instance, asked.run_id)
    assert {check for check, _ in evaluated} == CHEAP | {"equals_source", "slot_health"}
    assert ("equals_source", "notes") in evaluated


def evaluations(instance: dg.DagsterInstance, run_id: str) -> set[tuple[str, str]]:
    """The checks that a run evaluated, each with its table."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
    return {(each.check_name, each.asset_key.path[-1]) for each in found}


def test_another_destination_is_refused_until_every_table_is_copied_into_it(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, tmp_path: Path
) -> None:
    assert sync(replication, instance, ORDERS).success
    path = tmp_path / "another.duckdb"
    moved = like(replication, PostgresReplicationResource, destination=DuckDBDestinationResource(path=str(path)))

    refused = sync(moved, instance, CUSTOMERS)

    said, hint = failures(refused)["customers"]
    assert "the destination has nothing of pipeline" in said
    assert "(public.orders); nothing was changed" in said
    assert "a materialisation of every table with full_refresh: true" in hint
    assert (state(replication, ORDERS), state(replication, CUSTOMERS)) == (TableState.FINISHED_COPY, TableState.INIT)
    assert sync(moved, instance, full_refresh=True).success
    for table in ("orders", "customers", "notes"):
        assert content(moved, table) == at_source(database, table)
