"""Tables without a key, with REPLICA IDENTITY FULL: the destination has the same rows, each as often as the source.

The oracle is PostgreSQL: `assert_equal` counts the rows on both sides.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import random
import signal
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest

from etl_core.config import BatchConfig
from etl_core.config_tables import read_tables
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from tests.integration.replication.conftest import Lab

PATIENCE = 300.0
HASH_KEY = "a key that is long enough"


def name(table: str) -> TableName:
    return TableName("public", table)


def created(lab: Lab, *tables: str, rows: int = 40) -> None:
    """Tables in which most rows are there several times, some of nothing but NULL, some with large values."""
    for table in tables:
        lab.execute(
            f"CREATE TABLE {table} (n int, note text, f float8, at timestamptz, big text);"
            f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL; ALTER TABLE {table} REPLICA IDENTITY FULL;"
            f"INSERT INTO {table} SELECT nullif(i % 4, 0), nullif('note ' || i % 3, 'note 1'), i % 2,"
            f" '2024-02-29 12:00+00', CASE WHEN i % 5 = 0 THEN repeat('x' || i % 2, 3000) END"
            f" FROM generate_series(1, {rows}) i; INSERT INTO {table} (n) SELECT NULL FROM generate_series(1, 5)"
        )


class Strokes:
    """Random statements on such tables; the same seed, the same statements."""

    def __init__(self, seed: int, *tables: str) -> None:
        self._draw = random.Random(seed)
        self._tables = tables

    def transaction(self, connection: psycopg.Connection[Any]) -> None:
        draw = self._draw
        with connection.transaction(force_rollback=draw.random() < 0.1):
            for _ in range(draw.randint(1, 5)):
                with connection.transaction(force_rollback=draw.random() < 0.1):
                    connection.execute(self._statement(draw.choice(self._tables)).encode())

    def _statement(self, table: str) -> str:
        draw = self._draw
        n, note = draw.choice(["NULL", "0", "1", "2"]), draw.choice(["NULL", "'note 0'", "''"])
        f = draw.choice(["'NaN'", "0", "'-0'", "1.5", "NULL"])
        big = draw.choice(["NULL", "'short'", "repeat('x0', 3000)", f"repeat('y{draw.randint(1, 2)}', 3000)"])
        first, count, times = draw.randint(0, 9), draw.randint(1, 4), draw.randint(1, 3)
        some = f"ctid IN (SELECT ctid FROM {table} ORDER BY ctid OFFSET {first} LIMIT {count})"
        return draw.choice(
            [
                f"INSERT INTO {table} SELECT {n}, {note}, {f}, NULL, {big} FROM generate_series(1, {times})",
                f"INSERT INTO {table} SELECT * FROM {table} WHERE {some}",
                f"UPDATE {table} SET n = {n} WHERE {some}",
                f"UPDATE {table} SET f = {f}, note = {note}",
                f"UPDATE {table} SET big = {big} WHERE {some}",
                f"UPDATE {table} SET n = n WHERE {some}",
                f"DELETE FROM {table} WHERE {some}",
                f"DELETE FROM {table} WHERE n = {n} AND {some}",
            ]
        )


def change(lab: Lab, strokes: Strokes, times: int) -> None:
    with psycopg.connect(lab.database.dsn, autocommit=True) as connection:
        for _ in range(times):
            strokes.transaction(connection)


@pytest.mark.parametrize(("batches", "max_bytes"), [(1, 16 << 20), (1, 20_000), (12, 16 << 20)])
def test_random_changes(lab: Lab, batches: int, max_bytes: int) -> None:
    """All in one batch, spooled or not, or in many; with a truncation in the middle."""
    created(lab, "a", "b")
    lab.publish()
    pipeline = lab.synced(batch=BatchConfig(max_age=0.2, max_bytes=max_bytes))
    strokes = Strokes(batches, "a", "b")
    for at in range(batches):
        change(lab, strokes, 120 // batches // 2)
        if at % 6 == 0:
            lab.execute(
                "BEGIN; UPDATE a SET n = 7; TRUNCATE a; INSERT INTO a (n) SELECT 1 FROM generate_series(1, 9);"
                "DELETE FROM a WHERE ctid IN (SELECT ctid FROM a LIMIT 2); COMMIT"
            )
        change(lab, strokes, 120 // batches // 2)
        lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    lab.assert_equal(pipeline)


STREAMED = [failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED, failpoints.CONFIRMED]


def test_killed_while_it_streams(lab: Lab) -> None:
    created(lab, "a", "b")
    lab.publish()
    lab.synced()
    strokes = Strokes(5, "a", "b")
    for failpoint in STREAMED:
        change(lab, strokes, 20)
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.assert_equal(lab.pipeline())


def test_a_copy_that_is_caught_up(lab: Lab) -> None:
    """The stream passes the snapshot while the copy is held: the catch-up brings what was changed meanwhile."""
    created(lab, "a")
    lab.execute("CREATE TABLE others (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced()
    pipeline.resync(name("a"))
    strokes = Strokes(3, "a")

    def passed() -> None:
        change(lab, strokes, 20)
        lab.execute("INSERT INTO others VALUES (1)")
        with contextlib.ExitStack() as stack:
            streaming = lab.pipeline()
            stack.callback(streaming.close)
            streaming.stream(until=streaming.current_lsn())

    copying = lab.pipeline()
    with failpoints.activated(failpoints.COPY_STAGED, passed):
        assert [outcome for outcome in copying.sync() if isinstance(outcome, EtlError)] == []
    change(lab, strokes, 20)
    lab.assert_equal(copying)


def test_columns_that_come_and_go_and_are_hidden(lab: Lab) -> None:
    """Rows are found by what the destination has of them, in columns that older rows lack, too."""
    created(lab, "a", "b")
    lab.publish()
    hidden = {"public.b": {"columns": {"hash": ["note"], "exclude": ["big"], "rename": {"n": "m"}}}}
    pipeline = lab.synced(tables=read_tables("tables", hidden), hash_key=HASH_KEY)
    lab.execute("UPDATE b SET big = 'other'; DELETE FROM b WHERE n = 1; UPDATE b SET note = 'x' WHERE n = 2")
    lab.execute("ALTER TABLE a ADD added int DEFAULT 7; DELETE FROM a WHERE n = 1; UPDATE a SET f = 9 WHERE n = 2")
    lab.execute("ALTER TABLE a RENAME note TO remark; UPDATE a SET remark = 'y' WHERE n = 3; ALTER TABLE a DROP f")
    lab.execute("INSERT INTO a SELECT * FROM a WHERE n = 3; UPDATE a SET added = NULL WHERE n = 3")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    lab.assert_same_rows(name("a"))
    expected = lab.execute("SELECT n, count(*) FROM b GROUP BY n ORDER BY n")
    assert lab.rows("SELECT m, count(*) FROM public.b GROUP BY m ORDER BY m") == expected


def test_a_row_that_is_not_there_has_the_table_copied_again(lab: Lab) -> None:
    created(lab, "a", "b")
    lab.publish()
    pipeline = lab.synced()
    with duckdb.connect(lab.path) as outside:
        outside.execute("DELETE FROM public.a WHERE n = 2")
    lab.execute("UPDATE a SET note = 'x' WHERE n = 2; UPDATE b SET note = 'x' WHERE n = 2")
    lab.caught_up(pipeline)
    assert "rows to remove are not there" in str(pipeline.observer.errors.pop("a"))
    assert pipeline.observer.errors == {}
    assert pipeline.find(name("a")).state is TableState.INIT
    again = lab.synced()
    lab.execute("DELETE FROM a WHERE note = 'x'")
    lab.assert_equal(again)


class Incapable:
    """A destination of a package that knows of no removals."""

    def __init__(self, inner: DuckDBDestination) -> None:
        self.prepare, self.positions, self.copy, self.write = inner.prepare, inner.positions, inner.copy, inner.write
        self.read, self.forget, self.close = inner.read, inner.forget, inner.close


def test_what_a_destination_cannot_do_is_told_before_the_copy(lab: Lab) -> None:
    created(lab, "a")
    lab.execute("CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (rowid int, n int)")
    lab.execute("CREATE TABLE d (LIKE c); ALTER TABLE c REPLICA IDENTITY FULL; ALTER TABLE d REPLICA IDENTITY FULL")
    lab.execute("INSERT INTO d VALUES (1, 1), (1, 1)")
    lab.publish()
    renamed = read_tables("tables", {"public.d": {"columns": {"rename": {"rowid": "row_id"}}}})
    pipeline = lab.pipeline(tables=renamed)
    (refused,) = [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    assert "public.c has no key, and its updates and deletes cannot be applied" in str(refused)
    assert "its column rowid hides the row numbers of DuckDB" in str(refused)
    lab.execute("DELETE FROM d WHERE ctid = '(0,1)'; UPDATE a SET n = 5; DELETE FROM b")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT row_id, n FROM public.d") == [(1, 1)]
    lab.execute("UPDATE a SET n = 6; INSERT INTO b VALUES (1)")
    incapable = lab.pipeline(tables=renamed, destination=Incapable(DuckDBDestination(lab.path, lab.config.pipeline)))
    lab.caught_up(incapable)  # `a` was copied by a version that could
    assert "this type of destination does not do that" in str(incapable.observer.errors["a"])
    assert incapable.find(name("b")).state is TableState.READY
    incapable.resync(name("a"))
    outcomes = incapable.sync([name("a")])
    assert ["this type of destination does not do that" in str(outcome) for outcome in outcomes] == [True]
    assert set(lab.rows("SELECT n FROM public.a")) == {(5,)}
    lab.execute("ALTER PUBLICATION lab_pub SET (publish = 'insert, delete')")
    (refused,) = [outcome for outcome in lab.pipeline(tables=renamed).sync() if isinstance(outcome, EtlError)]
    assert "public.d has no key, and publication lab_pub does not publish update" in str(refused)
    lab.execute("ALTER PUBLICATION lab_pub SET (publish = 'insert')")
    pipeline = lab.pipeline(tables=renamed)
    for table in ("a", "c", "d"):
        pipeline.resync(name(table))
    assert [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)] == []
    lab.execute("INSERT INTO c VALUES (2, 2); INSERT INTO a (n) VALUES (7)")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT rowid, n FROM public.c") == [(2, 2)]


IDENTITIES = {
    "full_default": "ALTER TABLE {t} REPLICA IDENTITY DEFAULT; INSERT INTO {t} VALUES (9, 9)",
    "full_default_full": "ALTER TABLE {t} REPLICA IDENTITY DEFAULT; INSERT INTO {t} VALUES (9, 9);"
    "ALTER TABLE {t} REPLICA IDENTITY FULL; DELETE FROM {t} WHERE n = 9",
    "key_added": "DELETE FROM {t}; INSERT INTO {t} VALUES (1, 1), (2, 2); ALTER TABLE {t} ADD PRIMARY KEY (n);"
    "UPDATE {t} SET m = 5 WHERE n = 1; DELETE FROM {t} WHERE n = 2",
    "key_dropped": "UPDATE {t} SET m = 5 WHERE n = 1; ALTER TABLE {t} DROP CONSTRAINT {t}_pkey;"
    "INSERT INTO {t} VALUES (1, 5); UPDATE {t} SET m = 6 WHERE n = 1; DELETE FROM {t} WHERE n = 2",
    "key_dropped_and_again": "UPDATE {t} SET m = 5 WHERE n = 1; ALTER TABLE {t} DROP CONSTRAINT {t}_pkey;"
    "INSERT INTO {t} VALUES (1, 5); DELETE FROM {t} WHERE n = 1; ALTER TABLE {t} ADD PRIMARY KEY (n);"
    "UPDATE {t} SET m = 7 WHERE n = 2",
    "deferred_key": "UPDATE {t} SET m = 5 WHERE n = 1; UPDATE {t} SET n = n + 1; DELETE FROM {t} WHERE n = 3",
}


@pytest.mark.parametrize("looks", [False, True], ids=["unseen", "seen"])
def test_identity_and_key_changed_while_streaming(lab: Lab, looks: bool) -> None:
    """Ends exact, or copied again by itself; `looks`: every statement is streamed before the next one."""
    for table in IDENTITIES:
        key = " PRIMARY KEY" if table.startswith("key_dropped") else ""
        key = " PRIMARY KEY DEFERRABLE" if table == "deferred_key" else key
        lab.execute(f"CREATE TABLE {table} (n int{key}, m int); ALTER TABLE {table} REPLICA IDENTITY FULL")
        lab.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(1, 3) i")
        if not key:
            lab.execute(f"INSERT INTO {table} VALUES (1, 1), (NULL, 1), (NULL, 1)")
    lab.publish()
    pipeline = lab.synced()
    for table, statements in IDENTITIES.items():
        for statement in statements.format(t=table).split(";"):
            lab.execute(statement)
            if looks:
                lab.caught_up(pipeline)
    lab.caught_up(pipeline)
    again = lab.synced()
    for table in IDENTITIES:
        if table != "full_default":
            lab.execute(f"UPDATE {table} SET m = 100")
    lab.assert_equal(again)


PARTITIONED = """
CREATE TABLE p (region text, n int, note text) PARTITION BY LIST (region);
CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu');
CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us');
ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p_eu REPLICA IDENTITY FULL;
INSERT INTO p SELECT CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i % 3, NULL FROM generate_series(1, 20) i
"""


def test_partitions_that_send_less_than_whole_rows(lab: Lab) -> None:
    """A partition with a key of its own sends keys alone, under the identity FULL of its root."""
    lab.execute(PARTITIONED)
    lab.execute("ALTER TABLE p_us REPLICA IDENTITY FULL")
    lab.publish("TABLE p")
    pipeline = lab.synced()
    lab.execute("UPDATE p SET region = 'us' WHERE n = 1; DELETE FROM p WHERE n = 2 AND region = 'eu'")
    lab.execute("UPDATE p SET note = 'x' WHERE n = 0")
    lab.assert_equal(pipeline)
    lab.execute("DELETE FROM p_us")
    lab.caught_up(pipeline)
    lab.execute("ALTER TABLE p_us ADD PRIMARY KEY (n); ALTER TABLE p_us REPLICA IDENTITY DEFAULT")
    lab.execute("INSERT INTO p VALUES ('us', 50, 'y'), ('us', 51, 'y')")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    lab.execute("DELETE FROM p WHERE n = 50")
    lab.assert_equal(pipeline, errored=["p"])
    assert "published without a key" in str(pipeline.observer.errors["p"])


def test_rows_that_move_into_and_out_of_a_filter(lab: Lab) -> None:
    if lab.execute("SELECT current_setting('server_version_num')::int < 150000") == [(True,)]:
        return  # row filters came with PostgreSQL 15
    created(lab, "a")
    lab.execute("CREATE PUBLICATION lab_pub FOR TABLE a WHERE (n < 2 OR n IS NULL)")
    pipeline: Pipeline = lab.synced()
    strokes = Strokes(8, "a")
    for statement in (
        "UPDATE a SET n = 1 WHERE n = 2",
        "UPDATE a SET n = 3, note = 'out' WHERE n IS NULL",
        "UPDATE a SET n = 0 WHERE n = 3 AND big IS NOT NULL",
        "DELETE FROM a WHERE n = 3",
    ):
        lab.execute(statement)
    change(lab, strokes, 30)
    lab.caught_up(pipeline)
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    expected = sorted(map(repr, lab.execute("SELECT n, note, f, big FROM a WHERE n < 2 OR n IS NULL")))
    assert sorted(map(repr, lab.rows("SELECT n, note, f, big FROM public.a"))) == expected
