"""The check `table_state`: what a stream run tells of its tables, and of which it no longer says that they live."""

import dagster as dg
import pytest

from etl_core.state.store import TableUpdate
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.table_states import TABLE_STATE
from tests.orchestration.syncing import CUSTOMERS, NOTES, ORDERS
from tests.orchestration.test_sensor import synced
from tests.orchestration.test_stream import Runs, until

KEYS = {table: dg.AssetKey(["duckdb", "public", table.name]) for table in (ORDERS, CUSTOMERS, NOTES)}


@pytest.fixture
def runs(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> Runs:
    synced(replication)
    return Runs(replication, instance)


def told(runs: Runs, run_id: str) -> dict[str, list[dg.AssetCheckEvaluation]]:
    """What a run told of each table, the first first."""
    found: dict[str, list[dg.AssetCheckEvaluation]] = {table.name: [] for table in KEYS}
    for entry in runs.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        assert entry.dagster_event is not None
        evaluation = entry.dagster_event.asset_check_evaluation_data
        if evaluation.check_name == TABLE_STATE:
            found[evaluation.asset_key.path[-1]].append(evaluation)
    return found


def fail(runs: Runs) -> None:
    with runs.replication.pipeline() as pipeline:
        update = TableUpdate(error="a value does not fit", hint="copy it again: etl resync public.orders", attempts=2)
        pipeline.store.transition(pipeline.find(ORDERS), TableState.ERRORED, update)


def test_a_result_is_told_once_until_the_state_changes(runs: Runs) -> None:
    def run() -> dict[str, list[tuple[bool, str]]]:
        result = runs.execute(mode="micro_batch")
        evaluations = told(runs, result.run_id)
        return {name: [(one.passed, str(one.description)) for one in ones] for name, ones in evaluations.items()}

    streams = {table.name: [(True, f"{table} streams")] for table in KEYS}
    assert run() == streams
    assert run() == {"orders": [], "customers": [], "notes": []}, "an earlier run has told it"
    fail(runs)
    [(passed, description)] = run()["orders"]
    assert not passed
    assert description == (
        "public.orders stopped: a value does not fit → copy it again: launch job "
        f"{runs.replication.name}_control with resync: {{tables: [public.orders]}}"
    )
    assert run()["orders"] == []


def test_a_failed_table_says_since_when_and_what_comes_next(runs: Runs) -> None:
    fail(runs)
    [evaluation] = told(runs, runs.execute(mode="micro_batch").run_id)["orders"]
    assert evaluation.severity is dg.AssetCheckSeverity.ERROR
    metadata = {name: value.value for name, value in evaluation.metadata.items()}
    assert (metadata["etl/state"], metadata["etl/error"], metadata["etl/failed_tries"]) == (
        "ERRORED",
        "a value does not fit",
        2,
    )
    assert str(metadata["etl/since"]).endswith("UTC")


def test_a_table_that_a_run_reports_has_a_result_of_the_same_run(runs: Runs, database: Database) -> None:
    """Else Dagster shows the check as not evaluated since."""
    runs.execute(mode="micro_batch")
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    evaluations = told(runs, runs.execute(mode="micro_batch").run_id)
    assert {name: len(ones) for name, ones in evaluations.items()} == {"orders": 0, "customers": 0, "notes": 1}


def test_tables_that_do_not_stream_have_no_heartbeat_and_a_reason(runs: Runs, database: Database) -> None:
    run = runs.start(lease_seconds=0.5, heartbeat_every_seconds=1.0)
    until(lambda: all(runs.materialized(key) for key in KEYS.values()), "heartbeats of all three")
    database.execute("DROP TABLE orders")
    with runs.replication.pipeline() as pipeline:
        pipeline.pause(CUSTOMERS)
    until(lambda: {len(told(runs, run)[name]) for name in ("orders", "customers")} == {2}, "both reasons")
    stopped = {table: len(runs.materialized(KEYS[table])) for table in (ORDERS, CUSTOMERS)}
    beats = len(runs.materialized(KEYS[NOTES]))
    until(lambda: len(runs.materialized(KEYS[NOTES])) >= beats + 3, "three heartbeats of the one that streams")
    assert {table: len(runs.materialized(KEYS[table])) for table in stopped} == stopped
    runs.end()
    assert runs.results[run].success
    orders, customers = (told(runs, run)[name][-1] for name in ("orders", "customers"))
    assert "public.orders stopped: " in str(orders.description)
    assert (orders.passed, orders.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "public.customers is paused" in str(customers.description)
    assert (customers.passed, customers.severity) == (False, dg.AssetCheckSeverity.WARN)
