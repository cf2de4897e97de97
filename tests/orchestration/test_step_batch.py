"""A pipeline with a schedule of batches: materialising streams a batch itself, as a run of the schedule would."""

import threading
from typing import Any

import dagster as dg
import pytest

from etl_core.errors import StreamBlocked
from etl_core.pipeline import Pipeline
from etl_core.replication.failpoints import COPY_STARTED, activated
from etl_core.replication.stream import Streamed
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import presence
from tests.orchestration.syncing import CUSTOMERS, NOTES, ORDERS, at_source, content, failures, state, sync
from tests.orchestration.test_stream import until

HOURLY = "0 * * * *"


def materialize(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, *tables: str, **options: Any
) -> dg.ExecuteInProcessResult:
    """As from the page: with the checks that come along."""
    definitions = build_postgres_replication(replication, cron_schedule=HOURLY, **options)
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(["duckdb", "public", table]) for table in tables],
        raise_on_error=False,
    )


def reports(instance: dg.DagsterInstance, table: str, run_id: str) -> list[dict[str, Any]]:
    """The metadata of the materialisations of a table in a run, the newest first."""
    records = instance.fetch_materializations(dg.AssetKey(["duckdb", "public", table]), limit=100).records
    events = [record.asset_materialization for record in records if record.run_id == run_id]
    return [{name: value.value for name, value in event.metadata.items()} for event in events if event is not None]


def change(database: Database) -> None:
    database.execute("UPDATE orders SET n = -n WHERE id <= 10; DELETE FROM customers WHERE id > 50")
    database.execute("INSERT INTO notes VALUES (1, 'x')")


@pytest.mark.parametrize("options", [{}, {"copy_processes": {"public.orders": 1, "public.customers": 2}}])
def test_a_step_streams_up_to_now_and_reports_all_that_it_streamed(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, options: dict[str, Any]
) -> None:
    assert sync(replication, instance).success
    change(database)
    result = materialize(replication, instance, "orders", "customers", **options)
    assert result.success
    for table in ("orders", "customers", "notes"):
        assert content(replication, table) == at_source(database, table)
    own, streamed = reports(instance, "orders", result.run_id)
    assert (own["etl/brought_up_by"], own["dagster/row_count"], own["etl/lsn"]) == ("stream", 100, streamed["etl/lsn"])
    assert (streamed["etl/rows_updated"], streamed["dagster/row_count"]) == (10, 100)
    own, streamed = reports(instance, "customers", result.run_id)
    assert (own["dagster/row_count"], streamed["etl/rows_deleted"]) == (50, 50)
    [streamed] = reports(instance, "notes", result.run_id)  # which nobody asked for, and which was streamed
    assert (streamed["etl/rows_inserted"], streamed["dagster/row_count"]) == (1, 1)
    evaluations = {
        (each.check_name, each.asset_key.path[-1]): each.passed for each in result.get_asset_check_evaluations()
    }
    assert evaluations["replication_lag", "orders"]
    assert evaluations["table_state", "customers"]
    with replication.connect("test") as connection:  # the server forgets a session a moment after its end
        until(lambda: not presence.sessions(connection, replication.name), "that nothing is left")


def test_a_step_waits_for_the_run_that_streams(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance).success
    change(database)
    results: list[dg.ExecuteInProcessResult] = []
    with replication.connect(presence.turn_of("streams")) as session, replication.pipeline() as other:
        assert presence.try_to_stream(session, replication.name)
        step = threading.Thread(target=lambda: results.append(materialize(replication, instance, "orders")))
        step.start()
        until(lambda: "another run is about to stream" in logged(instance), "that it waits")
        other.prepare()
        other.stream(until=other.current_lsn())
        step.join(300)
    assert results[0].success
    [report] = reports(instance, "orders", results[0].run_id)
    assert report["etl/brought_up_by"] == "stream"
    assert content(replication, "orders") == at_source(database, "orders")


def test_what_a_step_reports_never_goes_back(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table is copied while the batch runs, which then streams what came after the copy, and reports it first."""
    assert sync(replication, instance, ORDERS).success
    change(database)
    stream, began = Pipeline.stream, threading.Event()

    def late(pipeline: Pipeline, **_: object) -> Streamed:
        began.set()
        until(lambda: state(replication, NOTES) is TableState.FINISHED_COPY, "the copy")
        database.execute("INSERT INTO notes VALUES (2, 'y')")
        return stream(pipeline, until=pipeline.current_lsn())

    def hold() -> None:
        assert began.wait(300)

    monkeypatch.setattr(Pipeline, "stream", late)
    with activated(COPY_STARTED, hold):
        result = materialize(replication, instance, "orders", "notes")
    assert result.success
    own, streamed = reports(instance, "notes", result.run_id)
    assert (own["etl/lsn"], own["dagster/row_count"]) == (streamed["etl/lsn"], 2)


def test_what_the_batch_fails_with_is_told_of_each_table_that_waits_and_the_others_are_copied(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sync(replication, instance, ORDERS, CUSTOMERS).success
    change(database)

    def blocked(*_: object, **__: object) -> Streamed:
        raise StreamBlocked("the server cannot send the transaction", hint="correct the row filter")

    monkeypatch.setattr(Pipeline, "stream", blocked)
    result = materialize(replication, instance, "orders", "customers", "notes")
    [(description, hint)] = failures(result).values()
    assert description == (
        "2 of 3 tables failed: public.orders, public.customers: the server cannot send the transaction"
    )
    assert hint == "correct the row filter"
    assert content(replication, "notes") == [(1, "x")]


def logged(instance: dg.DagsterInstance) -> str:
    return "\n".join(
        entry.user_message for run in instance.get_runs(limit=1) for entry in instance.all_logs(run.run_id)
    )
