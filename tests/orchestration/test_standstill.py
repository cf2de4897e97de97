"""After a permanent error: one failed run, a tick that says why, and a new try as soon as something has changed."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from etl_core.errors import ConfigError, DestinationError, PermanentError
from etl_core.testing.postgres import Database
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import copy_requests, standstill, supervisor
from etl_dagster.stream.control_job import build_control_job
from tests.orchestration.syncing import ORDERS, like
from tests.orchestration.test_sensor import TABLES, synced, tick
from tests.orchestration.test_stream import Runs, until


@pytest.fixture
def runs(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Runs:
    """Nothing streams, and a run that failed is followed at once."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.0)
    synced(replication)
    return Runs(replication, instance)


def lose_slot(runs: Runs, database: Database) -> str:
    """The run that found it out; the only one that does."""
    database.execute("SELECT pg_drop_replication_slot(%s)", [f"etl_{runs.replication.name}"])
    [request], _ = tick(runs.replication, runs.instance)
    assert request.job_name == runs.job.name
    result = runs.execute()
    assert not result.success
    return result.run_id


def pause(runs: Runs, _: Database) -> None:
    with runs.replication.pipeline() as pipeline:
        pipeline.pause(ORDERS)


def alter(_: Runs, database: Database) -> None:
    database.execute("ALTER TABLE orders ALTER COLUMN n DROP NOT NULL")


def configure(runs: Runs, _: Database) -> None:
    runs.replication = like(runs.replication, PostgresReplicationResource, allow_append_only=True)


def verify_nothing(runs: Runs, _: Database) -> None:
    """A control run; it failed for the same reason, and one that succeeds counts."""
    control = build_control_job(runs.replication, TABLES)
    result = control.execute_in_process(instance=runs.instance, resources={runs.replication.name: runs.replication})
    assert result.success


@pytest.mark.parametrize("change", [pause, alter, configure, verify_nothing])
def test_nothing_is_started_until_something_changes(
    runs: Runs, database: Database, change: Callable[[Runs, Database], None]
) -> None:
    failed = lose_slot(runs, database)
    for _ in range(2):
        requests, reason = tick(runs.replication, runs.instance)
        assert requests == []
        assert f"run {failed[:8]} failed, and so would another: replication slot" in str(reason)
        assert f"launch job {runs.replication.name}_control with reset" in str(reason)
    change(runs, database)
    [request], _ = tick(runs.replication, runs.instance)
    assert request.run_key == f"etl_{runs.replication.name}:after:{failed}"
    assert not runs.execute().success
    assert tick(runs.replication, runs.instance)[0] == [], "one run for one change"


def test_a_table_that_is_to_be_copied_waits_too(
    runs: Runs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_requests, "_SETTLED", timedelta(0))
    with runs.replication.pipeline() as pipeline:
        pipeline.resync(ORDERS)
    database.execute("SELECT pg_drop_replication_slot(%s)", [f"etl_{runs.replication.name}"])
    assert not runs.execute().success
    assert tick(runs.replication, runs.instance)[0] == []


class Nowhere(DuckDBDestinationResource):
    """A destination of a type that is not registered, as after a mistake in new code."""

    @property
    def type(self) -> str:
        return "nowhere"


def test_successors_that_fail_for_good_are_not_started_again_while_the_old_run_streams(runs: Runs) -> None:
    old = runs.start(lease_seconds=0.5)
    until(lambda: f"run {old[:8]} streams" in str(tick(runs.replication, runs.instance)[1]), "the stream")
    wrong = PostgresReplicationResource(
        name=runs.replication.name,
        publication=runs.replication.publication,
        dsn=runs.replication.dsn,
        tables=runs.replication.tables,
        state=runs.replication.state,
        destination=Nowhere(path="nowhere.duckdb"),
    )
    failed = Runs(wrong, runs.instance).execute()
    assert not failed.success
    until(lambda: "past its lease" in str(tick(wrong, runs.instance, lease=0.5)[1]), "the end of the lease")
    requests, reason = tick(wrong, runs.instance, lease=0.5)
    assert requests == []
    new = failed.run_id[:8]
    assert f"run {old[:8]} streams on past its lease, without a successor: run {new} failed" in str(reason)
    assert "nowhere" in str(reason)
    corrected, _ = tick(runs.replication, runs.instance, lease=0.5)
    assert [request.job_name for request in corrected] == [runs.job.name]
    runs.end()


@pytest.mark.parametrize(("after", "requested"), [(3600, 0), (0, 1)])
@pytest.mark.parametrize("error", [DestinationError("the disk is full"), ConfigError("the key file cannot be read")])
def test_what_was_corrected_where_nobody_looks_is_seen_by_a_try_an_hour_later(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, error: PermanentError, after: int, requested: int
) -> None:
    monkeypatch.setattr(standstill, "_RETRY_AFTER", after)
    run = runs.instance.create_run_for_job(runs.job)
    context: Any = SimpleNamespace(instance=runs.instance, run_id=run.run_id)
    noted = standstill.Standstill(runs.replication, context)
    noted.look()
    noted.note(error)
    runs.instance.report_run_failed(run)
    assert len(tick(runs.replication, runs.instance)[0]) == requested


def test_a_person_s_run_that_streams_ends_the_standstill(runs: Runs, database: Database) -> None:
    lose_slot(runs, database)
    run = runs.instance.create_run_for_job(runs.job)
    runs.instance.report_run_canceled(run)
    assert len(tick(runs.replication, runs.instance)[0]) == 1
