"""The control job on a real pipeline: what each action says first, does, and refuses."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg
import duckdb
import pytest

from etl_core.state.store import TableUpdate
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import copy_requests, presence
from etl_dagster.stream.control_job import build_control_job
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import (
    CUSTOMERS,
    NOTES,
    ORDERS,
    TABLES,
    at_source,
    content,
    failures,
    like,
    slots,
    state,
    sync,
)
from tests.orchestration.test_sensor import tick


@pytest.fixture(autouse=True)
def replicated(replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three tables copied and in step."""
    monkeypatch.setattr(copy_requests, "_SETTLED", timedelta(0))
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())


class Control:
    """Launches the job, and reads what its run says."""

    def __init__(self, replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
        self._replication = replication
        self._instance = instance
        self._job = build_control_job(replication, TABLES)

    def launch(self, **action: Any) -> dg.ExecuteInProcessResult:
        """With what the launchpad has filled in, or one action."""
        config = {"ops": {f"control_{self._replication.name}": {"config": {"action": action}}}}
        return self._job.execute_in_process(
            instance=self._instance,
            resources={names.resource_key(self._replication.name): self._replication},
            run_config=config if action else None,
            raise_on_error=False,
        )

    def logged(self, result: dg.ExecuteInProcessResult) -> str:
        return "\n".join(entry.user_message for entry in self._instance.all_logs(result.run_id))


@pytest.fixture
def control(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> Control:
    return Control(replication, instance)


def failure(result: dg.ExecuteInProcessResult) -> str:
    [event] = result.get_step_failure_events()
    said = event.step_failure_data.user_failure_data
    assert said is not None, event.step_failure_data.error
    return str(said.description)


def drain(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return build_stream_job(replication, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=dg.RunConfig(ops={f"stream_{replication.name}": StreamConfig(mode="micro_batch")}),
        raise_on_error=False,
    )


def copies(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> set[str]:
    """The tables whose copy a tick requests."""
    requests, _ = tick(replication, instance)
    return {key.path[-1] for request in requests for key in request.asset_selection or ()}


def test_as_it_is_filled_in_it_copies_again_what_has_failed(
    control: Control, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    database.execute("ANALYZE orders")
    with replication.pipeline() as pipeline:
        failed = TableUpdate(error="a value does not fit", attempts=1)
        pipeline.store.transition(pipeline.find(ORDERS), TableState.ERRORED, failed)
    result = control.launch()
    assert result.success
    assert "public.orders: about 100 rows, 8.0 KiB at the source; the last copy took" in control.logged(result)
    assert "readers keep the old one" in control.logged(result)
    assert (state(replication, ORDERS), state(replication, CUSTOMERS)) == (TableState.INIT, TableState.READY)
    assert copies(replication, instance) == {"orders"}
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["etl/control"] == "resync"


def test_what_waits_is_listed_and_approved_by_name_alone(
    control: Control, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    cautious = like(replication, PostgresReplicationResource, schema_changes="approve", recopy="ask")
    database.execute("ALTER TABLE orders RENAME note TO remark; UPDATE orders SET n = 7 WHERE id = 1")
    database.execute("ALTER TABLE customers ALTER n TYPE bigint; DELETE FROM customers WHERE id = 1")
    drain(cautious, instance)
    for _ in range(2):  # once set back, and as one that waits
        happened, _ = failures(sync(cautious, instance, CUSTOMERS))["customers"]
        assert "customers waits for approval (schema_changes: approve): column n changed" in happened
    assert (state(replication, ORDERS), state(replication, CUSTOMERS)) == (TableState.ERRORED,) * 2
    assert "no table has failed" in control.logged(control.launch())
    listed = control.launch(approve={})
    assert "no table is named" in failure(listed)
    assert "column note (text) was renamed to remark (text)" in control.logged(listed)
    approved = control.launch(approve={"tables": ["public.orders", "public.customers"]})
    assert "public.orders is approved: public.orders waits for approval" in control.logged(approved)
    assert "it goes on with the changes that were kept" in control.logged(approved)
    assert sync(cautious, instance, CUSTOMERS).success
    drain(cautious, instance)
    for table in ("orders", "customers"):
        assert content(replication, table) == at_source(database, table)


def test_tables_are_paused_and_resumed_and_an_unknown_one_touches_none(
    control: Control, replication: PostgresReplicationResource
) -> None:
    unknown = control.launch(pause={"tables": ["public.orders", "public.ordres"]})
    assert "public.ordres is not a table of pipeline" in failure(unknown)
    assert "its tables: public.customers, public.notes, public.orders" in failure(unknown)
    assert state(replication, ORDERS) is TableState.READY
    paused = control.launch(pause={"tables": ["public.orders"]})
    assert "to resume it is to copy it again" in control.logged(paused)
    assert state(replication, ORDERS) is TableState.PAUSED
    resumed = control.launch(resume={})
    assert f"{replication.name}_stream_sensor" in control.logged(resumed)
    assert (state(replication, ORDERS), state(replication, NOTES)) == (TableState.INIT, TableState.READY)


@pytest.mark.parametrize(
    ("stopped", "action"), [(TableState.ERRORED, {"resync": {}}), (TableState.PAUSED, {"resume": {}})]
)
def test_a_table_that_stopped_before_its_first_copy_is_copied_by_the_sensor(
    control: Control,
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    stopped: TableState,
    action: dict[str, Any],
) -> None:
    with replication.pipeline() as pipeline:
        pipeline.store.remove_table(pipeline.find(ORDERS).table_id)
        pipeline.prepare()
        assert copies(replication, instance) == set(), "nobody has asked for it yet"
        pipeline.store.transition(pipeline.find(ORDERS), stopped)
    assert f"public.orders {'is resumed: it ' if stopped is TableState.PAUSED else ''}will be copied again by" in (
        control.logged(control.launch(**action))
    )
    assert copies(replication, instance) == {"orders"}


def test_a_comparison_is_a_result_of_the_check_too(
    control: Control, replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    equal = control.launch(verify={})
    assert equal.success, control.logged(equal)
    assert "equal: 3 tables, 200 rows" in control.logged(equal)
    with duckdb.connect(replication.destination.options()["path"]) as connection:
        connection.execute("UPDATE public.orders SET n = -1 WHERE id = 7")
    differs = control.launch(verify={"tables": ["public.orders"]})
    assert "1 table differs" in failure(differs)
    [check] = evaluations(instance, differs)
    assert (check.check_name, check.passed) == ("equals_source", False)
    assert "1 changed; key 7" in str(check.description)


def test_a_comparison_says_of_each_table_that_does_not_stream_why_it_was_left_out(
    control: Control, replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    with replication.pipeline() as pipeline:
        pipeline.pause(ORDERS)
        pipeline.store.remove_table(pipeline.find(NOTES).table_id)
        pipeline.prepare()
    result = control.launch(verify={})
    paused, never = (
        "public.orders was not compared: it is paused",
        "public.notes was not compared: it has yet to be copied",
    )
    assert failure(result) == (
        f"2 tables not compared, 1 equal → {never}; {paused}; to compare the others alone, name them"
    )
    checks = {check.asset_key.path[-1]: check for check in evaluations(instance, result)}
    assert {name: check.passed for name, check in checks.items()} == {
        "customers": True,
        "notes": False,
        "orders": False,
    }
    assert (checks["orders"].description, checks["orders"].severity) == (paused, dg.AssetCheckSeverity.WARN)
    assert (checks["notes"].description, checks["notes"].severity) == (never, dg.AssetCheckSeverity.WARN)
    assert control.launch(verify={"tables": ["public.customers"]}).success
    assert (state(replication, ORDERS), state(replication, NOTES)) == (TableState.PAUSED, TableState.INIT)


def test_a_comparison_before_anything_was_copied_ends_and_says_so(
    control: Control, replication: PostgresReplicationResource
) -> None:
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        for table in TABLES:
            pipeline.store.remove_table(pipeline.find(table).table_id)
    said = failure(control.launch(verify={}))
    assert said.startswith(
        "3 tables not compared, 0 equal → public.customers was not compared: it has yet to be copied; "
    )


def evaluations(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[Any]:
    entries = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]


def drop_slot(database: Database, slot: str) -> str:
    database.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    return f"replication slot {slot} is gone"


def invalidate_slot(database: Database, slot: str) -> str:
    """As max_slot_wal_keep_size does to a slot that nobody reads for too long."""
    database.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    try:
        database.execute("SELECT pg_reload_conf()")
        for _ in range(20):
            database.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000))")
            database.execute("CHECKPOINT")
            lost = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND wal_status = 'lost'"
            if database.execute(lost, [slot]):
                return f"the server has invalidated replication slot {slot}"
    finally:
        database.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        database.execute("SELECT pg_reload_conf()")
    raise AssertionError("the slot is not lost")


@pytest.mark.parametrize("lose", [drop_slot, invalidate_slot])
def test_a_lost_slot_is_reset_and_everything_is_copied_again(
    control: Control,
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    lose: Callable[[Database, str], str],
) -> None:
    slot = f"etl_{replication.name}"
    control.launch(pause={"tables": ["public.notes"]})
    said = lose(database, slot)
    database.execute("UPDATE orders SET n = -5 WHERE id = 5")
    lost = failure(drain(replication, instance))
    assert said in lost
    assert f"launch job {replication.name}_control with reset, which has every table copied again" in lost

    asked = control.launch(reset={})
    assert f"reset: {{confirm: {replication.name}}}" in failure(asked)
    assert f"drops replication slot {slot}" in control.logged(asked)
    assert "together: 2 tables, about 200 rows" in control.logged(asked)
    assert state(replication, ORDERS) is TableState.READY

    assert control.launch(reset={"confirm": replication.name}).success
    assert copies(replication, instance) == {"orders", "customers"}
    assert content(replication, "orders")[4][1] == 5, "readers keep the old copy"
    assert drain(replication, instance).success
    assert sync(replication, instance, ORDERS, CUSTOMERS, full_refresh=False).success
    assert drain(replication, instance).success
    assert content(replication, "orders")[4][1] == -5
    assert slots(database) == [slot]
    with replication.pipeline() as pipeline:
        assert all(comparison.is_equal for comparison in pipeline.verify([ORDERS, CUSTOMERS]))
    assert state(replication, NOTES) is TableState.PAUSED


def test_a_teardown_drops_the_slot_and_the_sensor_starts_nothing_after_it(
    control: Control, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    asked = control.launch(teardown={"confirm": "yes"})
    assert f"teardown will drop replication slot etl_{replication.name}" in control.logged(asked)
    assert "the destination keeps its tables" in control.logged(asked)
    assert slots(database) != []
    assert control.launch(teardown={"confirm": replication.name}).success
    assert slots(database) == []
    requests, reason = tick(replication, instance)
    assert requests == []
    assert "was torn down" in str(reason)
    assert control.launch().success, "there is nothing to copy again"
    requests, reason = tick(replication, instance)
    assert requests == []
    assert "was torn down" in str(reason)
    assert sync(replication, instance, ORDERS).success
    assert [request.job_name for request in tick(replication, instance)[0]] == [f"{replication.name}_stream"]


@pytest.mark.parametrize("action", ["reset", "teardown"])
def test_what_streams_is_not_pulled_away_from_under_it(
    control: Control, replication: PostgresReplicationResource, database: Database, action: str
) -> None:
    with replication.pipeline() as pipeline:
        progress = pipeline.store.progress()
        assert progress is not None
        with pipeline.source.open_stream(pipeline.source.main_slot, progress.flushed_lsn, "test"):
            refused = failure(control.launch(**{action: {"confirm": replication.name}}))
    assert "turn off its sensor or schedule, end that run or process" in refused
    assert slots(database) == [f"etl_{replication.name}"]
    assert state(replication, ORDERS) is TableState.READY


@pytest.mark.parametrize("action", ["reset", "teardown"])
def test_a_run_that_waits_for_its_next_try_would_make_anew_what_is_dropped(
    control: Control, replication: PostgresReplicationResource, database: Database, action: str
) -> None:
    confirmed = {action: {"confirm": replication.name}}
    with replication.connect(presence.role_of("12345678")):
        assert "is streaming (run 12345678), so nothing was done" in failure(control.launch(**confirmed))
    assert slots(database) == [f"etl_{replication.name}"]
    assert control.launch(**confirmed).success
    assert slots(database) == []
