"""Copies beside a running stream: whatever is written meanwhile, and whatever dies in the middle, both sides agree."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.batch import WriteBatch
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import EtlError, SlotInUse, SourceUnavailable
from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.replication import catch_ups, failpoints, source, stopped_tables
from etl_core.replication.catch_ups import CatchUps
from etl_core.replication.catchup import CatchUp
from etl_core.replication.retry import Backoff
from etl_core.source import slot
from etl_core.state.store import TableUpdate
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import PATIENCE, Running, poll

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab, Watched

MakeChurn = Callable[..., "Churn"]
MakeTables = Callable[..., None]
T = TableName("public", "t")


def test_tables_are_copied_and_taken_in_while_others_write(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    tables = ["a", "b", "c", "d"]
    churned(*tables, rows=1000)
    lab.publish()
    pipeline = lab.pipeline()
    with churn(*tables, keys=1500), churn(*tables, seed=2, keys=1500), lab.running(pipeline):
        pipeline.observer.until_ready(*tables)
        pipeline.observer.until_flushed(pipeline.current_lsn())
    lab.assert_equal(pipeline)


class SlowToCatchUp(DuckDBDestination):
    """A warehouse that takes its time, but only for the tables that catch up: the main stream goes on at full speed."""

    def write(self, batch: WriteBatch) -> None:
        if threading.current_thread().name.startswith("catch-up"):
            time.sleep(1)
        super().write(batch)


def test_a_busy_table_is_taken_in_though_each_batch_takes_long(
    lab: Lab, churn: MakeChurn, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the main stream would wait, so that it was always gone when the last batch was written."""
    monkeypatch.setattr(catch_ups, "_SHORT_STEP_SECONDS", 0.1)
    churned("a", "b")
    lab.publish()
    lab.synced()
    pipeline = lab.pipeline(destination=SlowToCatchUp(lab.path, lab.config.pipeline))
    staged, go_on = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert go_on.wait(300)

    with churn("a", "b"), lab.running(pipeline), failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        pipeline.resync(TableName("public", "b"))
        assert staged.wait(300)
        lab.until_stored(pipeline, pipeline.current_lsn())
        go_on.set()
        pipeline.observer.until_ready("b")
    assert ("b", TableState.SYNC_DONE) in pipeline.observer.states
    lab.assert_equal(pipeline)


def test_a_catch_up_is_needed_and_ends(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    pipeline = lab.pipeline()
    staged, go_on = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert go_on.wait(300)

    with churn("a", "b"), lab.running(pipeline), failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        assert staged.wait(300)
        lab.until_stored(pipeline, pipeline.current_lsn())  # the main stream has passed the copy's snapshot
        go_on.set()
        pipeline.observer.until_ready("a", "b")
    assert ("a", TableState.SYNC_DONE) in pipeline.observer.states
    lab.assert_equal(pipeline)


def test_a_stop_is_heard_while_the_stream_waits_for_the_last_step_of_a_catch_up(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_ups, "_SHORT_STEP_SECONDS", PATIENCE)
    churned("a", "t", rows=20)
    lab.publish()
    lab.synced().close()
    writing, go_on, left = threading.Event(), threading.Event(), threading.Event()

    class HeldUp(DuckDBDestination):
        """Writes for the catch-up when the main stream has left."""

        def write(self, batch: WriteBatch) -> None:
            if threading.current_thread().name.startswith("catch-up"):
                writing.set()
                assert go_on.wait(PATIENCE)
            super().write(batch)

    pipeline = lab.pipeline(destination=HeldUp(lab.path, lab.config.pipeline))
    close, wait_through = CatchUps.close, CatchUp.wait_through
    waiting = threading.Event()

    def wait(catch_up: CatchUp, position: Lsn, seconds: float) -> bool:
        if writing.is_set():
            waiting.set()
        return wait_through(catch_up, position, seconds)

    def leave(running: CatchUps) -> None:
        left.set()
        close(running)

    monkeypatch.setattr(CatchUps, "close", leave)
    monkeypatch.setattr(CatchUp, "wait_through", wait)
    with lab.running(pipeline):
        behind(lab, pipeline, "t")
        assert waiting.wait(PATIENCE)
        pipeline.stop.set()
        is_heard = left.wait(PATIENCE / 2)
        go_on.set()
        assert is_heard
    monkeypatch.undo()
    lab.assert_equal()


def test_a_catch_up_that_fails_for_the_moment_is_tried_ever_less_often(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_ups, "_BACKOFF", Backoff(first=0.01, longest=0.5, tries=5))
    churned("a", "t", rows=20)
    lab.publish()
    lab.synced().close()
    pipeline = lab.pipeline()
    told: list[float] = []

    def on_retry(error: EtlError, wait: float) -> None:
        told.append(wait)
        assert isinstance(error, SlotInUse)

    monkeypatch.setattr(pipeline.observer, "on_retry", on_retry)
    with contextlib.ExitStack() as reading:

        def read_its_slot() -> None:
            slot = pipeline.find(T).sync_slot
            assert slot is not None
            reading.enter_context(pipeline.source.open_stream(slot, ZERO, "other"))

        with lab.running(pipeline):
            behind(lab, pipeline, "t", meanwhile=read_its_slot)
            pipeline.observer.until_state("t", TableState.ERRORED)
        assert len(told) == 4
        assert sorted(told) == told
        status = pipeline.find(T)
        assert status.sync_slot in lab.slots()
        assert (status.attempts, status.retry_at is not None) == (1, True)
    monkeypatch.setattr(stopped_tables, "FIRST_RETRY", timedelta(0))
    copies = pipeline.observer.states.count(("t", TableState.DATA_SYNC))
    again = lab.pipeline()
    lab.assert_equal(again)
    assert (copies, again.observer.states.count(("t", TableState.DATA_SYNC))) == (1, 0)


def behind(lab: Lab, pipeline: Watched, table: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Has a running `pipeline` copy a table again, which needs a catch-up; `meanwhile` is called while it is copied."""
    staged, go_on = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert go_on.wait(PATIENCE)

    with failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        pipeline.resync(TableName("public", table))
        assert staged.wait(PATIENCE)
        meanwhile()
        lab.execute(f"UPDATE {table} SET n = n + 1")  # noqa: S608 a name of the test's own
        lab.until_stored(pipeline, pipeline.current_lsn())  # the main stream has passed the copy's snapshot
        go_on.set()
        pipeline.observer.until_state(table, TableState.FINISHED_COPY)


def test_one_process_copies_while_another_streams(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b", "c")
    lab.publish()
    streaming, copying = lab.pipeline(), lab.pipeline()
    with churn("a", "b", "c"), lab.running(streaming, streaming.stream):
        assert not [outcome for outcome in copying.sync() if isinstance(outcome, EtlError)]
        streaming.observer.until_ready("a", "b", "c")
    lab.assert_equal(streaming)


def test_a_table_is_copied_again_while_the_stream_runs(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    streaming = lab.synced()
    copying = lab.pipeline()
    with churn("a", "b"), lab.running(streaming, streaming.stream):
        for again in (1, 2, 3):
            [outcome] = copying.sync([TableName("public", "a")])
            assert not isinstance(outcome, EtlError), outcome
            streaming.observer.until_state("a", TableState.READY, times=again + 1)
        streaming.observer.until_flushed(copying.current_lsn())
    assert streaming.observer.states.count(("b", TableState.READY)) == 1
    marks = [mark for name, mark in streaming.observer.applied if name == "a"][1:]
    # The first copy may have begun before the stream did.
    assert [mark is None for mark in marks] in ([False, *(True, False) * copies] for copies in (2, 3))
    known = [mark for mark in marks if mark is not None]
    assert known == sorted(known)
    assert known[-1] == streaming.find(TableName("public", "a")).snapshot_lsn
    lab.assert_equal(streaming)


def test_a_table_added_to_the_publication_is_found_at_the_next_start(
    lab: Lab, churn: MakeChurn, churned: MakeTables
) -> None:
    churned("a", "b")
    lab.publish("TABLE a")
    with churn("a", "b"):
        first = lab.pipeline()
        with lab.running(first):
            first.observer.until_ready("a")
            lab.execute("ALTER PUBLICATION lab_pub ADD TABLE b")
            first.observer.until_flushed(first.current_lsn())
        second = lab.pipeline()
        with lab.running(second):
            second.observer.until_ready("b")
            second.observer.until_flushed(second.current_lsn())
    lab.assert_equal(second)


def test_a_table_taken_out_of_the_publication_is_let_go(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish("TABLE a, b")
    lab.synced()
    with churn("a", "b"):
        lab.execute("ALTER PUBLICATION lab_pub DROP TABLE b")
        pipeline = lab.pipeline()
        with lab.running(pipeline):
            pipeline.observer.until_flushed(pipeline.current_lsn())
    assert [status.name.name for status in pipeline.store.tables()] == ["a"]
    lab.assert_equal(pipeline)


@pytest.mark.parametrize("victim", ["snapshot", "reader"])
def test_a_connection_that_dies_in_a_copy_costs_only_another_try(
    lab: Lab, churn: MakeChurn, churned: MakeTables, victim: str
) -> None:
    churned("a", "b")
    lab.publish()
    pipeline = lab.pipeline()
    place = failpoints.SLOT_CREATED if victim == "snapshot" else failpoints.COPY_STAGED
    killed: list[str] = []

    def kill() -> None:
        if len(killed) < 2:  # the group of both tables, then a copy of one of them
            killed.append(place)
            lab.execute(
                "SELECT pg_terminate_backend(pid, 300000) FROM pg_stat_activity"
                " WHERE application_name ~ '_(copy|group)_' AND datname = current_database()"
            )

    with churn("a", "b"), failpoints.activated(place, kill):
        outcomes = pipeline.sync()
        failed = [outcome for outcome in outcomes if isinstance(outcome, EtlError)]
        for status in pipeline.store.tables():
            if status.state is TableState.ERRORED:
                assert status.error
                assert status.retry_at is not None
                pipeline.resume(status.name)
        pipeline.sync()
    assert killed
    assert failed or victim == "reader"
    lab.assert_equal(pipeline)


def test_two_processes_copy_the_same_tables(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    tables = ["a", "b", "c", "d"]
    churned(*tables)
    lab.publish()
    pipelines = [lab.pipeline(), lab.pipeline()]
    together = threading.Barrier(2)

    def sync(pipeline: Watched) -> object:
        together.wait(300)
        return pipeline.sync()

    with churn(*tables), lab.running(pipelines[0], lambda: sync(pipelines[0])) as one:
        sync(pipelines[1])
        one.join()
    states = {status.state for status in pipelines[0].store.tables()}
    assert TableState.ERRORED not in states, [status.error for status in pipelines[0].store.tables()]
    lab.assert_equal(pipelines[0])


def two_tables(lab: Lab) -> None:
    lab.execute("CREATE TABLE a AS SELECT 1 AS id, 1 AS n; ALTER TABLE a ADD PRIMARY KEY (id)")
    lab.execute("CREATE TABLE t AS SELECT 1 AS id, 1 AS n; ALTER TABLE t ADD PRIMARY KEY (id)")
    lab.publish()


def test_pausing_a_table_whose_copy_waits_does_not_hold_up_the_stream(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot of the copy cannot be dropped while it waits for an old transaction."""
    two_tables(lab)
    pipeline, other = lab.synced(), lab.pipeline()
    waits: list[float] = []
    real = slot.drop_slot

    def drop(connection: Any, name: str, *, timeout: float = 10.0) -> bool:
        if threading.current_thread() is not threading.main_thread() and other.find(T).state is TableState.PAUSED:
            waits.append(timeout)
        return real(connection, name, timeout=timeout)

    with lab.connect() as writing, lab.running(pipeline, pipeline.stream):
        writing.execute("CREATE TABLE x ()")
        copying = Running(other, lambda: other.sync([T]))
        other.observer.until(lambda: bool(other.observer.waiting), "the wait")
        monkeypatch.setattr(source, "drop_slot", drop)
        other.pause(T)
        for n in range(5):
            lab.execute("UPDATE a SET n = %s", [n])
            pipeline.observer.until_flushed(pipeline.current_lsn())
        poll(lambda: bool(waits), "a look at the slot")
        assert set(waits) == {0.0}
        monkeypatch.undo()
        writing.rollback()
        copying.join()
        poll(lambda: lab.slots() == {pipeline.source.main_slot}, "the end of its slot")


def test_a_slot_that_could_not_be_dropped_is_dropped_later(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    two_tables(lab)
    pipeline = lab.synced()
    failed = threading.Event()
    real = slot.drop_slot

    def drop(connection: Any, name: str, **options: float) -> bool:
        if threading.current_thread().name == "test-run" and not failed.is_set():
            failed.set()
            raise SourceUnavailable("too many connections, for a moment")
        return real(connection, name, **options)

    with lab.running(pipeline):
        monkeypatch.setattr(source, "drop_slot", drop)
        before = pipeline.observer.states.count(("t", TableState.READY))
        pipeline.resync(T)
        pipeline.observer.until_state("t", TableState.READY, times=before + 1)
        assert failed.wait(PATIENCE)
        poll(lambda: lab.slots() == {pipeline.source.main_slot}, "the end of its slot")


def test_a_slot_that_was_made_again_is_not_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes set the same dead copy back; one begins to copy while the other one forgets the slot."""
    two_tables(lab)
    lab.synced()
    one, two = lab.pipeline(), lab.pipeline()
    one.resync(T)
    name = one.source.new_sync_slot(one.find(T).table_id)
    # As a process that died left it.
    dead = one.store.transition(one.find(T), TableState.DATA_SYNC, TableUpdate(sync_slot=name))
    one.store.record_slot(name, dead.table_id)
    staged, go_on = threading.Event(), threading.Event()
    copying: list[Running] = []
    real = slot.drop_slot

    def drop(connection: Any, name: str, **options: float) -> bool:
        dropped = real(connection, name, **options)
        if threading.current_thread().name == "second":
            copying.append(Running(one, one.sync))
            assert staged.wait(PATIENCE)
        return dropped

    def at_staged() -> None:
        staged.set()
        assert go_on.wait(PATIENCE)

    monkeypatch.setattr(source, "drop_slot", drop)
    with failpoints.activated(failpoints.COPY_STAGED, at_staged):
        second = threading.Thread(target=two._preparation.reset_dead_copies, name="second")
        second.start()
        second.join()
        assert one.find(T).sync_slot in {owned.name for owned in one.store.owned_slots()}
        go_on.set()
        copying[0].join()
    monkeypatch.undo()
    pipeline = lab.synced()
    pipeline.prepare()
    assert lab.slots() == {pipeline.source.main_slot}
