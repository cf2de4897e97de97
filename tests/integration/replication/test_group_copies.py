"""Small tables copied in a group: what becomes of one that cannot be copied so, or that changes meanwhile."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.config import CopyConfig
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication import copy_description, failpoints
from etl_core.replication.copied import Copied
from etl_core.source.digits import count_digits
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from etl_core.source.catalog import PublishedTable
    from etl_core.source.connection import Connection
    from etl_core.state.store import TableStatus
    from tests.integration.replication.conftest import Lab, Watched

TABLES = [f"t{number}" for number in range(1, 9)]


def create(lab: Lab) -> None:
    for table in TABLES:
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, note text, amount numeric)")
        lab.execute(f"INSERT INTO {table} SELECT n, 'note ' || n, n / 4.0 FROM generate_series(1, 20) n")  # noqa: S608
    lab.publish()


def find(pipeline: Watched, table: str) -> TableStatus:
    return pipeline.find(TableName("public", table))


def copies(pipeline: Watched, table: str) -> int:
    """How often the table was copied."""
    history = pipeline.store.history(find(pipeline, table).table_id)
    return sum(move.to_state is TableState.FINISHED_COPY for move in history)


def test_tables_that_change_while_their_group_is_copied_are_copied_again_alone(lab: Lab) -> None:
    create(lab)
    pipeline = lab.pipeline(copy=CopyConfig(workers=1))
    seen: list[TableState] = []

    def change() -> None:
        if seen:
            return
        with lab.unprepared() as other:  # another process, which must not take the group for dead
            seen.extend(status.state for status in other.status().tables)
            other.sync([])
            assert {status.state for status in other.store.tables()} == {TableState.DATA_SYNC}
        lab.execute("UPDATE t3 SET note = 'changed'")
        lab.execute("DELETE FROM t5 WHERE id < 9")
        pipeline.observer.until_flushed(pipeline.current_lsn())

    with failpoints.activated(failpoints.COPY_STAGED, change), lab.running(pipeline):
        pipeline.observer.until_ready(*TABLES)
        assert seen == [TableState.DATA_SYNC] * len(TABLES)
        for table in ("t3", "t5"):
            reasons = [move.error for move in pipeline.store.history(find(pipeline, table).table_id) if move.error]
            assert len(reasons) == 1
            assert "copied together with other tables" in reasons[0]
        lab.execute("UPDATE t3 SET amount = 7")
        lab.execute("DELETE FROM t1 WHERE id = 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
    assert [copies(pipeline, table) for table in ("t1", "t3", "t5", "t8")] == [1, 2, 2, 1]
    lab.assert_equal(pipeline)


def test_a_stream_that_begins_beside_one_copy_leaves_no_table_to_be_copied_again(lab: Lab) -> None:
    """Whoever copies once does not look again: tables of a group that a stream has passed are copied alone at once."""
    create(lab)
    pipeline, other = lab.pipeline(copy=CopyConfig(workers=1)), lab.pipeline()
    streaming: list[AbstractContextManager[object]] = []

    def begin() -> None:
        if not streaming:
            streaming.append(lab.running(other, other.stream))
            streaming[0].__enter__()
            lab.execute("UPDATE t3 SET note = 'changed'")
            other.observer.until_flushed(other.current_lsn())

    with failpoints.activated(failpoints.COPY_STAGED, begin):
        assert {type(outcome) for outcome in pipeline.sync()} == {Copied}
    assert all(status.state is not TableState.INIT for status in pipeline.store.tables())
    other.observer.until_ready(*TABLES)
    streaming[0].__exit__(None, None, None)
    assert copies(pipeline, "t3") == 2
    lab.assert_equal(pipeline)


def test_a_run_whose_time_is_over_finishes_what_was_copied_in_a_group(lab: Lab) -> None:
    create(lab)
    pipeline = lab.pipeline(copy=CopyConfig(workers=1))
    staged = threading.Event()

    def change() -> None:
        if staged.is_set():
            return
        staged.set()
        pipeline.observer.until(lambda: any("time is over" in one for one in pipeline.observer.waiting), "the end")
        lab.execute("UPDATE t3 SET note = 'changed'")
        pipeline.observer.until_flushed(pipeline.current_lsn())

    with failpoints.activated(failpoints.COPY_STAGED, change):
        pipeline._copies.start()
        assert staged.wait(300)
        pipeline.run(seconds=0)
    assert [copies(pipeline, table) for table in ("t1", "t3")] == [1, 2]
    lab.assert_equal(pipeline)


def test_a_table_that_fails_in_a_group_fails_no_other(lab: Lab) -> None:
    create(lab)
    lab.execute('CREATE TABLE "T1" (id int PRIMARY KEY)')  # in DuckDB the name of another
    lab.execute("CREATE TABLE nan (id int PRIMARY KEY, a numeric)")
    lab.execute("INSERT INTO nan VALUES (1, 0.5), (2, 'NaN')")
    lab.execute("CREATE TABLE long (id int PRIMARY KEY, text text)")
    lab.execute("INSERT INTO long SELECT n, repeat('x', 2000000) FROM generate_series(1, 4) n")
    pipeline = lab.pipeline()
    outcomes = pipeline.sync()
    failed = {status.name.name for status in pipeline.store.tables() if status.state is TableState.ERRORED}
    assert len(failed) == len([outcome for outcome in outcomes if isinstance(outcome, EtlError)])
    assert failed in ({"nan", "t1"}, {"nan", "T1"})
    for name in failed:
        status = find(pipeline, name)
        assert (status.attempts, status.error is None, status.hint is None) == (1, False, False)
    lab.assert_equal(pipeline, errored=sorted(failed))


def test_a_group_replaces_tables_of_before(lab: Lab) -> None:
    create(lab)
    pipeline = lab.synced()
    lab.execute("ALTER TABLE t2 ADD COLUMN more int")
    lab.execute("ALTER TABLE t4 RENAME TO t9")
    lab.execute("CREATE TABLE t4 (id int PRIMARY KEY)")
    lab.execute("INSERT INTO t4 VALUES (1)")
    lab.execute("UPDATE t6 SET amount = 1")
    lab.execute("TRUNCATE t8")
    pipeline.prepare()
    assert {type(outcome) for outcome in pipeline.sync_all()} == {Copied}
    assert [copies(pipeline, table) for table in ("t1", "t4", "t9")] == [2, 1, 2]
    lab.assert_equal(pipeline)


def test_the_digits_of_a_large_table_without_statistics_are_not_counted_for_a_group(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(lab)
    lab.execute("CREATE TABLE large (id int PRIMARY KEY, a numeric) WITH (autovacuum_enabled = false)")
    lab.execute("INSERT INTO large SELECT n, n / 8.0 FROM generate_series(1, 150000) n")
    counted: list[str] = []

    def count(connection: Connection, table: PublishedTable, *rest: Any) -> Any:
        counted.append(table.name.name)
        return count_digits(connection, table, *rest)

    monkeypatch.setattr(copy_description, "count_digits", count)
    pipeline = lab.pipeline()
    assert {type(outcome) for outcome in pipeline.sync()} == {Copied}
    assert sorted(counted) == sorted([*TABLES, "large"])
    lab.assert_equal(pipeline)
