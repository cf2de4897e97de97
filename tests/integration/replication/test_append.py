"""Tables of write_mode append: a row for every change, in its order, never changed and never doubled.

The oracle is PostgreSQL: triggers write down every change that is committed.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest

from etl_core.config import BatchConfig
from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.shape.keyed_hash import HashKey
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab, Watched

PATIENCE = 300.0
HASH_KEY = "a key that is long enough"
NOTE = """
CREATE SCHEMA shadow;
CREATE TABLE shadow.changes (at bigserial, tx xid8, name text, op text, old jsonb, new jsonb, moment timestamptz);
CREATE FUNCTION shadow.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shadow.changes (tx, name, op, old, new, moment)
    VALUES (pg_current_xact_id(), TG_TABLE_NAME, lower(TG_OP),
            CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) END,
            CASE WHEN TG_OP IN ('INSERT', 'UPDATE') THEN to_jsonb(NEW) END, clock_timestamp());
    RETURN NULL;
END $$
"""
CHANGES = """
SELECT tx::text, op, old, new, moment, place FROM (
    SELECT *, row_number() OVER (PARTITION BY tx ORDER BY at) AS place FROM shadow.changes
) AS c WHERE name = %s ORDER BY at
"""
"""Places are among all tables' changes of the transaction."""


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Every table is a log."""
    lab.config = replace(lab.config, write_mode=WriteMode.APPEND)
    return lab


def shadow(lab: Lab, *tables: str) -> None:
    """Has the source write down the changes of the tables, and publishes them."""
    lab.execute(NOTE)
    for table in tables:
        lab.execute(
            f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION shadow.note();"
            f"CREATE TRIGGER note_all AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION shadow.note()"
        )
    lab.publish(f"TABLE {', '.join(tables)}")


def logged(lab: Lab, table: str) -> list[dict[str, Any]]:
    """The table's rows but for those of copies, in the order of the log."""
    names = [row[0] for row in lab.rows(f"DESCRIBE public.{table}")]
    query = f"SELECT * FROM public.{table} WHERE _etl_seq > 0 ORDER BY _etl_lsn, _etl_seq"
    return [dict(zip(names, row, strict=True)) for row in lab.rows(query)]


def assert_logged(lab: Lab, *tables: str, whole: str = "", keyless: str = "") -> None:
    """Every change is there once, as it was, in its order. `whole` and `keyless` have REPLICA IDENTITY FULL."""
    transactions: dict[str, tuple[int, Any]] = {}
    for table in tables:
        found, expected = logged(lab, table), lab.execute(CHANGES, [table])
        assert [row["_etl_op"] for row in found] == [op for _, op, *_ in expected]
        for row, (tx, op, old, new, moment, place) in zip(found, expected, strict=True):
            assert row["_etl_seq"] == place
            assert transactions.setdefault(tx, (row["_etl_lsn"], row["_etl_committed_at"])) == (
                row["_etl_lsn"],
                row["_etl_committed_at"],
            )
            assert moment <= row["_etl_committed_at"]
            columns = ("id", "n", "note", "big")
            unchanged = row["_etl_unchanged"] or []
            if op in ("insert", "update"):
                assert {name: row[name] for name in columns} == {
                    name: None if name in unchanged else new[name] for name in columns
                }
                assert all(op == "update" and old[name] == new[name] for name in unchanged)
                assert table not in (whole, keyless) or not unchanged
            elif op == "delete":
                has = old if table in (whole, keyless) else {"id": old["id"]}
                assert {name: row[name] for name in columns} == {name: has.get(name) for name in columns}
            else:
                assert [row[name] for name in columns] == [None] * 4
            moved = op == "update" and (table == keyless or old["id"] != new["id"])
            olds = columns if table == keyless else ("id",)
            assert {name: row[f"_etl_old_{name}"] for name in olds} == {
                name: old[name] if moved else None for name in olds
            }
    lsns = [lsn for lsn, _ in dict.fromkeys(transactions.values())]
    assert len(lsns) == len(set(lsns)) == len(transactions)


def assert_gives_the_source(pipeline: Watched, *tables: str, uncompared: bool = False) -> None:
    """The rows that follow from the log are the source's."""
    found = {comparison.table.name: comparison for comparison in pipeline.verify()}
    assert {name: (one.is_equal, one.problem) for name, one in found.items()} == dict.fromkeys(tables, (True, None))
    assert any(one.uncompared for one in found.values()) is uncompared
    assert all(one.is_of_log for one in found.values())


def change(lab: Lab, churn: Churn, times: int) -> None:
    """So many of the churn's transactions, in this thread: the same statements in every run."""
    with psycopg.connect(lab.database.dsn) as connection:
        for _ in range(times):
            churn._transaction(connection)


def copied_again(lab: Lab, **changes: Any) -> Watched:
    """A new copy of every table that needs one, and the stream behind it."""
    pipeline = lab.pipeline(**changes)
    assert [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)] == []
    lab.caught_up(pipeline)
    return pipeline


# --- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches", "max_bytes"), [(1, 20_000), (8, 16 << 20)])
def test_random_changes_are_all_there(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], batches: int, max_bytes: int
) -> None:
    """Unchanged TOAST, moved and repeated keys, truncations, no key; in one batch or in many, in memory or spooled."""
    tables = ("a", "b", "c", "d")
    churned(*tables, rows=60)
    lab.execute(
        "ALTER TABLE b REPLICA IDENTITY FULL;"
        "CREATE UNIQUE INDEX c_id ON c (id); ALTER TABLE c REPLICA IDENTITY USING INDEX c_id;"
        "ALTER TABLE d DROP CONSTRAINT d_pkey, ALTER id DROP NOT NULL; ALTER TABLE d REPLICA IDENTITY FULL"
    )
    shadow(lab, *tables)
    pipeline = lab.synced(batch=BatchConfig(max_age=0.2, max_bytes=max_bytes))
    writer = churn(*tables, seed=batches, keys=80)
    for at in range(batches):
        change(lab, writer, 160 // batches // 2)
        if at % 3 == 0:
            table = tables[at % 4]
            lab.execute(
                f"BEGIN; DELETE FROM b WHERE id % 7 = 1; TRUNCATE {table}; TRUNCATE {table};"
                f"INSERT INTO {table} SELECT i, i, 'again', repeat('w', 3000) FROM generate_series(1, 20) i;"
                f"UPDATE a SET n = -1; TRUNCATE {table}; INSERT INTO {table} VALUES (1, 1, NULL, 'x'); COMMIT"
            )
        change(lab, writer, 160 // batches // 2)
        lab.caught_up(pipeline)
    assert_logged(lab, *tables, whole="b", keyless="d")
    assert_gives_the_source(pipeline, *tables, uncompared=True)
    copies = "SELECT count(*), count(DISTINCT _etl_lsn), max(_etl_seq) FROM public.a WHERE _etl_op = 'copy'"
    assert lab.rows(copies) == [(60, 1, 0)]
    assert lab.rows("SELECT min(_etl_lsn) < (SELECT min(_etl_lsn) FROM public.b WHERE _etl_seq > 0) FROM public.b") == [
        (True,)
    ]


STREAMED = [failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED, failpoints.CONFIRMED]


@pytest.mark.parametrize("failpoint", STREAMED)
def test_killed_while_it_streams(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b", rows=60)
    shadow(lab, "a", "b")
    lab.synced()
    with churn("a", "b", keys=80):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill:2").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    lab.caught_up(pipeline)
    assert_logged(lab, "a", "b")
    assert_gives_the_source(pipeline, "a", "b", uncompared=True)


def test_a_catch_up_writes_what_the_stream_would(lab: Lab) -> None:
    """The stream passes the snapshot while the copy is held. Places count what other tables have in the transaction."""
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, n int, note text, big text)")
    lab.execute("CREATE TABLE others (LIKE items INCLUDING ALL)")
    lab.execute("INSERT INTO items SELECT i, i, 'n', repeat('x', 3000) FROM generate_series(1, 50) i")
    lab.execute("ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    shadow(lab, "items", "others")
    pipeline = lab.synced()
    pipeline.resync(TableName("public", "items"))

    def passed() -> None:
        lab.execute(
            "BEGIN; INSERT INTO others VALUES (1); DELETE FROM items WHERE id % 5 = 0; INSERT INTO others VALUES (2);"
            " UPDATE items SET n = -1 WHERE id % 5 = 1; UPDATE others SET n = 3; COMMIT"
        )
        lab.execute("UPDATE items SET id = 1000 + id WHERE id % 5 = 2; TRUNCATE others, items")
        with contextlib.ExitStack() as stack:
            streaming = lab.pipeline()
            stack.callback(streaming.close)
            streaming.stream(until=streaming.current_lsn())

    copying = lab.pipeline()
    with failpoints.activated(failpoints.COPY_STAGED, passed):
        assert [outcome for outcome in copying.sync() if isinstance(outcome, EtlError)] == []
    lab.execute("INSERT INTO items VALUES (1, 1, 'again', '')")
    lab.caught_up(copying)
    # PostgreSQL sends one message for all tables of a TRUNCATE, and the triggers note two changes.
    lab.execute("DELETE FROM shadow.changes WHERE op = 'truncate' AND name = 'others'")
    assert_logged(lab, "items")
    [(place,)] = lab.rows("SELECT _etl_seq FROM public.others WHERE _etl_op = 'truncate' AND _etl_seq > 0")
    assert lab.rows("SELECT _etl_seq FROM public.items WHERE _etl_op = 'truncate'") == [(place,)]


def test_what_tells_rows_apart_is_altered(lab: Lab) -> None:
    """Older rows of the log are told by what was the key then, so that a new copy has to begin it anew."""
    lab.execute(
        "CREATE TABLE keyed (id int PRIMARY KEY, b int NOT NULL); INSERT INTO keyed VALUES (1, 10), (2, 20);"
        "CREATE TABLE loose (a int); ALTER TABLE loose REPLICA IDENTITY FULL; INSERT INTO loose VALUES (1), (1);"
        "CREATE TABLE staging (id int PRIMARY KEY); INSERT INTO staging VALUES (1)"
    )
    lab.publish()
    pipeline = lab.synced()
    for statement in (
        "DELETE FROM keyed WHERE id = 1; UPDATE loose SET a = 2 WHERE ctid = (SELECT min(ctid) FROM loose)",
        "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (b); INSERT INTO keyed VALUES (1, 30)",
        "ALTER TABLE loose ADD z text DEFAULT 'd'; INSERT INTO loose VALUES (3, 'e'); TRUNCATE staging",
    ):
        lab.execute(statement)
    lab.caught_up(pipeline)
    assert pipeline.observer.errors.keys() == {"keyed", "loose"}
    assert {comparison.is_equal for comparison in lab.synced().verify()} == {True}


# --- settings, schema changes, copies --------------------------------------------------------------------------------


def test_with_columns_that_are_hidden_and_renamed(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE items (id text PRIMARY KEY, email text, note text, big text);"
        "ALTER TABLE items ALTER big SET STORAGE EXTERNAL; ALTER TABLE items ALTER note SET STORAGE EXTERNAL;"
        "INSERT INTO items VALUES ('1', 'ada@example.com', repeat('n', 3000), repeat('b', 3000))"
    )
    lab.publish()
    columns = {"items": {"columns": {"hash": ["id"], "exclude": ["note"], "rename": {"big": "large"}}}}
    pipeline = lab.synced(tables=read_tables("tables", columns), hash_key=HASH_KEY)
    lab.execute("UPDATE items SET email = 'e'; UPDATE items SET id = '2'; DELETE FROM items")
    lab.caught_up(pipeline)
    first, second = (HashKey.of(HASH_KEY).hash_text(text) for text in (b"1", b"2"))
    found = [(r["_etl_op"], r["id"], r["_etl_old_id"], r["email"], r["_etl_unchanged"]) for r in logged(lab, "items")]
    assert found == [
        ("update", first, None, "e", ["large"]),
        ("update", second, first, "e", ["large"]),
        ("delete", second, None, None, None),
    ]
    assert "note" not in logged(lab, "items")[0]
    lab.execute("INSERT INTO items VALUES ('3', 'x', 'x', repeat('b', 3000)); UPDATE items SET email = 'y'")
    lab.caught_up(pipeline)
    assert_gives_the_source(pipeline, "items", uncompared=True)


def test_columns_change_and_the_log_stays(lab: Lab) -> None:
    """In place where a mirror does it in place; by a copy that is appended where it needs one."""
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, a int, b varchar(5), c text);"
        "INSERT INTO items SELECT i, i, 'b' || i, 'c' FROM generate_series(1, 3) i"
    )
    lab.publish()
    pipeline = lab.synced()
    lab.execute("UPDATE items SET id = 10 WHERE id = 1")
    lab.execute("ALTER TABLE items RENAME a TO aa; ALTER TABLE items ALTER b TYPE text; ALTER TABLE items DROP c")
    lab.execute("ALTER TABLE items RENAME id TO number; ALTER TABLE items ADD d int DEFAULT 7")
    lab.execute("UPDATE items SET number = 20, b = 'longer' WHERE number = 2")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    query = "SELECT _etl_op, number, _etl_old_number, aa, b, d FROM public.items ORDER BY _etl_lsn, _etl_seq, number"
    before = [
        ("copy", 1, None, 1, "b1", 7),
        ("copy", 2, None, 2, "b2", 7),
        ("copy", 3, None, 3, "b3", 7),
        ("update", 10, 1, 1, "b1", 7),
        ("update", 20, 2, 2, "longer", 7),
    ]
    assert lab.rows(query) == before
    # Written anew at the source: the table is copied again, and what was deleted meanwhile is not among its rows.
    lab.execute("ALTER TABLE items ALTER aa TYPE bigint; ALTER TABLE items ADD e int DEFAULT (random() * 9)::int")
    lab.execute("DELETE FROM items WHERE number = 3")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    lab.execute("DELETE FROM items WHERE number = 20")
    lab.caught_up(pipeline)
    assert lab.rows(query) == [
        *before,
        ("copy", 10, None, 1, "b1", 7),
        ("copy", 20, None, 2, "longer", 7),
        ("delete", 20, None, None, None, None),
    ]
    assert_gives_the_source(pipeline, "items")
    lsns = lab.rows("SELECT DISTINCT _etl_lsn, _etl_committed_at FROM public.items WHERE _etl_op = 'copy'")
    assert len(lsns) == 2


@pytest.mark.parametrize("failpoint", [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.COPY_FINISHED])
def test_killed_while_it_is_copied_again(lab: Lab, failpoint: str) -> None:
    """The log of before stays; every copy in it is whole."""
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, n int, note text, big text); INSERT INTO items VALUES (1, 1)")
    shadow(lab, "items")
    pipeline = lab.synced()
    lab.execute("INSERT INTO items VALUES (2, 2); UPDATE items SET id = 3 WHERE id = 1; DELETE FROM items WHERE id = 2")
    lab.caught_up(pipeline)
    pipeline.resync(TableName("public", "items"))
    assert lab.process("run", failpoint=f"{failpoint}:kill:1").wait(PATIENCE) == -signal.SIGKILL
    copied_again(lab)
    lab.execute("INSERT INTO items VALUES (4, 4)")
    lab.caught_up(lab.pipeline())
    assert_logged(lab, "items")
    copies = lab.rows(
        "SELECT list(id), count(DISTINCT _etl_seq) FROM public.items WHERE _etl_op = 'copy' GROUP BY _etl_lsn"
        " ORDER BY _etl_lsn"
    )
    assert copies == [([1], 1), *[([3], 1)] * (2 if failpoint == failpoints.COPY_PUBLISHED else 1)]


def test_another_mode_begins_anew_and_is_told(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)")
    lab.publish()
    pipeline = lab.synced(write_mode=WriteMode.MIRROR)
    lab.execute("INSERT INTO items VALUES (2); DELETE FROM items WHERE id = 1")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    lab.execute("INSERT INTO items VALUES (3)")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT id, _etl_op FROM public.items ORDER BY id") == [(2, "copy"), (3, "insert")]
    pipeline = copied_again(lab, write_mode=WriteMode.SOFT_DELETE)
    said = "its write_mode was changed from append to soft_delete, which removes the log of its changes"
    assert str(pipeline.observer.errors["items"]) == f"public.items is copied again: {said}"
    assert lab.rows("SELECT id, _etl_deleted_at FROM public.items ORDER BY id") == [(2, None), (3, None)]


def test_verify_finds_what_is_wrong_in_a_log(lab: Lab) -> None:
    """Values of the last row of a key, rows that are gone, and rows that should be."""
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items SELECT i, i FROM generate_series(1, 9) i;"
        "CREATE TABLE bare (n int, m int); ALTER TABLE bare REPLICA IDENTITY FULL; INSERT INTO bare VALUES (1, 1)"
    )
    lab.publish("TABLE items, bare")
    pipeline = lab.synced()
    lab.execute("UPDATE items SET n = 10 WHERE id = 1; DELETE FROM items WHERE id = 2; TRUNCATE bare")
    lab.execute("INSERT INTO bare VALUES (NULL, NULL), (NULL, NULL), (2, 2), (2, 2)")
    lab.execute("UPDATE bare SET n = 3 WHERE ctid = '(0,1)'; DELETE FROM bare WHERE ctid = '(0,3)'")
    lab.caught_up(pipeline)
    assert_gives_the_source(pipeline, "items", "bare")
    with duckdb.connect(lab.path) as connection:
        connection.execute("UPDATE public.items SET n = 11 WHERE _etl_op = 'update'")
        connection.execute("DELETE FROM public.items WHERE _etl_op = 'delete'")
        connection.execute("DELETE FROM public.items WHERE id = 9")
        connection.execute("DELETE FROM public.bare WHERE _etl_op = 'delete'")
    found = {comparison.table.name: comparison for comparison in pipeline.verify()}
    assert [(one.missing, one.extra, one.changed) for one in (found["items"], found["bare"])] == [(1, 1, 1), (0, 1, 0)]


def test_the_documented_query_gives_the_rows_of_now(lab: Lab) -> None:
    query = Path("docs/write_modes.md").read_text().partition("```sql\n")[2].partition("```")[0]
    assert "FROM orders" in query
    lab.execute("CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders VALUES (0, 'gone')")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("TRUNCATE orders; INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 6) i")
    lab.execute(
        "BEGIN; UPDATE orders SET note = 'a' WHERE id = 1; UPDATE orders SET note = 'b' WHERE id = 1;"
        "DELETE FROM orders WHERE id = 2; UPDATE orders SET id = 7 WHERE id = 3; UPDATE orders SET id = 3 WHERE id = 4;"
        "DELETE FROM orders WHERE id = 5; INSERT INTO orders VALUES (5, 'again'); COMMIT"
    )
    lab.caught_up(pipeline)
    now = lab.execute("SELECT id, note FROM orders ORDER BY id")
    given = query.replace("FROM orders", "FROM public.orders").rstrip().removesuffix(";")
    assert lab.rows(f"SELECT id, note FROM ({given}) ORDER BY id") == now


def test_a_column_with_our_prefix_is_refused(lab: Lab) -> None:
    lab.execute('CREATE TABLE items (id int PRIMARY KEY, "_ETL_x" int)')
    lab.publish()
    with pytest.raises(ConfigError, match="has a column _ETL_x, and write_mode append adds columns"):
        lab.pipeline()
    lab.pipeline(tables=read_tables("tables", {"items": {"write_mode": "mirror"}}))
