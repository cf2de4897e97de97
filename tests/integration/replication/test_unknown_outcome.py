"""The answer of the state store is lost, or the stream was replaced: what is decided then rests on what is stored."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.errors import OutcomeUnknown, SlotInUse, StateConflict, StateStoreUnavailable, TableError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.replication.copied import Copied
from etl_core.replication.source import Source
from etl_core.state.sql_store import open_store
from etl_core.state.table_state import TableState
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import PATIENCE, Lab, Running, scripted

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from tests.integration.replication.conftest import Churn

T = TableName("public", "t")


class LosesAnAnswer:
    """The lab's store; once armed, it stores the next move to `state`, and its answer is lost."""

    def __init__(self, lab: Lab, state: TableState) -> None:
        self._inner = open_store(lab.config.state.url, lab.config.pipeline)
        self._state = state
        self.is_armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def transition(self, current: Any, to: TableState, *rest: Any, **keywords: Any) -> Any:
        moved = self._inner.transition(current, to, *rest, **keywords)
        if self.is_armed and to is self._state:
            self.is_armed = False
            raise StateStoreUnavailable("the answer was lost")
        return moved


def claim(pipeline: Pipeline) -> None:
    """Claims the stream as a successor does, whatever the one that has it stores meanwhile."""
    claimed = None
    while claimed is None:
        with contextlib.suppress(StateConflict):
            progress = pipeline.store.progress()
            assert progress is not None
            claimed = pipeline.store.claim_progress(progress, progress.flushed_lsn)


class ClaimedBefore:
    """The lab's store; once armed, `heir` claims the stream just before the next move to `state` is stored."""

    def __init__(self, lab: Lab, state: TableState, heir: Pipeline) -> None:
        self._inner = open_store(lab.config.state.url, lab.config.pipeline)
        self._state = state
        self._heir = heir
        self.is_armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def transition(self, current: Any, to: TableState, *rest: Any, **keywords: Any) -> Any:
        if self.is_armed and to is self._state:
            self.is_armed = False
            claim(self._heir)
        return self._inner.transition(current, to, *rest, **keywords)


def copied_beside(lab: Lab, pipeline: Pipeline) -> None:
    """Copies T again while `pipeline` streams, and past the copy's snapshot, so that it needs a catch-up."""
    staged, go_on = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert go_on.wait(PATIENCE)

    copying = lab.pipeline()
    with failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        copy = Running(copying, lambda: copying.sync([T]))
        assert staged.wait(PATIENCE)
        lab.execute("UPDATE t SET n = n + 1 WHERE id < 9")
        lab.until_stored(pipeline, pipeline.current_lsn())
        go_on.set()
        copy.join()


@pytest.mark.parametrize("state", [TableState.SYNC_DONE, TableState.READY, TableState.ERRORED])
def test_a_lost_answer_ends_the_stream_and_no_change_is_passed_over(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], state: TableState
) -> None:
    churned("t", "a")
    lab.publish()
    lab.synced().close()
    refuses = [Fault("write", call=4, before=TableError("refused", table="public.t"))]
    store = LosesAnAnswer(lab, state)
    pipeline = lab.pipeline(store=store, destination=scripted(lab, *refuses if state is TableState.ERRORED else ()))
    store.is_armed = True
    with churn("t", "a"):
        streaming = Running(pipeline, pipeline.stream)
        if state is not TableState.ERRORED:
            copied_beside(lab, pipeline)
        with pytest.raises(OutcomeUnknown):
            streaming.join()
    assert not store.is_armed
    pipeline.close()
    again = lab.pipeline()  # a new process, which knows what is stored and nothing else
    if state is TableState.ERRORED:
        assert again.find(T).state is TableState.ERRORED
        again.sync([T])
    lab.assert_equal(again)


def test_a_stream_that_was_replaced_takes_no_table_in(lab: Lab) -> None:
    """Its successor has read the states before, and would pass the table's changes over."""
    for table in ("a", "t"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    lab.publish()
    first, other = lab.synced(), lab.pipeline()
    began = threading.Event()
    with failpoints.activated(failpoints.CONFIRMED, began.set):
        streaming = Running(first, first.stream)
        lab.execute("INSERT INTO a VALUES (2)")
        assert began.wait(PATIENCE)
    other.resync(T)
    claim(other)
    [copied] = other.sync()
    assert isinstance(copied, Copied)
    with pytest.raises(SlotInUse):
        streaming.join()
    assert other.find(T).state is TableState.FINISHED_COPY
    lab.assert_equal(other)


def test_a_stream_that_was_replaced_leaves_the_slot_of_a_table_it_takes_in(
    lab: Lab, churned: Callable[..., None]
) -> None:
    churned("t", "a", rows=20)
    lab.publish()
    lab.synced().close()
    heir = lab.pipeline()
    store = ClaimedBefore(lab, TableState.READY, heir)
    first = lab.pipeline(store=store)
    store.is_armed = True
    streaming = Running(first, first.stream)
    copied_beside(lab, first)
    with pytest.raises(SlotInUse):
        streaming.join()
    assert heir.find(T).sync_slot in lab.slots()
    first.close()
    lab.assert_equal(heir)


def test_a_stream_that_was_replaced_leaves_the_slot_of_a_stopped_table(
    lab: Lab, churned: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    churned("t", "a", rows=20)
    lab.publish()
    lab.synced().close()
    heir = lab.pipeline()
    store = ClaimedBefore(lab, TableState.INIT, heir)
    refuses = Fault("write", call=1, before=TableError("refused", table="public.t"))
    first = lab.pipeline(store=store, destination=scripted(lab, refuses))
    monkeypatch.setattr(Source, "wal_kept_by", lambda *_: None)  # it finds the slot lost
    store.is_armed = True
    streaming = Running(first, first.stream)
    lab.execute("UPDATE t SET n = n + 1")
    with pytest.raises(SlotInUse):
        streaming.join()
    slot = heir.find(T).sync_slot
    assert slot is not None
    assert slot in lab.slots()
    monkeypatch.undo()
    first.close()
    lab.assert_equal(heir)


def test_a_stream_that_was_replaced_keeps_no_changes(lab: Lab, churned: Callable[..., None]) -> None:
    churned("t", "a", rows=20)
    lab.publish()
    synced = lab.synced()
    lab.execute("UPDATE a SET n = n + 1")
    lab.caught_up(synced).close()  # confirmed beyond the watermark of `t`
    heir = lab.pipeline()
    before = heir.status().watermarks
    store = ClaimedBefore(lab, TableState.ERRORED, heir)
    refuses = Fault("write", call=1, before=TableError("refused", table="public.t"))
    first = lab.pipeline(store=store, destination=scripted(lab, refuses))
    store.is_armed = True
    streaming = Running(first, first.stream)
    lab.execute("UPDATE t SET n = n + 1")
    with pytest.raises(SlotInUse):
        streaming.join()
    assert heir.find(T).state is TableState.READY
    assert lab.slots() == {heir.source.main_slot}
    assert heir.status().watermarks == before  # what its successor has confirmed says nothing of what it has applied
    first.close()
    lab.assert_equal(heir)


@pytest.mark.parametrize("change", ["dropped", "advanced"])
def test_a_sync_slot_that_lost_changes_leads_to_a_new_copy(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], change: str
) -> None:
    churned("t", "a")
    lab.publish()
    lab.synced().close()
    pipeline = lab.pipeline()
    lost = threading.Event()

    def lose() -> None:
        if lost.is_set():
            return
        lost.set()
        lab.execute("UPDATE t SET n = n + 1")
        lab.until_stored(pipeline, pipeline.current_lsn())  # past the snapshot, and a change of the table
        slot = pipeline.find(T).sync_slot
        statement = (
            "SELECT pg_drop_replication_slot(%s)"
            if change == "dropped"
            else "SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())"
        )
        lab.execute(statement, [slot])

    before = pipeline.observer.states.count(("t", TableState.READY))
    with churn("a"), failpoints.activated(failpoints.COPY_PUBLISHED, lose), lab.running(pipeline):
        pipeline.resync(T)
        pipeline.observer.until_state("t", TableState.READY, times=before + 1)
    assert pipeline.observer.states.count(("t", TableState.DATA_SYNC)) == 2
    assert "t" not in pipeline.observer.errors
    lab.assert_equal(pipeline)
