"""Tables of write_mode history: the views have every version of each row, and the rows of now.

The oracle is PostgreSQL: triggers write a history table, and `SELECT` has the rows of now.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest
import sqlglot

from etl_core.config import BatchConfig, DestinationConfig
from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.testing.postgres import create_database
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab, Watched

PATIENCE = 300.0
NOTE = """
CREATE SCHEMA shadow;
CREATE TABLE shadow.changes (at bigserial PRIMARY KEY, tx xid8, name text);
CREATE TABLE shadow.versions (name text, id bigint, row jsonb, begun bigint, ended bigint);
CREATE INDEX ON shadow.versions (name, id) WHERE ended IS NULL;
CREATE FUNCTION shadow.note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE change bigint;
BEGIN
    INSERT INTO shadow.changes (tx, name) VALUES (pg_current_xact_id(), TG_TABLE_NAME) RETURNING at INTO change;
    IF TG_OP = 'TRUNCATE' THEN
        UPDATE shadow.versions SET ended = change WHERE name = TG_TABLE_NAME AND ended IS NULL;
    ELSIF TG_OP <> 'INSERT' THEN
        UPDATE shadow.versions SET ended = change WHERE name = TG_TABLE_NAME AND id = OLD.id AND ended IS NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO shadow.versions VALUES (TG_TABLE_NAME, NEW.id, to_jsonb(NEW), change);
    END IF;
    RETURN NULL;
END $$
"""
VERSIONS = """
SELECT v.row->'id', v.row->'n', v.row->>'note', v.row->>'big', begun.tx::text, begun.place, ended.tx::text
FROM shadow.versions AS v
LEFT JOIN places AS begun ON begun.at = v.begun LEFT JOIN places AS ended ON ended.at = v.ended
WHERE v.name = %s
"""
PLACES = "WITH places AS (SELECT *, row_number() OVER (PARTITION BY tx ORDER BY at) AS place FROM shadow.changes) "


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Every table has a history."""
    lab.config = replace(lab.config, write_mode=WriteMode.HISTORY)
    return lab


@pytest.fixture(params=["duckdb", "postgres", "snowflake"])
def anywhere(request: pytest.FixtureRequest, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The lab, into each product with such views; `rows` asks that."""
    if request.param == "duckdb":
        yield lab
        return
    warehouse = create_database(lab.database.server)
    options = {"dsn": warehouse.dsn, "staging": str(lab.path.with_name("staging"))}
    with contextlib.ExitStack() as stack:
        stack.callback(warehouse.drop)
        if request.param == "postgres":
            lab.config = replace(lab.config, destination=DestinationConfig("postgres", options))
            monkeypatch.setattr(lab, "rows", warehouse.execute)
        else:
            double = pytest.importorskip(
                "etl_core.testing.servers.snowflake_double", reason="pip install 'etl-dagster[snowflake]'"
            )
            lab.config = replace(lab.config, destination=DestinationConfig(f"{double.__name__}:DOUBLE", options))
            session = stack.enter_context(double.SnowflakeAccount(warehouse.dsn)).connect(True)
            monkeypatch.setattr(
                lab,
                "rows",
                lambda query: session.rows(sqlglot.transpile(query, "postgres", "snowflake", identify=True)[0]),
            )
        stack.callback(lab.close)
        yield lab


def shadow(lab: Lab, *tables: str) -> None:
    """Has the source write the history of the tables, from now on, and publishes them."""
    lab.execute(NOTE)
    for table in tables:
        lab.execute(
            f"INSERT INTO shadow.versions SELECT '{table}', id, to_jsonb(t) FROM {table} AS t;"
            f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION shadow.note();"
            f"CREATE TRIGGER note_all AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION shadow.note()"
        )
    lab.publish(f"TABLE {', '.join(tables)}")


def assert_shown(lab: Lab, *tables: str) -> None:
    """The versions are those of the source's history, with the commits' positions and times; and the rows are its."""
    logs = " UNION ".join(
        f"SELECT _etl_lsn, _etl_committed_at FROM public.{table} WHERE _etl_seq > 0" for table in tables
    )
    commits = lab.rows(f"SELECT DISTINCT * FROM ({logs}) ORDER BY 1")
    order = [tx for (tx,) in lab.execute("SELECT tx::text FROM shadow.changes GROUP BY tx ORDER BY min(at)")]
    assert len(order) == len(commits)
    transactions = dict(zip(order, commits, strict=True))
    for table in tables:
        [(first, snapshot)] = lab.rows(
            f"SELECT _etl_lsn, _etl_committed_at FROM public.{table} WHERE _etl_seq = 0 ORDER BY 1 LIMIT 1"
        )
        expected: Counter[tuple[Any, ...]] = Counter()
        for *row, begun, place, ended in lab.execute(PLACES + VERSIONS, [table]):
            start, since = (first, snapshot) if begun is None else transactions[begun]
            until = None if ended is None else transactions[ended][1]
            expected[(*row, since, until, start, place or 0)] += 1
        found = Counter(lab.rows(f"SELECT * FROM public.{table}_history"))
        assert found == expected
        now = lab.rows(f"SELECT * FROM public.{table}_current ORDER BY id")
        assert now == lab.execute(f"SELECT * FROM {table} ORDER BY id")


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


def assert_proven(pipeline: Watched, *tables: str) -> None:
    """`verify` compares every value of the rows of now."""
    found = {comparison.table.name: comparison for comparison in pipeline.verify()}
    assert {name: (one.is_equal, one.problem) for name, one in found.items()} == dict.fromkeys(tables, (True, None))
    assert all(one.is_of_view and not one.uncompared for one in found.values())


def test_random_changes(anywhere: Lab, churn: Callable[..., Churn], churned: Callable[..., None]) -> None:
    """Unchanged TOAST, also of rows that move; keys that come again; truncations; a copy while nothing changes."""
    lab = anywhere
    batches, tables = 8, ("a", "b", "c")
    churned(*tables, rows=60)
    lab.execute(
        "ALTER TABLE b REPLICA IDENTITY FULL;"
        "CREATE UNIQUE INDEX c_id ON c (id); ALTER TABLE c REPLICA IDENTITY USING INDEX c_id"
    )
    shadow(lab, *tables)
    pipeline = lab.synced(batch=BatchConfig(max_age=0.2, max_bytes=20_000))
    writer = churn(*tables, seed=batches, keys=80)
    for at in range(batches):
        change(lab, writer, 160 // batches // 2)
        if at % 3 == 0:
            table = tables[at % 3]
            lab.execute(
                f"BEGIN; DELETE FROM b WHERE id % 7 = 1; UPDATE a SET id = 1000 + id WHERE id % 5 = 1;"
                " UPDATE a SET id = 2000 + id, n = -1 WHERE id BETWEEN 1000 AND 1010; UPDATE a SET note = NULL;"
                f"TRUNCATE {table}; INSERT INTO {table} SELECT i, i, 'again', repeat('w', 3000)"
                f" FROM generate_series(1, 20) i; UPDATE {table} SET n = 7; UPDATE {table} SET id = 500 + id; COMMIT"
            )
        change(lab, writer, 160 // batches // 2)
        lab.caught_up(pipeline)
        if at == 4:
            pipeline.resync(TableName("public", "a"))
            pipeline = copied_again(lab)
    assert_shown(lab, *tables)
    assert_proven(pipeline, *tables)


def test_killed_while_it_streams(lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None]) -> None:
    churned("a", "b", rows=60)
    shadow(lab, "a", "b")
    lab.synced()
    with churn("a", "b", keys=80):
        for failpoint in (failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN):
            assert lab.process("run", failpoint=f"{failpoint}:kill:2").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    lab.caught_up(pipeline)
    assert_shown(lab, "a", "b")
    assert_proven(pipeline, "a", "b")


def test_killed_while_it_is_copied_again(lab: Lab) -> None:
    """What did not change meanwhile goes on, through as many copies as there are."""
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, n int, note text, big text); INSERT INTO items VALUES (1, 1)")
    shadow(lab, "items")
    pipeline = lab.synced()
    lab.execute("INSERT INTO items VALUES (2, 2); UPDATE items SET id = 3 WHERE id = 1; DELETE FROM items WHERE id = 2")
    lab.caught_up(pipeline)
    pipeline.resync(TableName("public", "items"))
    for failpoint in (failpoints.COPY_PUBLISHED, failpoints.COPY_STAGED):
        assert lab.process("run", failpoint=f"{failpoint}:kill:1").wait(PATIENCE) == -signal.SIGKILL
    copied_again(lab)
    lab.execute("INSERT INTO items VALUES (4, 4); UPDATE items SET note = 'x'")
    lab.caught_up(lab.pipeline())
    assert_shown(lab, "items")


def test_columns_and_names_change(lab: Lab) -> None:
    """The views follow in the same transaction; a person's view of them stays, and disturbs nobody."""
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, a int, b varchar(5), big text);"
        "CREATE TABLE others (id int PRIMARY KEY);"
        "ALTER TABLE items ALTER big SET STORAGE EXTERNAL; INSERT INTO others VALUES (9);"
        "INSERT INTO items SELECT i, i, 'b' || i, repeat('x', 3000) FROM generate_series(1, 2) i"
    )
    lab.publish()
    pipeline = lab.synced()
    with duckdb.connect(lab.path) as connection:
        connection.execute("CREATE VIEW public.mine AS SELECT a, b FROM public.items_current")
    lab.execute("UPDATE items SET a = 10 WHERE id = 1")
    lab.execute("ALTER TABLE items RENAME big TO large; ALTER TABLE items ALTER b TYPE text; ALTER TABLE items DROP a")
    lab.execute("ALTER TABLE items ADD c int DEFAULT 7; UPDATE items SET b = 'longer' WHERE id = 1")
    lab.execute("ALTER TABLE items RENAME TO things; ALTER TABLE others RENAME TO items; INSERT INTO items VALUES (8)")
    lab.execute("UPDATE things SET id = 3 WHERE id = 2")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    versions = "SELECT id, b, large, c, _etl_valid_to IS NULL FROM public.things_history ORDER BY _etl_lsn, id"
    text = "x" * 3000
    before = [
        (1, "b1", text, 7, False),
        (2, "b2", text, 7, False),
        (1, "b1", text, 7, False),
        (1, "longer", text, 7, True),
        (3, "b2", text, 7, True),
    ]
    assert lab.rows(versions) == before
    assert lab.rows("SELECT * FROM public.items_current ORDER BY ALL") == [(8,), (9,)]
    views = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1"
    names = ["items_current", "items_history", "mine", "things_current", "things_history"]
    assert [name for (name,) in lab.rows(views)] == names
    assert_proven(pipeline, "things", "items")
    # Written anew at the source: a copied row that differs, here by its new column, begins a version.
    lab.execute("ALTER TABLE things ADD d text DEFAULT (random() < 2)::text; DELETE FROM things WHERE id = 3")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    moments = "SELECT DISTINCT _etl_committed_at FROM public.things WHERE _etl_op = 'copy' ORDER BY 1"
    [_, (copied,)] = lab.rows(moments)
    last = "SELECT id, d, _etl_valid_from, _etl_valid_to FROM public.things_history ORDER BY _etl_lsn DESC, id LIMIT 3"
    [(_, _, moved, ended), _] = [row[:4] for row in lab.rows(last)][1:]
    assert (lab.rows(last)[0], ended) == ((1, "true", copied, None), copied)
    assert moved < copied
    assert_proven(pipeline, "things", "items")


def test_another_mode_and_what_verify_finds(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 1), (2, 2)")
    lab.publish()
    pipeline = lab.synced(write_mode=WriteMode.APPEND)
    lab.execute("UPDATE items SET n = 3 WHERE id = 1")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    said = "public.items is copied again: its write_mode was changed from append to history"
    assert str(pipeline.observer.errors["items"]) == said
    assert lab.rows("SELECT id, n, _etl_valid_to IS NULL FROM public.items_history ORDER BY ALL") == [
        (1, 1, False),
        (1, 3, True),
        (2, 2, True),
    ]
    documented = Path("docs/write_modes.md").read_text().partition("## history")[2].partition("```sql\n")[2]
    then, one = documented.partition("```")[0].replace("orders_history", "public.items_history").split(";")[:2]
    assert len(lab.rows(then.replace("2026-03-01", "infinity"))) == 2
    assert [row[:2] for row in lab.rows(one.replace("id = 7", "id = 1"))] == [(1, 1), (1, 3)]
    with duckdb.connect(lab.path) as connection:
        connection.execute("UPDATE public.items SET n = 4 WHERE _etl_op = 'copy' AND id = 1")
        connection.execute("DELETE FROM public.items WHERE id = 2")
    [found] = pipeline.verify()
    assert (found.missing, found.changed, found.is_of_view) == (1, 1, True)
    with duckdb.connect(lab.path) as connection:
        connection.execute("DROP VIEW public.items_current")
    [found] = pipeline.verify()
    assert found.problem is not None
    assert "items is not as this pipeline left it" in found.problem
    copied_again(lab, write_mode=WriteMode.MIRROR)
    assert lab.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal") == []
    assert lab.rows("SELECT * FROM public.items ORDER BY id") == [(1, 3), (2, 2)]


def test_what_cannot_be_is_refused_with_a_sentence(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE bare (n int)")
    lab.execute("ALTER TABLE bare REPLICA IDENTITY FULL")
    lab.publish()
    with pytest.raises(ConfigError, match=r"public\.bare has no key, and write_mode history tells the versions"):
        lab.pipeline()
    lab.config = replace(lab.config, tables=read_tables("tables", {"bare": {"write_mode": "append"}}))
    lab.execute("CREATE TABLE items_history (id int PRIMARY KEY)")
    with pytest.raises(ConfigError, match=r"has a view called public\.items_history, and a table is called so"):
        lab.pipeline()
    lab.execute("DROP TABLE items_history")
    with duckdb.connect(lab.path) as connection:
        connection.execute("CREATE SCHEMA public; CREATE TABLE public.items_current (mine int)")
    [failed] = [outcome for outcome in lab.pipeline().sync() if isinstance(outcome, EtlError)]
    assert str(failed) == (
        "public.items with write_mode history needs a view called public.items_current, which exists in DuckDB and was"
        " not made for it"
    )
    with duckdb.connect(lab.path) as connection:
        connection.execute("DROP TABLE public.items_current")
    copied_again(lab)
    lab.execute("CREATE TABLE items_history (id int PRIMARY KEY)")
    [failed] = [outcome for outcome in lab.pipeline().sync() if isinstance(outcome, EtlError)]
    assert str(failed).startswith("public.items_history is the name of a view in DuckDB, which shows the versions of")


def test_rows_whose_keys_are_not_carried_tell_no_versions(lab: Lab) -> None:
    """The new copy hides the key, or has it in another type: older rows cannot be told apart any more."""
    lab.execute("CREATE TABLE typed (id uuid PRIMARY KEY, n int); CREATE TABLE hidden (id int PRIMARY KEY, n int)")
    lab.execute("INSERT INTO typed SELECT md5(i::text)::uuid, i FROM generate_series(1, 3) i")
    lab.execute("INSERT INTO hidden SELECT i, i FROM generate_series(1, 3) i")
    lab.publish()
    lab.config = replace(lab.config, hash_key="k" * 32)
    pipeline = lab.synced()
    for table in ("typed", "hidden"):
        lab.execute(f"UPDATE {table} SET n = n + 10 WHERE n < 3; DELETE FROM {table} WHERE n = 3")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT count(*) FROM public.typed_history") == [(5,)]
    pipeline.close()
    lab.execute("ALTER TABLE typed ALTER id TYPE text")
    lab.config = replace(lab.config, tables=read_tables("tables", {"hidden": {"columns": {"hash": ["id"]}}}))
    again = lab.pipeline()
    lab.execute("UPDATE typed SET n = 100 WHERE n = 11")
    for _ in range(2):
        lab.caught_up(again)
        again.stop.clear()
        assert not [outcome for outcome in again.sync() if isinstance(outcome, EtlError)]
    lab.caught_up(again)
    assert all(one.is_equal for one in again.verify())
    for table in ("typed", "hidden"):
        versions = lab.rows(f"SELECT n, _etl_valid_to FROM public.{table}_history ORDER BY n")
        assert versions == [(n, None) for (n,) in lab.execute(f"SELECT n FROM {table} ORDER BY n")], table
        assert lab.rows(f"SELECT count(*) > 5 FROM public.{table}") == [(True,)], "the log stays"
