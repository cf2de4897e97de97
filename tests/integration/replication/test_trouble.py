"""What is slow, away for a while, or answers after the work was done: nothing is lost and nothing doubled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from etl_core.destination.duckdb.copy import DuckDBCopy
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    EtlError,
    SlotInUse,
    SourceUnavailable,
    StateConflict,
    StateStoreUnavailable,
    TableError,
)
from etl_core.identifiers import TableName
from etl_core.replication import failpoints, prepare
from etl_core.replication.copied import Copied
from etl_core.replication.source import RunningCopies, Source
from etl_core.schema.table import TableSchema
from etl_core.source.connection import Connection
from etl_core.state.sql_store import open_store
from etl_core.state.table_state import TableState
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import PATIENCE, Churn, Lab, poll, scripted

MakeChurn = Callable[..., Churn]
MakeTables = Callable[..., None]


@pytest.fixture
def impatient(lab: Lab) -> Iterator[None]:
    """A source that ends a stream which is silent for two seconds."""
    lab.execute("ALTER SYSTEM SET wal_sender_timeout = '2s'")
    lab.execute("SELECT pg_reload_conf()")
    yield
    lab.execute("ALTER SYSTEM RESET wal_sender_timeout")
    lab.execute("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("impatient")
def test_a_slow_destination_does_not_cost_the_connection(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    pipeline = lab.pipeline(destination=scripted(lab, Fault("write", reached=reached, until=go_on)))
    with lab.running(pipeline) as running:
        lab.execute("UPDATE a SET n = n + 1")
        assert reached.wait(300)
        # The writer waits. The server would give up after two seconds; its clock is asked, not ours.
        lab.execute("SELECT pg_sleep(5)")
        lab.execute("UPDATE a SET n = n + 1")
        go_on.set()
        pipeline.observer.until_flushed(pipeline.current_lsn())
        assert running.is_alive
        assert not pipeline.observer.retries
    lab.assert_equal(lab.pipeline())


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"before": DestinationUnavailable("away")}, id="away"),
        pytest.param({"after": DestinationUnavailable("the answer is lost")}, id="lost answer"),
    ],
)
@pytest.mark.parametrize("method", ["write", "copy.publish"])
def test_a_call_that_fails_is_tried_again_and_not_applied_twice(
    lab: Lab, churned: MakeTables, fault: dict[str, Any], method: Any
) -> None:
    churned("a")
    lab.execute("CREATE TABLE log (line int)")  # without a key, a row applied twice stays twice
    lab.publish()
    lab.pipeline().close()  # a new pipeline tells the destination so, by a write
    faults = [Fault(method, call, **fault) for call in (1, 2, 4, 5, 6, 8)]
    pipeline = lab.pipeline(destination=scripted(lab, *faults))
    while any(status.state is TableState.INIT for status in pipeline.store.tables()):
        pipeline.sync()
        for status in pipeline.store.tables():
            if status.state is TableState.ERRORED:
                assert status.retry_at is not None
                pipeline.resume(status.name)
    for line in range(3):
        lab.execute("INSERT INTO log VALUES (%s)", [line])
        lab.execute("ALTER TABLE a ADD COLUMN IF NOT EXISTS c int; UPDATE a SET n = n + 1, c = 1 WHERE id < 20")
        lab.caught_up(pipeline)
    assert pipeline.observer.retries or method == "copy.publish"
    lab.assert_equal(pipeline)


def test_a_state_store_that_is_away_for_a_moment_is_waited_for(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()

    class Away:
        """The store; from `away` on, a hundred calls find it unavailable."""

        def __init__(self) -> None:
            self.store = open_store(lab.config.state.url, lab.config.pipeline)
            self.left = 0

        def __getattr__(self, name: str) -> Any:
            if self.left > 0 and name not in ("close", "migrate"):
                self.left -= 1
                raise StateStoreUnavailable("away for a moment")
            return getattr(self.store, name)

    lab.synced()
    store = Away()
    with closing(store.store):
        pipeline = lab.pipeline(store=store)
        with churn("a", "b"), lab.running(pipeline) as running:
            for _ in range(3):
                pipeline.observer.until_flushed(pipeline.current_lsn())
                store.left = 5
                pipeline.observer.until(lambda: not store.left, "the end of the trouble")
            pipeline.observer.until_flushed(pipeline.current_lsn())
            assert running.is_alive
        assert any(isinstance(error, StateStoreUnavailable) for error in pipeline.observer.retries)
    lab.assert_equal(lab.pipeline())


def test_a_second_consumer_is_refused_and_the_first_goes_on(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    first = lab.synced()
    with churn("a"), lab.running(first, first.stream):
        first.observer.until_flushed(first.current_lsn())
        second = lab.pipeline()
        with pytest.raises(SlotInUse) as refused:
            second.stream()
        [(pid,)] = lab.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [first.source.main_slot]
        )
        assert refused.value.active_pid == pid
        first.observer.until_flushed(first.current_lsn())
    lab.assert_equal(first)


def test_a_zombie_meets_the_fence(lab: Lab, churned: MakeTables) -> None:
    """A first stream decoded a batch, lost its connection and slept; a second one streamed on; the first wakes up."""
    churned("a")
    lab.execute("CREATE TABLE log (line int)")
    lab.publish()
    zombie, heir = lab.synced(), lab.pipeline()
    asleep, wake_up = threading.Event(), threading.Event()

    def sleep() -> None:
        if threading.current_thread().name.startswith("write-") and not asleep.is_set():
            asleep.set()
            assert wake_up.wait(300)

    with failpoints.activated(failpoints.BATCH_DECODED, sleep), lab.running(zombie, zombie.stream) as running:
        lab.execute("INSERT INTO log VALUES (1); UPDATE a SET n = 0 WHERE id < 9")
        assert asleep.wait(300)
        lab.execute(
            "SELECT pg_terminate_backend(active_pid, 300000) FROM pg_replication_slots WHERE slot_name = %s",
            [zombie.source.main_slot],
        )
        lab.execute("INSERT INTO log VALUES (2); UPDATE a SET n = 1 WHERE id < 5")
        lab.caught_up(heir)
        stored = heir.store.progress()
        wake_up.set()
        with pytest.raises(EtlError):
            running.join()
        running.error = None
    assert heir.store.progress() == stored
    lab.execute("INSERT INTO log VALUES (3)")
    lab.assert_equal(heir)


def test_a_quiet_database_lets_the_server_recycle_its_wal(lab: Lab, postgres: Any, churned: MakeTables) -> None:
    churned("a")
    lab.execute("CREATE TABLE elsewhere (n int)")
    lab.publish("TABLE a")
    pipeline = lab.synced()

    with lab.running(pipeline, pipeline.stream):
        lab.execute("INSERT INTO elsewhere SELECT generate_series(1, 10000)")
        written = pipeline.current_lsn()
        lab.until_stored(pipeline, written)
        lab.until_confirmed(pipeline, written)
    lab.assert_equal(pipeline)


def test_a_running_stream_is_held_for_the_proof_and_goes_on(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    streaming, proving = lab.synced(), lab.pipeline()
    with churn("a", "b"), lab.running(streaming, streaming.stream):
        streaming.observer.until_flushed(streaming.current_lsn())
        for _ in range(2):
            comparisons = proving.verify()
            assert all(comparison.is_equal for comparison in comparisons), comparisons
        streaming.observer.until_flushed(streaming.current_lsn())
    lab.assert_equal(streaming)


def test_a_table_that_somebody_alters_does_not_hold_up_the_others(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_LOCK_SECONDS", 1)
    churned("a", "b")
    lab.publish()
    pipeline = lab.pipeline()
    with lab.connect() as altering:
        altering.execute("LOCK a IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceUnavailable, match="lock timeout"):
            pipeline.prepare()
    pipeline.prepare()


def test_a_copy_under_way_is_not_taken_away(lab: Lab, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    copying, other = lab.pipeline(), lab.pipeline()
    staged, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        staged.set()
        go_on.wait(PATIENCE)

    name = TableName("public", "a")
    with failpoints.activated(failpoints.COPY_STAGED, wait), lab.running(copying, lambda: copying.sync([name])) as copy:
        assert staged.wait(PATIENCE)
        with pytest.raises(StateConflict, match=r"copying public\.a now"):
            other.sync([name])
        go_on.set()
        [copied] = copy.join()
    assert isinstance(copied, Copied)
    other.sync()
    lab.assert_equal(other)


def test_a_copy_that_ends_while_another_process_looks_for_dead_ones_keeps_its_slot(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    churned("a")
    lab.publish()
    copying, other = lab.pipeline(), lab.pipeline()
    published, go_on, finished, end = (threading.Event() for _ in range(4))

    def at(reached: threading.Event, until: threading.Event) -> Callable[[], None]:
        def hold() -> None:
            reached.set()
            until.wait(PATIENCE)

        return hold

    look = Source.running_copies

    def look_after_the_end(source: Source, connection: Connection) -> RunningCopies:
        """The other process has seen the copy's state; now it ends, with its session, before that is looked for."""
        go_on.set()
        assert finished.wait(PATIENCE)
        return look(source, connection)

    with (
        failpoints.activated(failpoints.COPY_PUBLISHED, at(published, go_on)),
        failpoints.activated(failpoints.COPY_FINISHED, at(finished, end)),
        lab.running(copying, copying.sync) as copy,
    ):
        assert published.wait(PATIENCE)
        monkeypatch.setattr(Source, "running_copies", look_after_the_end)
        other.prepare()
        slot = other.find(TableName("public", "a")).sync_slot
        assert slot in lab.slots()
        end.set()
        [copied] = copy.join()
    assert isinstance(copied, Copied)
    monkeypatch.undo()
    lab.assert_equal(other)


def test_a_copy_that_lost_rows_is_found_and_made_again(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    churned("a")
    lab.publish()
    monkeypatch.setattr("etl_core.replication.copy.RETRY_AFTER", timedelta(0))
    pipeline = lab.pipeline()
    with monkeypatch.context() as losing:
        losing.setattr(DuckDBCopy, "write", lambda *_: None)
        (error,) = pipeline.sync()
    (held,) = lab.execute("SELECT count(*) FROM a")[0]
    assert isinstance(error, DestinationUnavailable)
    assert str(error) == f"the destination has 0 rows of public.a, and {held:,} were copied to it"
    assert pipeline.status().watermarks == {}  # it was counted before the table was replaced
    pipeline.sync()
    lab.assert_equal(lab.caught_up(pipeline))


def test_a_table_that_somebody_has_locked_does_not_hold_up_the_stream_of_the_others(lab: Lab) -> None:
    """VACUUM FULL, CLUSTER, an open ALTER: a Relation message of another table is described meanwhile."""
    lab.execute("CREATE TABLE a AS SELECT 1 AS id, 1 AS n; ALTER TABLE a ADD PRIMARY KEY (id)")
    lab.execute("CREATE TABLE t AS SELECT 1 AS id, 1 AS n; ALTER TABLE t ADD PRIMARY KEY (id)")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream), lab.connect() as locking:
        lab.execute("UPDATE a SET n = 2")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        locking.execute("LOCK t IN ACCESS EXCLUSIVE MODE")
        lab.execute("ALTER TABLE a ADD c int")
        lab.execute("UPDATE a SET n = 3, c = 4")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        assert lab.rows("SELECT n, c FROM public.a") == [(3, 4)]
        locking.rollback()
    lab.assert_equal(pipeline)


def test_a_stream_begins_while_a_table_is_locked(lab: Lab) -> None:
    lab.execute("CREATE TABLE a AS SELECT 1 AS id, 1 AS n; ALTER TABLE a ADD PRIMARY KEY (id)")
    lab.execute("CREATE TABLE t AS SELECT 1 AS id, 1 AS n; ALTER TABLE t ADD PRIMARY KEY (id)")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as locking:
        locking.execute("LOCK t IN ACCESS EXCLUSIVE MODE")
        lab.execute("UPDATE a SET n = 3")
        lab.caught_up(pipeline)
        assert lab.rows("SELECT n FROM public.a") == [(3,)]
        locking.rollback()
    lab.assert_equal(pipeline)


def test_copies_go_on_after_an_error_that_nobody_expected(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.execute("CREATE TABLE a AS SELECT 1 AS id; ALTER TABLE a ADD PRIMARY KEY (id)")
    lab.execute("CREATE TABLE t AS SELECT 1 AS id; ALTER TABLE t ADD PRIMARY KEY (id)")
    lab.publish()
    destination = scripted(lab)
    real = destination.copy

    def copy(schema: TableSchema) -> Any:
        if schema.name.name == "t":
            raise ZeroDivisionError("of a row that nobody is to see")
        return real(schema)

    monkeypatch.setattr(destination, "copy", copy)
    pipeline = lab.pipeline(destination=destination)
    with lab.running(pipeline):
        pipeline.observer.until_state("t", TableState.ERRORED)
        pipeline.observer.until_ready("a")
        assert "nobody expected: ZeroDivisionError" in str(pipeline.observer.errors["t"])
        monkeypatch.undo()
        pipeline.resync(TableName("public", "t"))
        pipeline.observer.until_ready("t")
    lab.assert_equal(lab.pipeline())


@pytest.mark.parametrize("call", ["touch", "write"])
def test_a_disk_that_is_full_when_staging_begins(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.pipeline()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if call == "touch":
            patched.setattr("pathlib.Path.touch", full)
        else:
            patched.setattr("etl_core.destination.sql.staging.StagingFile.__init__", full)
        (error,) = pipeline.sync()
    assert isinstance(error, DestinationUnavailable | DestinationError)
    assert "No space left" in str(error)
    pipeline.resync(TableName("public", "a"))
    pipeline.sync()
    lab.assert_equal(pipeline)


def test_a_table_that_is_paused_while_a_write_fails_for_it(lab: Lab) -> None:
    lab.execute("CREATE TABLE a AS SELECT 1 AS id, 1 AS n; ALTER TABLE a ADD PRIMARY KEY (id)")
    lab.execute("CREATE TABLE t AS SELECT 1 AS id, 1 AS n; ALTER TABLE t ADD PRIMARY KEY (id)")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    refusal = TableError("public.t: a value out of range", table="public.t")
    pipeline = lab.pipeline(destination=scripted(lab, Fault("write", 1, before=refusal, reached=reached, until=go_on)))
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE t SET n = 2; UPDATE a SET n = 2")
        assert reached.wait(PATIENCE)
        lab.pipeline().pause(TableName("public", "t"))
        poll(lambda: ("t", None) in pipeline.observer.applied, "the look that sees it")
        go_on.set()
        pipeline.observer.until_flushed(pipeline.current_lsn())
    assert lab.rows("SELECT n FROM public.a") == [(2,)]
