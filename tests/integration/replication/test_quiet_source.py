"""WAL that is not ours: the server may recycle it, but never what is still in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from etl_core.lsn import Lsn
from etl_core.replication import stream
from etl_core.state.store import ReplicationProgress
from etl_core.testing.postgres import Postgres, create_database
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import Lab, poll, scripted

MakeTables = Callable[..., None]


@pytest.mark.parametrize("place", ["another database", "nothing but messages"])
def test_the_server_may_recycle_what_others_write(
    lab: Lab, postgres: Postgres, churned: MakeTables, place: str
) -> None:
    churned("a")
    lab.publish("TABLE a")
    pipeline = lab.synced()
    before = pipeline.destination.positions()
    with lab.running(pipeline, pipeline.stream):
        if place == "another database":
            other = create_database(postgres)
            other.execute("CREATE TABLE t AS SELECT generate_series(1, 10000)")
            other.drop()
        else:
            lab.execute("SELECT pg_logical_emit_message(true, 'other', repeat('x', 10000)) FROM generate_series(1, 9)")
        written = pipeline.current_lsn()
        lab.until_confirmed(pipeline, written)
        progress = pipeline.store.progress()
        assert progress is not None
        assert progress.flushed_lsn >= written  # stored first
    assert pipeline.destination.positions() == before
    lab.assert_equal(pipeline)


def test_a_stream_without_changes_says_again_and_again_that_it_is_in_step(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`etl status` takes a stream whose word is old for a late one, and the server says unasked only twice a minute."""
    monkeypatch.setattr(stream, "_STORE_IDLE", 0.05)
    churned("a")
    lab.publish("TABLE a")
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE a SET n = n + 1")
        lab.until_stored(pipeline, pipeline.current_lsn())
        words: list[ReplicationProgress] = []

        def is_another() -> bool:
            word = pipeline.store.progress()
            assert word is not None
            if not words or word.updated_at != words[-1].updated_at:
                words.append(word)
            return len(words) == 4

        poll(is_another, "a newer word")
        assert [word.lag_seconds for word in words[1:]] == [0.0] * 3


def test_what_is_in_flight_is_not_confirmed(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.execute("CREATE TABLE elsewhere (n int)")
    lab.publish("TABLE a")
    lab.synced()
    lab.execute(f"ALTER DATABASE {lab.database.name} SET wal_sender_timeout = '2s'")  # it asks every second
    reached, go_on = threading.Event(), threading.Event()
    pipeline = lab.pipeline(destination=scripted(lab, Fault("write", reached=reached, until=go_on)))

    def confirmed() -> Lsn | None:
        status = pipeline.source.slot_status(pipeline.source.main_slot)
        return status.confirmed_flush_lsn if status else None

    with lab.running(pipeline, pipeline.stream) as running:
        before_change = pipeline.current_lsn()
        lab.execute("UPDATE a SET n = 0")
        assert reached.wait(300)
        lab.execute("INSERT INTO elsewhere SELECT generate_series(1, 10000)")
        beyond, now = lab.execute("SELECT pg_current_wal_flush_lsn(), clock_timestamp()")[0]
        # The stream was sent everything, and has answered since.
        answered = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND sent_lsn >= %s"
        answered += " AND reply_time > %s::timestamptz + interval '1 s'"
        name = f"etl_{lab.config.pipeline}_stream"
        poll(lambda: lab.execute(answered, [name, beyond, now]) == [(1,)], "an answer")
        stands = confirmed()
        assert stands is not None
        assert stands <= before_change
        progress = pipeline.store.progress()
        assert progress is not None
        assert progress.flushed_lsn <= before_change
        assert running.is_alive
        go_on.set()
        lab.until_confirmed(pipeline, Lsn.parse(beyond))
    lab.assert_equal(lab.pipeline())
