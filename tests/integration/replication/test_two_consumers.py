"""Two processes on one slot: one streams, the other is told who; one that was thought dead does no harm."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from etl_core.config import BatchConfig
from etl_core.errors import SlotInUse, TransientError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication import failpoints
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import PATIENCE, Churn, Lab, Running, poll, scripted

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline

MakeChurn = Callable[..., Churn]
MakeTables = Callable[..., None]


def active_pid(lab: Lab, pipeline: Pipeline) -> int | None:
    query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
    pid: int | None
    [(pid,)] = lab.execute(query, [pipeline.source.main_slot])
    return pid


def has_stored(pipeline: Pipeline, lsn: Lsn) -> bool:
    progress = pipeline.store.progress()
    return progress is not None and progress.flushed_lsn >= lsn


def test_a_process_that_slept_through_its_replacement_does_no_harm(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.execute("CREATE TABLE log (line int)")  # without a key, a row applied twice stays twice
    lab.publish()
    heir = lab.synced()
    first = lab.process("stream")
    lab.execute("INSERT INTO log VALUES (1)")
    written = heir.current_lsn()
    poll(lambda: has_stored(heir, written), "the stream of the first process")

    first.send_signal(signal.SIGSTOP)
    pid = active_pid(lab, heir)
    with pytest.raises(SlotInUse) as refused:
        heir.stream()
    assert refused.value.active_pid == pid is not None
    # It holds these in its socket's buffer when it wakes up.
    lab.execute("INSERT INTO log VALUES (2); UPDATE a SET n = 0 WHERE id < 9")
    lab.execute("SELECT pg_terminate_backend(%s, 300000)", [pid])
    with lab.running(heir, heir.stream):
        lab.execute("INSERT INTO log VALUES (3); UPDATE a SET n = 1 WHERE id < 5")
        heir.observer.until_flushed(heir.current_lsn())
        first.send_signal(signal.SIGCONT)
        lab.execute("INSERT INTO log VALUES (4); DELETE FROM a WHERE id = 1")
        heir.observer.until_flushed(heir.current_lsn())
        log = lab.path.with_name("etl.log")
        poll(
            lambda: "the replication slot is read by" in log.read_text() or first.poll() is not None,
            "the first process noticing the second",
        )
    # It waits for the slot, unless it was so far with its old batch that it met the heir's progress in the store.
    lab.execute("INSERT INTO log VALUES (5)")
    written = heir.current_lsn()
    poll(lambda: has_stored(heir, written) or first.poll() is not None, "the first process going on")
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 0 or "another process streams the same pipeline" in log.read_text()
    lab.assert_equal(heir)


def test_they_take_turns(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    pipelines = [lab.synced(), lab.pipeline()]
    with churn("a", "b"):
        for turn in range(4):
            ours, theirs = pipelines[turn % 2], pipelines[(turn + 1) % 2]
            ours.stop.clear()
            poll(lambda: active_pid(lab, ours) is None, "the slot being free")  # noqa: B023
            with lab.running(ours, ours.stream):
                ours.observer.until_flushed(ours.current_lsn())
                with pytest.raises(SlotInUse):
                    theirs.stream()
    lab.assert_equal(pipelines[0])


def test_a_process_that_starts_beside_a_stream_does_not_take_its_progress_for_another_source(
    lab: Lab, churned: MakeTables
) -> None:
    churned("a")
    lab.publish()
    streaming = lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    with lab.running(streaming, streaming.stream):
        destination = scripted(lab, Fault("prepare", reached=reached, until=go_on))
        starting = Running(streaming, lambda: lab.pipeline(destination=destination))
        assert reached.wait(300)
        # Whatever it has asked the source before, the stream is beyond that now.
        lab.execute("UPDATE a SET n = n + 1")
        streaming.observer.until_flushed(streaming.current_lsn())
        go_on.set()
        starting.join()
    lab.assert_equal(streaming)


def test_several_begin_one_pipeline_at_once(lab: Lab, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    processes = [lab.process("sync") for _ in range(4)]
    codes = [process.wait(300) for process in processes]
    log = lab.path.with_name("etl.log").read_text()
    assert 0 in codes, log
    assert set(codes) <= {0, 1}, log
    assert "SourceChanged" not in log
    assert "another one" not in log
    lab.assert_equal()


def test_one_that_lost_its_slot_does_not_move_the_progress_of_its_heir(lab: Lab) -> None:
    """It still writes a batch; the heir begins before that batch, and takes in a table whose changes are in it."""
    a, t = TableName("public", "a"), TableName("public", "t")
    for table in ("a", "t"):
        lab.execute(f"CREATE TABLE {table} AS SELECT 1 AS id, 1 AS n; ALTER TABLE {table} ADD PRIMARY KEY (id)")
    lab.publish()
    first = lab.pipeline(batch=BatchConfig(max_age=2.0))
    first.sync([a])
    lab.caught_up(first)
    heir = lab.pipeline(batch=BatchConfig(max_rows=1))
    staged, publish, written, go_on = (threading.Event() for _ in range(4))
    writes = itertools.count(1)

    def at_staged() -> None:
        staged.set()
        assert publish.wait(PATIENCE)

    def at_written() -> None:
        match next(writes):
            case 1:  # the first process's, which sleeps now
                written.set()
                assert go_on.wait(PATIENCE)
            case 2:  # the heir's: it has taken the table in, and has stored less than the first one is about to
                go_on.set()
                with pytest.raises(TransientError):
                    streaming.join()

    with (
        failpoints.activated(failpoints.COPY_STAGED, at_staged),
        failpoints.activated(failpoints.BATCH_WRITTEN, at_written),
    ):
        streaming = Running(first, first.stream)
        poll(lambda: active_pid(lab, first) is not None, "the stream")
        copying = Running(heir, lambda: heir.sync([t]))
        assert staged.wait(PATIENCE)
        lab.execute("UPDATE a SET n = 2")  # two transactions, and one batch of the first process
        lab.execute("UPDATE t SET n = 2")
        assert written.wait(PATIENCE)
        lab.execute("SELECT pg_terminate_backend(%s, 300000)", [active_pid(lab, first)])
        publish.set()
        copying.join()
        with contextlib.suppress(TransientError):
            heir.stream(until=heir.current_lsn())
    lab.assert_equal(heir)
