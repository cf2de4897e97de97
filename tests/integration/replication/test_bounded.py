"""Runs that end by a time or are stopped, and what the next one finds of copies that were not finished."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from etl_core.identifiers import TableName
from etl_core.policies import TablePolicy
from etl_core.replication import failpoints
from etl_core.replication.stream import Ended
from etl_core.state.store import TableUpdate
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab, Running

MakeTables = Callable[..., None]
A, B = TableName("public", "a"), TableName("public", "b")


def test_a_copy_under_way_is_finished_after_the_time_and_no_other_begins(lab: Lab, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    policy = TablePolicy(recopy_max_bytes=1 << 40)  # so that each is copied alone
    pipeline = lab.pipeline(copy=replace(lab.config.copy, workers=1), policy=policy)
    staged, publish = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert publish.wait(300)

    with failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        pipeline._copies.start()
        assert staged.wait(300)
        running = Running(pipeline, lambda: pipeline.run(seconds=0.01))
        pipeline.observer.until(
            lambda: any("the time is over" in said for said in pipeline.observer.waiting), "the end"
        )
        publish.set()
        assert running.join().ended is Ended.TIME
    assert pipeline.find(A).state in (TableState.FINISHED_COPY, TableState.READY)
    assert pipeline.find(B).state is TableState.INIT
    pipeline.sync()
    lab.assert_equal(pipeline)


def test_a_copy_that_is_stopped_is_set_back_at_once(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.pipeline()
    with failpoints.activated(failpoints.SLOT_CREATED, pipeline.stop.set):
        pipeline.sync()
    assert pipeline.find(A).state is TableState.INIT
    assert lab.slots() == {pipeline.source.main_slot}


def test_a_copy_whose_process_died_is_not_shown_as_being_made(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.pipeline()
    pipeline.store.transition(pipeline.find(A), TableState.DATA_SYNC)
    assert [status.state for status in pipeline.status().tables] == [TableState.INIT]
    assert pipeline.find(A).state is TableState.DATA_SYNC, "a look changes nothing"


def test_what_an_earlier_process_left_for_later_is_tried_at_once(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.pipeline()
    later = TableUpdate(error="the connection was lost", attempts=1, retry_at=datetime.now(UTC) + timedelta(hours=1))
    copying = pipeline.store.transition(pipeline.find(A), TableState.DATA_SYNC)
    failed = pipeline.store.transition(copying, TableState.ERRORED, later)
    pipeline.sync()
    lab.assert_equal(pipeline)
    # What this process itself meets waits for its time.
    failed = pipeline.store.transition(pipeline.find(A), TableState.ERRORED, later)
    assert pipeline.sync() == []
    assert pipeline.find(A) == failed
