"""Of two runs the one that was started later streams on: code that was reloaded does not go back to the old."""

import dagster as dg
import pytest

from etl_core.errors import SourceUnavailable
from etl_core.testing.postgres import Database
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.runs import successors
from etl_dagster.stream.stream_run import StreamRun
from tests.orchestration.test_sensor import synced, tick
from tests.orchestration.test_stream import Runs, connected, until

_END = "SELECT pg_terminate_backend(pid, 300000) FROM pg_stat_activity WHERE application_name = ANY (%s)"


def one_streams_and_one_stands_by(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> tuple[Runs, str, str]:
    synced(replication)
    runs = Runs(replication, instance)
    first = runs.start(lease_seconds=3600)
    until(lambda: f"run {first[:8]} streams" in str(tick(replication, instance)[1]), "the first run's stream")
    second = runs.start(lease_seconds=0.5)
    until(lambda: second[:8] in connected(replication)[1], "its standby")
    return runs, first, second


def test_the_run_that_was_started_later_streams_on(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    runs, first, second = one_streams_and_one_stands_by(replication, instance)
    reason = str(tick(replication, instance)[1])
    assert reason.startswith(f"run {first[:8]} streams, run {second[:8]} takes over from it")

    name = f"etl_{replication.name}"
    database.execute(_END, [[f"{name}_turn_{first[:8]}", f"{name}_stream"]])
    until(lambda: first in runs.results, "the end of the first run")
    assert runs.results[first].success
    assert runs.logged(first, f"run {second[:8]}, which was started later, streams this pipeline: this one ends")
    until(lambda: f"run {second[:8]} streams" in str(tick(replication, instance)[1]), "the second run's stream")
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    assert runs.execute(mode="micro_batch").success
    runs.end()
    assert runs.results[second].success


def test_a_run_that_cannot_begin_is_not_seen_to_stand_by(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, first, second = one_streams_and_one_stands_by(replication, instance)

    def fail(_: StreamRun) -> bool:
        raise SourceUnavailable("it cannot be reached from here")

    name = f"etl_{replication.name}"
    with monkeypatch.context() as patched:
        patched.setattr(StreamRun, "_is_overtaken", fail)
        until(lambda: runs.logged(second, "it cannot be reached from here; next try"), "its failed try")
        until(lambda: connected(replication)[1] == {first[:8]}, "the end of its standby")
    until(lambda: second[:8] in connected(replication)[1], "its standby once more")
    database.execute(_END, [[f"{name}_turn_{first[:8]}", f"{name}_stream"]])
    until(lambda: first in runs.results, "the end of the first run")
    runs.end()
    assert runs.results[first].success
    assert runs.results[second].success


def test_no_run_gives_way_to_an_older_one(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    job = Runs(replication, instance).job
    older, younger = (instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED).run_id for _ in range(2))
    standing_by = {older[:8], younger[:8]}
    assert successors(instance, job.name, older, standing_by) == {younger[:8]}
    assert successors(instance, job.name, younger, standing_by) == set()
    assert successors(instance, job.name, younger, {*standing_by, "elsewher"}) == {"elsewher"}, "of another Dagster"
