"""The check `table_state`: what a stream run tells of its tables, and of which it no longer says that they live."""

from dataclasses import replace

import dagster as dg
import pytest

from etl_core.identifiers import TableId
from etl_core.schema.ignored import ignoring
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.state.store import TableStatus, TableUpdate
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.reports.checks import build_replication_checks
from etl_dagster.reports.table_states import TABLE_STATE, judge_table_state
from etl_dagster.reports.verdicts import judge_schema
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.assets import build_initial_sync_assets
from tests.orchestration.syncing import CUSTOMERS, NOTES, ORDERS
from tests.orchestration.test_sensor import synced
from tests.orchestration.test_stream import Runs, until

KEYS = {table: dg.AssetKey(["duckdb", "public", table.name]) for table in (ORDERS, CUSTOMERS, NOTES)}


@pytest.fixture
def runs(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> Runs:
    synced(replication)
    return Runs(replication, instance)


def told(runs: Runs) -> dict[str, list[dg.AssetCheckEvaluation]]:
    """What Dagster was told of each table so far, the first first."""
    found = {}
    for table, key in KEYS.items():
        check = dg.AssetCheckKey(key, TABLE_STATE)
        records = runs.instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
        found[table.name] = [record.evaluation for record in reversed(records) if record.evaluation is not None]
    return found


def test_a_table_some_of_whose_changes_are_ignored_says_which() -> None:
    status = TableStatus(TableId(1), ORDERS, TableState.READY, 1)
    verdict = judge_table_state(ORDERS, status, [], "shop", ["column note (added)"])
    assert (verdict.passed, verdict.description) == (True, f"{ORDERS} streams; ignored: column note (added)")
    key, note = Column("id", PgType(23, "int4"), attnum=1), Column("note", PgType(25, "text"), attnum=2)
    before = TableSchema(TableId(1), ORDERS, (key,), ("id",))
    now = replace(before, columns=(key, note))
    for stored in (before, ignoring(before, now)):
        verdict = judge_schema(ORDERS, stored, now, ignores=True)
        assert (verdict.passed, verdict.description) == (
            True,
            f"{ORDERS} keeps its columns; ignored: column note (added)",
        )
    assert not judge_schema(ORDERS, before, replace(now, key=("note",)), ignores=True).passed


def fail(runs: Runs) -> None:
    with runs.replication.pipeline() as pipeline:
        update = TableUpdate(error="a value does not fit", hint="copy it again: etl resync public.orders", attempts=2)
        pipeline.store.transition(pipeline.find(ORDERS), TableState.ERRORED, update)


def test_a_result_is_told_once_until_the_state_changes(runs: Runs) -> None:
    def run() -> dict[str, list[tuple[bool, str]]]:
        """What one run told."""
        before = told(runs)
        runs.execute(mode="micro_batch")
        return {
            name: [(one.passed, str(one.description)) for one in results[len(before[name]) :]]
            for name, results in told(runs).items()
        }

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


def test_a_stream_goes_on_while_a_person_s_run_is_about_to_evaluate_the_check(runs: Runs) -> None:
    page = build_postgres_replication(runs.replication).resolve_implicit_global_asset_job_def()
    runs.instance.create_run_for_job(page)
    assert runs.execute(mode="micro_batch").success
    assert {len(results) for results in told(runs).values()} == {2}, "the plan, and the result"


def test_a_failed_table_says_since_when_and_what_comes_next(runs: Runs) -> None:
    fail(runs)
    runs.execute(mode="micro_batch")
    [evaluation] = told(runs)["orders"]
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
    run = runs.execute(mode="micro_batch").run_id
    assert {name: len(ones) for name, ones in told(runs).items()} == {"orders": 1, "customers": 1, "notes": 2}
    latest = runs.instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(KEYS[NOTES], TABLE_STATE))
    assert latest is not None
    assert latest.run_id == run


def test_tables_that_do_not_stream_have_no_heartbeat_and_a_reason(runs: Runs, database: Database) -> None:
    run = runs.start(lease_seconds=0.5, heartbeat_every_seconds=1.0)
    until(lambda: all(runs.materialized(key) for key in KEYS.values()), "heartbeats of all three")
    with runs.replication.pipeline() as pipeline:
        pipeline.pause(CUSTOMERS)
    database.execute("DROP TABLE orders")  # last: the stream sees it by itself, and the pause when it looks for that
    until(lambda: {len(told(runs)[name]) for name in ("orders", "customers")} == {2}, "both reasons")
    stopped = {table: len(runs.materialized(KEYS[table])) for table in (ORDERS, CUSTOMERS)}
    beats = len(runs.materialized(KEYS[NOTES]))
    until(lambda: len(runs.materialized(KEYS[NOTES])) >= beats + 3, "three heartbeats of the one that streams")
    assert {table: len(runs.materialized(KEYS[table])) for table in stopped} == stopped
    runs.end()
    assert runs.results[run].success
    orders, customers = (told(runs)[name][-1] for name in ("orders", "customers"))
    assert "public.orders stopped: " in str(orders.description)
    assert (orders.passed, orders.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "public.customers is paused" in str(customers.description)
    assert (customers.passed, customers.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_table_that_fails_after_a_person_ran_the_checks_is_seen_to_have_failed(runs: Runs) -> None:
    """Dagster has one row for a run and a check: the run that streams must not write behind that person's."""
    run = runs.start(lease_seconds=0.5)
    until(lambda: len(told(runs)["orders"]) == 1, "the first result")
    key = dg.AssetCheckKey(KEYS[ORDERS], TABLE_STATE)
    checked = build_replication_checks(runs.replication, list(KEYS))
    assets = build_initial_sync_assets(runs.replication, list(KEYS))
    done = dg.materialize(
        [*assets, *checked],
        instance=runs.instance,
        resources={runs.replication.name: runs.replication},
        selection=dg.AssetSelection.checks(key),
    )
    assert done.success
    fail(runs)
    until(lambda: not told(runs)["orders"][-1].passed, "the failure")
    latest = runs.instance.get_latest_asset_check_evaluation_record(key)
    assert latest is not None
    assert latest.evaluation is not None
    assert not latest.evaluation.passed
    runs.end()
    assert runs.results[run].success
