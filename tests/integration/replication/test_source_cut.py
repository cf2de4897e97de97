"""A source or destination that goes away in the middle: a clear error, and the next stream goes on exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from signal import SIGKILL

import pytest

from etl_core.config import BatchConfig
from etl_core.errors import DestinationUnavailable, SourceUnavailable
from etl_core.pipeline import Pipeline
from etl_core.replication import failpoints
from etl_core.testing.postgres import Postgres
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import Lab, Running, Watched, scripted

MakeTables = Callable[..., None]


@pytest.fixture
def backlog(lab: Lab, churned: MakeTables) -> Watched:
    """Ten batches to stream; a row of the table without a key would show that it was applied twice."""
    churned("a")
    lab.execute("CREATE TABLE log (line int)")
    lab.publish()
    lab.synced()
    for line in range(20):
        lab.execute("INSERT INTO log VALUES (%s)", [line])
        lab.execute("UPDATE a SET n = n + 1 WHERE id BETWEEN %s AND %s + 9", [line, line])
    return lab.pipeline(batch=BatchConfig(max_rows=20, max_age=0.05))


def terminated(lab: Lab, _: Postgres, pipeline: Pipeline) -> None:
    [(ended,)] = lab.execute(
        "SELECT pg_terminate_backend(active_pid, 300000) FROM pg_replication_slots WHERE slot_name = %s",
        [pipeline.source.main_slot],
    )
    assert ended


def crashed(_lab: Lab, postgres: Postgres, _: Pipeline) -> None:
    postgres.crash(SIGKILL)


@pytest.mark.parametrize("cut", [terminated, crashed])
@pytest.mark.parametrize("place", [failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED])
def test_a_stream_goes_on_after_its_connection_was_cut(
    lab: Lab,
    postgres: Postgres,
    backlog: Pipeline,
    cut: Callable[[Lab, Postgres, Pipeline], None],
    place: str,
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    times = 0

    def pause() -> None:
        nonlocal times
        times += 1
        if times == 2:
            reached.set()
            assert go_on.wait(300)

    with failpoints.activated(place, pause):
        running = Running(backlog, backlog.stream)
        assert reached.wait(300)
        cut(lab, postgres, backlog)
        go_on.set()
        with pytest.raises(SourceUnavailable):
            running.join()
    lab.execute("INSERT INTO log VALUES (100)")
    lab.assert_equal(backlog)


def test_a_server_that_restarts_ends_cleanly_and_nothing_is_lost(
    lab: Lab, postgres: Postgres, backlog: Watched
) -> None:
    """How far the stream comes meanwhile is a matter of time: it leaves a server that has waited for some seconds."""
    lab.execute("CREATE UNLOGGED TABLE kept AS SELECT 1")  # emptied unless the server ends cleanly
    running = Running(backlog, backlog.stream)
    backlog.observer.until(lambda: bool(backlog.observer.flushes), "a flush")
    postgres.restart()
    assert lab.execute("SELECT count(*) FROM kept") == [(1,)]
    with pytest.raises(SourceUnavailable):
        running.join()
    lab.execute("INSERT INTO log VALUES (100)")
    lab.assert_equal(backlog)


@pytest.mark.parametrize("is_done", [False, True], ids=["away", "lost answer"])
def test_a_destination_that_stays_away_is_said_and_loses_nothing(lab: Lab, backlog: Watched, is_done: bool) -> None:
    away = DestinationUnavailable("the file is held by somebody else", hint="wait until they have closed it")
    # The third write, and whatever is asked about it.
    faults = [Fault("write", 3, after=away) if is_done else Fault("write", 3, before=away)]
    faults += [Fault("write", call, before=away) for call in range(4, 30)]
    faults += [Fault("positions", call, before=away) for call in range(2, 30)]
    pipeline = lab.pipeline(destination=scripted(lab, *faults), batch=backlog.config.batch)
    running = Running(pipeline, pipeline.stream)
    pipeline.observer.until(lambda: len(pipeline.observer.retries) >= 3, "three tries")
    with pytest.raises(DestinationUnavailable, match="held by somebody") as ended:
        running.stop()
    assert ended.value.hint == away.hint
    lab.execute("INSERT INTO log VALUES (100)")
    lab.assert_equal(backlog)
