"""Transactions are whole for whoever reads: ones larger than a batch and than memory, and ones across tables."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.batch import TableChanges
from etl_core.config import BatchConfig
from etl_core.destination.sql.writer import TableWriter
from etl_core.protocol.segment import Frames
from etl_core.replication import failpoints
from etl_core.replication.spool import Spool, SpooledFrames

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

PATIENCE = 120.0


class Reader:
    """Asks the DuckDB file one question again and again, in a thread of its own; `answers` are the distinct ones."""

    def __init__(self, lab: Lab, query: str) -> None:
        self._lab = lab
        self._query = query
        self._stop = threading.Event()
        self._asked = threading.Condition()
        self._times = 0
        self._error: BaseException | None = None
        self.answers: list[tuple[Any, ...]] = []
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def ask_again(self) -> None:
        """Waits until a question that was put after this call is answered."""
        with self._asked:
            wanted = self._times + 2
            assert self._asked.wait_for(lambda: self._times >= wanted or self._error is not None, PATIENCE)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.01):
                [answer] = self._lab.rows(self._query)
                with self._asked:
                    if answer not in self.answers:
                        self.answers.append(answer)
                    self._times += 1
                    self._asked.notify_all()
        except BaseException as error:
            with self._asked:
                self._error = error
                self._asked.notify_all()


@contextmanager
def reading(lab: Lab, query: str) -> Iterator[Reader]:
    reader = Reader(lab, query)
    try:
        yield reader
        reader.ask_again()
    finally:
        reader.stop()


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the segments that were spooled."""
    sizes: list[int] = []

    real = Spool.put

    def put(spool: Spool, frames: Frames) -> SpooledFrames:
        sizes.append(frames.size)
        return real(spool, frames)

    monkeypatch.setattr(Spool, "put", put)
    return sizes


ROWS = 200_000
SMALL = BatchConfig(max_rows=1000, max_bytes=1 << 20, max_age=0.05)


def test_a_transaction_larger_than_memory_is_seen_whole(lab: Lab, spooled: list[int]) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, n int, note text); CREATE TABLE b (id int PRIMARY KEY, rows int)")
    lab.execute("INSERT INTO b VALUES (1, 0)")
    lab.publish()
    pipeline = lab.synced(batch=SMALL)
    query = "SELECT (SELECT count(*) FROM public.a), (SELECT rows FROM public.b)"
    with reading(lab, query) as reader:
        reader.ask_again()
        with lab.running(pipeline, pipeline.stream):
            with lab.connect() as connection:
                connection.execute(
                    f"INSERT INTO a SELECT i, i, repeat('note', 30) FROM generate_series(1, {ROWS}) i".encode()
                )
                connection.execute(f"UPDATE b SET rows = {ROWS}".encode())
                connection.execute("UPDATE a SET n = -n WHERE id % 4 = 0")
            for number in range(1, 21):
                if number == 11:  # the first ones may have been read together with the end of the large one
                    pipeline.observer.until(lambda: bool(pipeline.observer.flushes), "the large one")
                last = ROWS + number * 10
                lab.execute(
                    f"INSERT INTO a SELECT i, i, 'small' FROM generate_series({last - 9}, {last}) i;"
                    f"UPDATE b SET rows = {last}"
                )
            pipeline.observer.until(
                lambda: sum(flush.rows for flush in pipeline.observer.flushes) == ROWS + 1 + ROWS // 4 + 20 * 11,
                "the end",
            )
    assert sum(spooled) > 30 * SMALL.max_bytes
    assert max(spooled) < 17 * SMALL.max_bytes, "a segment, of which one is in memory at a time"
    assert len(pipeline.observer.flushes) > 1
    assert reader.answers[0] == (0, 0)
    assert reader.answers[-1] == (ROWS + 200, ROWS + 200)
    assert not [answer for answer in reader.answers if answer[0] != answer[1]]
    lab.assert_equal(pipeline)


def test_frames_are_let_go_before_their_rows_are_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, note text)")
    lab.publish()
    pipeline = lab.synced(batch=SMALL)
    lab.execute("INSERT INTO a SELECT i, repeat('note', 1500) FROM generate_series(1, 12000) i")
    loaded: list[weakref.ref[Any]] = []
    in_memory: list[int] = []
    load, apply = SpooledFrames.load, TableWriter.apply

    def load_noted(spooled: SpooledFrames) -> Frames:
        frames = load(spooled)
        loaded.append(weakref.ref(frames.data))
        return frames

    def apply_noted(writer: TableWriter, changes: TableChanges) -> int:
        in_memory.append(sum(data() is not None for data in loaded))
        return apply(writer, changes)

    monkeypatch.setattr(SpooledFrames, "load", load_noted)
    monkeypatch.setattr(TableWriter, "apply", apply_noted)
    pipeline.stream(until=pipeline.current_lsn())
    assert len(loaded) > 3
    assert set(in_memory) == {0}
    lab.assert_equal()


def test_a_spooled_transaction_is_written_once_though_its_answer_is_lost(lab: Lab, spooled: list[int]) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int, n int)")
    lab.publish()
    pipeline = lab.synced(batch=BatchConfig(max_rows=1000, max_bytes=1 << 16, max_age=0.05))
    with lab.connect() as connection:
        connection.execute("INSERT INTO a SELECT i, i FROM generate_series(1, 20000) i")
        connection.execute("INSERT INTO b SELECT i, i FROM generate_series(1, 20000) i")
        connection.execute("TRUNCATE b")
        connection.execute("UPDATE a SET id = -id")
        connection.execute("INSERT INTO b SELECT i, i FROM generate_series(1, 20000) i")

    def crash() -> None:
        raise ConnectionError("died")

    for place in (failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN):
        with failpoints.activated(place, crash), pytest.raises(ConnectionError):
            pipeline.stream(until=pipeline.current_lsn())
    assert spooled
    lab.assert_equal()


def test_transfers_between_tables_are_never_seen_half_done(lab: Lab) -> None:
    for table in ("a", "b", "c"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL)")
        lab.execute(f"INSERT INTO {table} SELECT i, 100 FROM generate_series(1, 50) i")
    lab.publish()
    pipeline = lab.synced(batch=BatchConfig(max_rows=20, max_age=0.02))
    total = "SELECT (SELECT sum(n) FROM public.a) + (SELECT sum(n) FROM public.b) + (SELECT sum(n) FROM public.c)"
    with reading(lab, total) as reader, lab.running(pipeline, pipeline.stream):
        with lab.connect() as connection:
            for number in range(100):
                amount, rows = number % 17, range(1 + number % 50, 51, 7)
                for table, sign in (("a", -2), ("b", 1), ("c", 1)):
                    for row in rows:
                        connection.execute(f"UPDATE {table} SET n = n + {sign * amount} WHERE id = {row}".encode())
                connection.commit()
        pipeline.observer.until_flushed(pipeline.current_lsn())
        reader.ask_again()
    assert reader.answers == [(15_000,)]
    assert len(pipeline.observer.flushes) > 3
    lab.assert_equal(pipeline)


def test_a_transaction_that_takes_longer_than_the_time_given_is_passed(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, note text)")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
    for _ in range(20):  # the server may not have sent anything yet when the time is over
        pipeline.stream(seconds=0)
        if lab.rows("SELECT count(*) FROM public.t") == [(20000,)]:
            return
    pytest.fail("it is read from its beginning each time")
