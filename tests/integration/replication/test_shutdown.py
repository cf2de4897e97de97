"""The source's server shuts down while nothing can be confirmed: it is not kept waiting, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from etl_core.errors import SourceUnavailable
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import Lab, Running, scripted

MakeTables = Callable[..., None]


def test_a_fast_shutdown_does_not_wait_for_the_destination(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    pipeline = lab.pipeline(destination=scripted(lab, Fault("write", reached=reached, until=go_on)))
    streaming = Running(pipeline, pipeline.stream)
    try:
        lab.execute("UPDATE a SET n = n + 1")
        assert reached.wait(300)
        lab.database.server.stop()  # returns only when the server is down; the batch is still being written
    finally:
        go_on.set()
        lab.database.server.start()
    with pytest.raises(SourceUnavailable, match="is shutting down"):
        streaming.join()
    lab.assert_equal(lab.pipeline())


def test_a_session_that_somebody_ends_is_no_shutdown(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE a SET n = n + 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        ended = lab.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name ~ '_watch$'"
        )
        assert ended == [(True,)]
        lab.execute("UPDATE a SET n = n + 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
    lab.assert_equal(pipeline)
