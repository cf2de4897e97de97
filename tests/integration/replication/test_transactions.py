"""Transactions: large, small, interleaved, rolled back in part; a reader never sees half of one."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etl_core.config import BatchConfig
from etl_core.replication import spool

if TYPE_CHECKING:
    import pytest

    from tests.integration.replication.conftest import Lab


def test_a_transaction_larger_than_memory_is_seen_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.execute("CREATE TABLE big (id int PRIMARY KEY, n int, note text); CREATE TABLE small (id int PRIMARY KEY)")
    lab.publish()
    lab.synced()
    spooled = []
    real = spool.SpooledFrames.load

    def load(frames: spool.SpooledFrames) -> Any:
        spooled.append(frames.size)
        return real(frames)

    monkeypatch.setattr(spool.SpooledFrames, "load", load)
    pipeline = lab.pipeline(batch=BatchConfig(max_rows=1000, max_bytes=1 << 20, max_age=0.1))
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(lab.rows("SELECT (SELECT count(*) FROM public.big), (SELECT count(*) FROM public.small)")[0])
            done.wait(0.05)

    with lab.running(pipeline, pipeline.stream), lab.running(lab.pipeline(), read):
        with lab.connect() as connection:
            connection.execute("INSERT INTO big SELECT i, i, repeat('x', 100) FROM generate_series(1, 200000) i")
            connection.execute("INSERT INTO small SELECT generate_series(1, 10)")
            connection.execute("UPDATE big SET n = -n WHERE id % 10 = 0")
            connection.execute("DELETE FROM big WHERE id % 10 = 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        lab.execute("TRUNCATE big; INSERT INTO big SELECT i, i FROM generate_series(1, 5000) i")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        done.set()
    assert len(spooled) > 1
    assert seen <= {(0, 0), (180000, 10), (5000, 10), (0, 10)}, seen
    lab.assert_equal(lab.pipeline())


def test_many_small_transactions_are_seen_whole(lab: Lab) -> None:
    """Every transaction moves an amount between two tables: a reader finds the sum unchanged."""
    for table in ("debit", "credit"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, amount int NOT NULL)")
        lab.execute(f"INSERT INTO {table} SELECT i, 1000 FROM generate_series(1, 20) i")
    lab.publish()
    lab.synced()
    pipeline = lab.pipeline(batch=BatchConfig(max_rows=50, max_age=0.05))
    sums: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            total = "SELECT (SELECT sum(amount) FROM public.debit) + (SELECT sum(amount) FROM public.credit)"
            sums.add(int(lab.rows(total)[0][0]))
            done.wait(0.02)

    with lab.running(pipeline, pipeline.stream), lab.running(lab.pipeline(), read), lab.connect() as connection:
        for number in range(1500):
            with connection.transaction():
                connection.execute("UPDATE debit SET amount = amount - 1 WHERE id = %s", [number % 20 + 1])
                connection.execute("UPDATE credit SET amount = amount + 1 WHERE id = %s", [number % 7 + 1])
            connection.commit()
        pipeline.observer.until_flushed(pipeline.current_lsn())
        done.set()
    assert sums == {40000}
    assert len(pipeline.observer.flushes) > 3
    lab.assert_equal(lab.pipeline())


def test_transactions_interleave_and_the_later_one_commits_first(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    lab.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
    lab.publish()
    pipeline = lab.synced()
    first, second, third = lab.connect(), lab.connect(), lab.connect()
    first.execute("UPDATE t SET n = 1 WHERE id = 1")
    second.execute("UPDATE t SET n = 2 WHERE id = 2")
    third.execute("UPDATE t SET n = 3 WHERE id = 3")
    second.execute("INSERT INTO t VALUES (11, 2)")
    second.commit()
    lab.caught_up(pipeline)  # the slot is confirmed beyond the beginning of transactions that are still open
    first.execute("UPDATE t SET n = 4 WHERE id = 2")
    first.execute("DELETE FROM t WHERE id = 11")
    third.rollback()
    third.execute("UPDATE t SET n = 5 WHERE id = 3")
    third.commit()
    lab.caught_up(pipeline)
    first.commit()
    lab.assert_equal(pipeline)


def test_open_transactions_are_waited_for_and_named_by_a_copy(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.pipeline()
    writer = lab.connect()
    [(pid,)] = writer.execute("SELECT pg_backend_pid()").fetchall()
    writer.execute("INSERT INTO t VALUES (1)")
    with lab.running(pipeline, pipeline.sync):
        pipeline.observer.until(lambda: any(f"pid {pid}" in reason for reason in pipeline.observer.waiting), "waiting")
        writer.commit()
        pipeline.observer.until(lambda: len(pipeline.observer.states) >= 2, "the copy")
    lab.assert_equal(lab.pipeline())


def test_rolled_back_subtransactions_leave_nothing(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        for number in range(30):
            connection.execute("SAVEPOINT s")
            connection.execute("INSERT INTO t VALUES (%s, 0)", [number])
            connection.execute("SAVEPOINT u")
            connection.execute("UPDATE t SET n = n + 1, id = id + 100 WHERE id = %s", [number])
            connection.execute("ROLLBACK TO u" if number % 3 == 0 else "RELEASE u")
            connection.execute("ROLLBACK TO s" if number % 5 == 0 else "RELEASE s")
    lab.assert_equal(pipeline)


def test_the_same_slot_confirms_nothing_of_an_open_batch(lab: Lab) -> None:
    """A stream stopped with transactions at hand writes them before it ends; what it confirmed is written."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    lab.publish()
    lab.synced()
    pipeline = lab.pipeline(batch=replace(lab.config.batch, max_age=60.0))
    with lab.running(pipeline, pipeline.stream):
        lab.execute("INSERT INTO t SELECT generate_series(1, 100)")
        lab.execute("SELECT pg_sleep(0.3)")  # let the stream read it
    status = pipeline.source.slot_status(pipeline.source.main_slot)
    progress = pipeline.store.progress()
    assert status is not None
    assert progress is not None
    assert status.confirmed_flush_lsn is not None
    assert status.confirmed_flush_lsn <= progress.flushed_lsn
    lab.assert_equal(lab.pipeline())
