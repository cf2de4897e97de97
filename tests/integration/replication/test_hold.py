"""`verify` and the commands of other processes while a stream runs: it is held, told, and goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from etl_core.errors import SourceUnavailable, StateConflict, StateStoreUnavailable, Stopped
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication import failpoints
from etl_core.replication.compare import Comparison, KeyRange
from etl_core.replication.hold import holding, place_hold
from etl_core.replication.stream import Ended
from etl_core.state.sql_store import open_store
from etl_core.state.store import Hold
from etl_core.state.table_state import TableState
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import Churn, Lab, Running, Watched, poll, scripted

MakeChurn = Callable[..., Churn]
MakeTables = Callable[..., None]


def name(table: str) -> TableName:
    return TableName("public", table)


def goes_on(lab: Lab, pipeline: Watched) -> None:
    """The stream is not held: a change that is made now arrives."""
    lab.execute("UPDATE a SET n = n + 1 WHERE id = (SELECT min(id) FROM a)")
    pipeline.observer.until_flushed(pipeline.current_lsn())


def is_answered(hold: Hold | None) -> bool:
    assert hold is not None, "it has expired"
    return hold.reached is not None


def differing(lab: Lab, tampering: str) -> Comparison:
    with duckdb.connect(lab.path) as destination:
        destination.execute(tampering)
    [comparison] = lab.pipeline().verify([name("a")])
    assert not comparison.is_equal
    return comparison


@pytest.mark.parametrize(
    ("tampering", "found", "keys"),
    [
        pytest.param("UPDATE public.a SET n = n + 1 WHERE id = 42", (0, 0, 1), ["42 … 42"], id="changed"),
        pytest.param("DELETE FROM public.a WHERE id IN (7, 8)", (2, 0, 0), ["7 … 7", "8 … 8"], id="missing"),
        pytest.param("INSERT INTO public.a VALUES (900, 1, NULL, NULL)", (0, 1, 0), ["900 … 900"], id="extra"),
        pytest.param("UPDATE public.a SET note = NULL WHERE id = 1", (0, 0, 1), ["1 … 1"], id="null"),
        pytest.param("DELETE FROM public.a", (200, 0, 0), None, id="all"),
    ],
)
def test_the_proof_names_the_rows_that_differ(
    lab: Lab, churned: MakeTables, tampering: str, found: tuple[int, int, int], keys: list[str] | None
) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    comparison = differing(lab, tampering)
    assert (comparison.missing, comparison.extra, comparison.changed) == found
    shown = [f"{keys.first} … {keys.last}" for keys in comparison.ranges]
    if keys is not None:
        assert shown == keys
    else:
        assert sum(keys.rows for keys in comparison.ranges) == 200
        assert (comparison.ranges[0], comparison.ranges[-1].last) == (KeyRange("1", "20", 20), "200")


def test_another_process_proves_a_stream_under_load(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    streaming = lab.synced()
    with churn("a", "b"), lab.running(streaming, streaming.stream):
        streaming.observer.until_flushed(streaming.current_lsn())
        assert lab.process("verify").wait(300) == 0, lab.path.with_name("etl.log").read_text()
        assert streaming.store.hold() is None
        streaming.observer.until_flushed(streaming.current_lsn())
    lab.assert_equal(streaming)


def test_a_stream_that_begins_during_the_proof_waits(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    proving = lab.pipeline(destination=scripted(lab, Fault("read", reached=reached, until=go_on)))
    streaming = lab.pipeline()
    proof = Running(proving, proving.verify)
    assert reached.wait(300)
    lab.execute("DELETE FROM a WHERE id < 50")
    with lab.running(streaming, streaming.stream) as running:
        held = proving.store.hold()
        assert held is not None
        # Asked anew, so that the answer is the new stream's.
        proving.store.request_hold(Hold(held.owner, held.expires_at))
        proving.store.request_hold(held)
        poll(lambda: is_answered(proving.store.hold()), "an answer")
        assert running.is_alive
        go_on.set()
        [comparison] = proof.join()
        assert comparison.is_equal, comparison
        assert comparison.source_rows == 200
        streaming.observer.until_flushed(streaming.current_lsn())
    lab.assert_equal(streaming)


def test_two_proofs_at_once_do_not_disturb_each_other(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    first = lab.pipeline(destination=scripted(lab, Fault("read", reached=reached, until=go_on)))
    proof = Running(first, first.verify)
    assert reached.wait(300)
    second = lab.pipeline()  # its start cleans up what a crash may have left: nothing of a proof that runs
    with pytest.raises(StateConflict, match="is held by verify-") as refused:
        second.verify()
    assert "wait until" in str(refused.value.hint)
    go_on.set()
    assert all(comparison.is_equal for comparison in proof.join())
    lab.assert_equal(second)


def test_a_proof_that_is_stopped_leaves_nothing_behind(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    writer = lab.connect()
    writer.execute("UPDATE a SET n = 0")  # the snapshot must wait for it
    proof = Running(pipeline, pipeline.verify)
    pipeline.observer.until(lambda: bool(pipeline.observer.waiting), "waiting for the snapshot")
    assert f"pid {writer.info.backend_pid}" in pipeline.observer.waiting[0]
    with pytest.raises(Stopped):
        proof.stop()
    assert pipeline.store.hold() is None
    assert lab.slots() == {pipeline.source.main_slot}
    writer.commit()
    lab.assert_equal(pipeline)


def test_a_hold_ends_with_the_session_of_the_process_that_placed_it(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        goes_on(lab, pipeline)
        pipeline.observer.waiting.clear()
        with contextlib.suppress(SourceUnavailable), holding(pipeline.source, pipeline.store) as owner:
            place_hold(pipeline.store, owner, Lsn(0))
            poll(lambda: is_answered(pipeline.store.hold()), "an answer")
            pipeline.observer.until(lambda: any(owner in said for said in pipeline.observer.waiting), "its holder")
            held_by = pipeline.status().held_by
            assert held_by is not None
            assert owner in held_by
            assert "since" in held_by
            before = pipeline.destination.positions()
            lab.execute("UPDATE a SET n = n + 1 WHERE id = (SELECT min(id) FROM a)")
            # What kill -9 does to it: the session ends, the hold is still in the store, for days by any clock.
            assert pipeline.destination.positions() == before
            lab.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name ~ '_verify_hold$'"
            )
            pipeline.observer.until_flushed(pipeline.current_lsn())
            assert pipeline.store.hold() is None
            assert pipeline.status().held_by is None
    lab.assert_equal(pipeline)


def test_a_hold_does_not_outlast_the_time_a_stream_was_given(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("UPDATE a SET n = 0")
    before = pipeline.destination.positions()
    with holding(pipeline.source, pipeline.store) as owner:
        place_hold(pipeline.store, owner, Lsn(0))
        streamed = Running(pipeline, lambda: pipeline.stream(seconds=1)).join()
        assert streamed.ended is Ended.TIME
        assert pipeline.destination.positions() == before
    lab.assert_equal(pipeline)


def test_a_store_that_is_away_does_not_end_a_stream_that_is_held(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()

    class Forgetful:
        """The store, which loses the first three answers."""

        def __init__(self) -> None:
            self.store = open_store(lab.config.state.url, lab.config.pipeline)
            self.left = 3

        def answer_hold(self, owner: str, reached: Lsn) -> None:
            if self.left:
                self.left -= 1
                raise StateStoreUnavailable("away for a moment")
            self.store.answer_hold(owner, reached)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

    pipeline, proving = lab.pipeline(store=Forgetful()), lab.pipeline()
    with lab.running(pipeline, pipeline.stream):
        goes_on(lab, pipeline)
        assert all(comparison.is_equal for comparison in proving.verify())
        goes_on(lab, pipeline)
    assert any(isinstance(error, StateStoreUnavailable) for error in pipeline.observer.retries)
    lab.assert_equal(proving)


def test_commands_from_elsewhere_reach_a_running_stream(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b", "c")
    lab.publish()
    running, other = lab.synced(), lab.pipeline()
    with churn("a", "b", "c"), lab.running(running):
        running.observer.until_flushed(running.current_lsn())
        other.pause(name("b"))
        other.resync(name("c"))
        running.observer.until_ready("c")
        assert other.find(name("b")).state is TableState.PAUSED
        other.resync(name("c"))
        other.resume(name("b"))
        running.observer.until_ready("b")
        running.observer.until_state("c", TableState.READY, times=2)
    lab.assert_equal(running)


def test_a_paused_table_stays_as_it_was(lab: Lab, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    running, other = lab.synced(), lab.pipeline()
    with lab.running(running):
        goes_on(lab, running)
        other.pause(name("b"))
        proof = other.verify([name("b")])  # the hold is answered after the next look at the states
        assert "it is paused" in str(proof[0].problem)
        before = lab.rows("SELECT sum(n) FROM public.b")
        lab.execute("UPDATE b SET n = n + 1; UPDATE a SET n = n + 1")
        running.observer.until_flushed(running.current_lsn())
        assert lab.rows("SELECT sum(n) FROM public.b") == before
        assert lab.slots() == {running.source.main_slot}
    other.resume(name("b"))
    other.sync()
    lab.assert_equal(other)


@pytest.mark.parametrize("command", ["pause", "resync"])
def test_a_table_told_otherwise_while_it_catches_up_keeps_no_slot(
    lab: Lab, churn: MakeChurn, churned: MakeTables, command: str
) -> None:
    churned("a", "b")
    lab.publish()
    streaming, other = lab.synced(), lab.pipeline()
    other.resync(name("b"))
    staged, publish, caught, go_on = (threading.Event() for _ in range(4))

    def hold_the_copy_back() -> None:
        staged.set()
        assert publish.wait(300)

    def hold_the_catch_up_back() -> None:
        caught.set()
        assert go_on.wait(300)

    with (
        churn("a", "b"),
        lab.running(streaming),
        failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back),
        failpoints.activated(failpoints.CATCHUP_WRITTEN, hold_the_catch_up_back),
    ):
        assert staged.wait(300)
        lab.until_stored(streaming, streaming.current_lsn())  # so that it has something to catch up
        publish.set()
        assert caught.wait(300)
        getattr(other, command)(name("b"))
        go_on.set()
        if command == "resync":
            streaming.observer.until_state("b", TableState.READY, times=2)
        poll(lambda: lab.slots() == {streaming.source.main_slot}, "the slot being dropped")
    if command == "pause":
        assert other.find(name("b")).state is TableState.PAUSED
        other.resume(name("b"))
        other.sync()
    lab.assert_equal(other)
