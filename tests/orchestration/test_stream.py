"""Stream runs on a real source: draining, the hand-over from run to run, what is reported."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dagster as dg
import duckdb
import psycopg
import pytest

from etl_core.errors import DestinationUnavailable
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.stream import StreamWorker
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import dead_runs, presence, stream_run
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from etl_dagster.stream.stream_run import StreamRun
from tests.orchestration.syncing import materializations, sync

PATIENCE = 300.0
TABLES = [TableName("public", name) for name in ("orders", "customers", "notes")]
ORDERS = dg.AssetKey(["duckdb", "public", "orders"])


class Runs:
    """Runs of the stream job in threads of this process."""

    def __init__(self, replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
        self.replication = replication
        self.instance = instance
        self.job = build_stream_job(replication, TABLES)
        self.threads: list[threading.Thread] = []
        self.results: dict[str, Any] = {}

    def start(self, **config: Any) -> str:
        """Starts a run and returns its id."""
        run_id = str(uuid4())

        def execute() -> None:
            self.results[run_id] = self.execute(run_id, **config)

        thread = threading.Thread(target=execute, daemon=True)
        thread.start()
        self.threads.append(thread)
        return run_id

    def execute(self, run_id: str | None = None, **config: Any) -> dg.ExecuteInProcessResult:
        op = f"stream_{self.replication.name}"
        return self.job.execute_in_process(
            run_id=run_id,
            instance=self.instance,
            resources={names.resource_key(self.replication.name): self.replication},
            run_config=dg.RunConfig(ops={op: StreamConfig(**config)}),
            raise_on_error=False,
        )

    def end(self) -> None:
        """Ends the run that streams, after its lease, by standing by as its successor would."""
        with self.replication.connect(presence.turn_of("standing by")):
            self.join()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a run did not end"

    def logged(self, run_id: str, text: str) -> bool:
        return any(text in entry.user_message for entry in self.instance.all_logs(run_id))

    def reporting(self, key: dg.AssetKey) -> str | None:
        """The id of the run that reported the asset last."""
        records = self.instance.fetch_materializations(key, limit=1).records
        return records[0].run_id if records else None

    def materialized(self, key: dg.AssetKey) -> list[dg.AssetMaterialization]:
        records = self.instance.fetch_materializations(key, limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization is not None]


@pytest.fixture
def runs(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> Runs:
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    return Runs(replication, instance)


def until(happened: Callable[[], bool], what: str) -> None:
    event = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if happened():
            return
        event.wait(0.05)
    raise AssertionError(f"{what} did not happen")


def read(replication: PostgresReplicationResource, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(Path(replication.destination.options()["path"])) as destination:
        return destination.execute(query).fetchall()


def test_a_micro_batch_brings_everything_up_to_its_start(runs: Runs, database: Database) -> None:
    database.execute("UPDATE orders SET n = -1 WHERE id <= 10; DELETE FROM orders WHERE id > 90")
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    assert runs.execute(mode="micro_batch").success
    assert read(runs.replication, "SELECT count(*), sum(n) FROM public.orders") == [(90, 4030)]
    [orders] = runs.materialized(ORDERS)
    metadata: dict[str, Any] = {name: value.value for name, value in orders.metadata.items()}
    assert (metadata["etl/rows_updated"], metadata["etl/rows_deleted"], metadata["etl/rows_inserted"]) == (10, 10, 0)
    assert orders.tags == {"dagster/data_version": metadata["etl/lsn"]}
    assert metadata["etl/lag_seconds"] >= 0
    assert len(runs.materialized(dg.AssetKey(["duckdb", "public", "notes"]))) == 1
    assert runs.materialized(dg.AssetKey(["duckdb", "public", "customers"])) == []


def test_quiet_tables_have_heartbeats_though_every_run_is_short(runs: Runs) -> None:
    notes = dg.AssetKey(["duckdb", "public", "notes"])
    for _ in range(2):
        assert runs.execute(mode="micro_batch").success
    assert runs.materialized(notes) == [], "it was not quiet for a quarter of an hour"
    threading.Event().wait(2.0)
    assert runs.execute(mode="micro_batch", heartbeat_every_seconds=2.0).success
    beat = runs.materialized(notes)[0]
    assert beat.tags == {"dagster/data_version": beat.metadata["etl/lsn"].value}
    assert "etl/rows_inserted" not in beat.metadata


def test_a_heartbeat_after_a_new_copy_has_the_version_of_the_copy(
    runs: Runs, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    stream = runs.start(lease_seconds=0.5, heartbeat_every_seconds=3.0)
    until(lambda: database.execute("SELECT 1 FROM pg_replication_slots WHERE active") != [], "the stream")
    database.execute("CREATE TABLE elsewhere AS SELECT generate_series(1, 1000)")
    copy = materializations(sync(replication, instance, TABLES[0], full_refresh=True))["orders"]
    version = (copy.tags or {})["dagster/data_version"]
    assert version == copy.metadata["etl/lsn"].value

    def is_heartbeat(event: dg.AssetMaterialization) -> bool:
        return "no change" in str(event.description) and (event.tags or {})["dagster/data_version"] == version

    until(lambda: is_heartbeat(runs.materialized(ORDERS)[0]), "a heartbeat with the copy's version")
    runs.end()
    assert runs.results[stream].success


def test_a_run_gives_way_to_its_successor_and_nothing_is_lost(runs: Runs, database: Database) -> None:
    stop = threading.Event()
    written: list[int] = []
    notes = dg.AssetKey(["duckdb", "public", "notes"])

    def write() -> None:
        while not stop.wait(0.01):
            database.execute("INSERT INTO notes VALUES (%s, 'x')", [len(written)])
            database.execute("UPDATE orders SET n = n + 1 WHERE id = 1")
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        first = runs.start(lease_seconds=0.5, report_every_seconds=0.5)
        for _ in range(3):
            # A run that still tries to get hold of the slot would end without a word to its successor.
            until(lambda run=first: runs.reporting(notes) == run, "its first report")  # type: ignore[misc]
            second = runs.start(lease_seconds=0.5, report_every_seconds=0.5)
            until(lambda run=first: run in runs.results, "the hand-over")  # type: ignore[misc]
            assert runs.results[first].success
            assert runs.logged(first, "gives way")
            first = second
    finally:
        stop.set()
        writer.join()
    assert runs.execute(mode="micro_batch").success  # that the stream has passed what was written
    runs.end()
    assert runs.results[first].success
    rows = database.execute("SELECT count(*), (SELECT n FROM orders WHERE id = 1) FROM notes")
    assert rows == [(len(written), 1 + len(written))]
    assert (
        read(runs.replication, "SELECT count(*), (SELECT n FROM public.orders WHERE id = 1) FROM public.notes") == rows
    )
    reported = runs.materialized(notes)
    inserted: list[Any] = [event.metadata["etl/rows_inserted"].value for event in reported]
    assert sum(inserted) == len(written)


def test_a_transaction_that_takes_longer_than_a_lease_is_passed(
    runs: Runs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    amid, to_give_way = threading.Event(), threading.Event()
    after_read, is_there = StreamWorker._after_read, stream_run._Successor.is_there

    def slowly(worker: StreamWorker, until: Lsn | None) -> Any:
        if worker._assembler.in_transaction:
            amid.set()
            assert to_give_way.wait(PATIENCE)
        return after_read(worker, until)

    def noticed(successor: Any) -> bool:
        found = is_there(successor)
        if found:
            to_give_way.set()
        return found

    monkeypatch.setattr(StreamWorker, "_after_read", slowly)
    monkeypatch.setattr(stream_run._Successor, "is_there", noticed)
    run = runs.start(lease_seconds=0.1)
    database.execute("INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
    assert amid.wait(PATIENCE)
    runs.end()
    assert runs.results[run].success
    assert read(runs.replication, "SELECT count(*) FROM public.notes") == [(20_000,)]


def test_a_batch_that_waits_for_its_turn_is_no_successor(
    runs: Runs, replication: PostgresReplicationResource, database: Database
) -> None:
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    with replication.connect(presence.turn_of("streaming")) as session:
        assert presence.try_to_stream(session, replication.name)
        batch = runs.start(mode="micro_batch")
        until(lambda: f"batch_{batch[:8]}" in roles(database, replication), "its wait for the turn")
        assert connected(replication) == ({batch[:8]}, {"streamin"})
        assert presence.streaming(session, replication.name) == "streamin"
    runs.join()
    assert runs.results[batch].success
    assert read(replication, "SELECT * FROM public.notes") == [(1, "x")]


def test_a_run_past_its_lease_does_not_end_for_a_batch(
    runs: Runs, replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, is_there = threading.Semaphore(0), stream_run._Successor.is_there

    def look(successor: Any) -> bool:
        found = is_there(successor)
        looks.release()
        return found

    monkeypatch.setattr(stream_run, "_SUCCESSOR_EVERY", 0.0)
    monkeypatch.setattr(stream_run._Successor, "is_there", look)
    with replication.connect(presence.batch_of("a batch waits")):
        stream = runs.start(lease_seconds=0.1)
        for _ in range(3):
            assert looks.acquire(timeout=PATIENCE)
        assert not runs.logged(stream, "gives way")
        assert connected(replication)[1] == {stream[:8]}
    runs.end()
    assert runs.results[stream].success
    assert runs.logged(stream, "gives way")


def roles(database: Database, replication: PostgresReplicationResource) -> set[str]:
    prefix = f"etl_{replication.name}_"
    names = database.execute(
        "SELECT application_name FROM pg_stat_activity WHERE starts_with(application_name, %s)", [prefix]
    )
    return {name.removeprefix(prefix) for (name,) in names}


def connected(replication: PostgresReplicationResource) -> tuple[set[str], set[str]]:
    """The runs that are there, and those that stand by or stream."""
    with replication.connect("test") as connection:
        return presence.sessions(connection, replication.name), presence.standing_by(connection, replication.name)


def test_a_run_is_known_to_live_while_it_still_prepares(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    """Its slot cannot be created while a transaction is open at the source; nobody may take it for dead, or ready."""
    runs = Runs(replication, instance)
    with psycopg.connect(database.dsn) as writing:
        writing.execute("CREATE TABLE open_for_an_hour (id int)")
        run = runs.start(lease_seconds=0.5)
        until(lambda: runs.logged(run, "waits for"), "the wait for the slot")
        assert connected(replication) == ({run[:8]}, set())
    until(lambda: connected(replication) == ({run[:8]}, {run[:8]}), "the stream")
    runs.end()


def test_a_run_keeps_its_session_from_try_to_try(
    runs: Runs, replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def once(*_: object) -> None:
        seen.append(connected(replication))
        if len(seen) == 2:
            with replication.connect("test") as connection:  # the source restarts, say
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 300000) FROM pg_stat_activity WHERE application_name LIKE %s",
                    [f"etl_{replication.name}_run_%"],
                )
        if len(seen) < 4:
            raise DestinationUnavailable("shop.duckdb is held by another process")

    monkeypatch.setattr(StreamRun, "_stream_once", once)
    run = str(uuid4())
    assert runs.execute(run).success
    assert seen == [({run[:8]}, set())] * 4


@pytest.mark.parametrize(("comes_on", "has_turn"), [(False, True), (True, False), (True, True)])
def test_a_run_gives_up_when_it_does_not_come_on_however_long_each_try_takes(
    replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch, comes_on: bool, has_turn: bool
) -> None:
    """What the stream has come on while it was another run's turn does not count."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: once(seconds=seconds))

    def once(*of: Any, seconds: float = 61.0) -> None:
        if of and has_turn:
            of[0]._turn_began_at = stream_run._position(of[1])
        clock.now += seconds
        if clock.now > 3600:
            raise LookupError("an hour")
        if seconds == 61.0:
            raise DestinationUnavailable("shop.duckdb is held by another process")

    monkeypatch.setattr(stream_run, "time", fake)
    monkeypatch.setattr(stream_run, "_position", lambda _: Lsn(int(clock.now) if comes_on else 5))
    monkeypatch.setattr(StreamRun, "_stream_once", once)
    run = StreamRun(
        replication,
        {},
        dg.build_op_context(),
        sources={},
        slot=dg.AssetKey("slot"),
        max_lag=60.0,
        report_every=30.0,
        heartbeat_every=900.0,
    )
    with pytest.raises(LookupError if comes_on and has_turn else DestinationUnavailable):
        run.stream(900.0)
    assert (comes_on and has_turn) or 300 < clock.now < 600


def test_a_run_that_has_not_started_is_not_reported_failed(
    runs: Runs, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_runs, "_LOOK_EVERY", 0.0)
    queued = instance.create_run_for_job(runs.job)
    monkeypatch.setattr("etl_dagster.stream.supervisor.LAUNCH_GRACE", 0.0)
    with runs.replication.connect("test") as session:
        context: Any = SimpleNamespace(instance=instance, job_name=runs.job.name, run_id="other", log=None)
        looks = dead_runs.DeadRuns(session, runs.replication.name, context)
        looks.report()
        looks.report()
    record = instance.get_run_by_id(queued.run_id)
    assert record is not None
    assert record.status is dg.DagsterRunStatus.NOT_STARTED
