"""Tables of write_mode soft_delete: what the source deleted stays, with its last values and the moment of its commit.

The oracle is PostgreSQL: triggers keep a shadow of each table in which deleted rows stay.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest

from etl_core.config import BatchConfig
from etl_core.config_tables import read_tables
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.schema.table import TableSchema
from etl_core.shape.keyed_hash import HashKey
from etl_core.state.table_state import TableState
from etl_core.testing.scripted_destination import ScriptedCopy, ScriptedDestination
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab, Watched

PATIENCE = 120.0
HASH_KEY = "a key that is long enough"
NOTE = """
CREATE SCHEMA shadow;
CREATE FUNCTION shadow.note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE kept text := format('shadow.%I', TG_TABLE_NAME);
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('UPDATE %s SET gone = clock_timestamp() WHERE gone IS NULL', kept);
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id <> NEW.id) THEN
        EXECUTE format('UPDATE %s SET gone = clock_timestamp() WHERE id = $1', kept) USING OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        EXECUTE format('DELETE FROM %s WHERE id = $1', kept) USING NEW.id;
        EXECUTE format('INSERT INTO %s SELECT ($1).*, NULL', kept) USING NEW;
    END IF;
    RETURN NULL;
END $$
"""


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Every table keeps its deleted rows."""
    lab.config = replace(lab.config, write_mode=WriteMode.SOFT_DELETE)
    return lab


def shadow(lab: Lab, *tables: str) -> None:
    """Has the source keep a shadow of the tables, and publishes them."""
    lab.execute(NOTE)
    for table in tables:
        lab.execute(
            f"CREATE TABLE shadow.{table} AS SELECT *, NULL::timestamptz AS gone FROM {table};"
            f"CREATE INDEX ON shadow.{table} (id);"
            f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION shadow.note();"
            f"CREATE TRIGGER note_all AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION shadow.note()"
        )
    lab.publish(f"TABLE {', '.join(tables)}")


def assert_shadowed(lab: Lab, pipeline: Watched, *tables: str) -> None:
    """The same rows as the shadow's, living or not; none deleted before the trigger saw it, nor after now."""
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    now = lab.execute("SELECT clock_timestamp()")[0][0]
    for table in tables:
        expected = {row[0]: row[1:] for row in lab.execute(f"SELECT id, n, note, big, gone FROM shadow.{table}")}
        query = f"SELECT id, n, note, big, _etl_deleted_at FROM public.{table}"
        rows = lab.rows(query)
        found = {row[0]: row[1:] for row in rows}
        assert len(rows) == len(found), "a key is there twice"
        plain = [{key: (*row[:-1], row[-1] is None) for key, row in side.items()} for side in (found, expected)]
        assert plain[0] == plain[1]
        for key, row in expected.items():
            assert row[-1] is None or row[-1] <= found[key][-1] <= now


def change(lab: Lab, churn: Churn, times: int) -> None:
    """So many of the churn's transactions, in this thread: the same statements in every run."""
    with psycopg.connect(lab.database.dsn) as connection:
        for _ in range(times):
            churn._transaction(connection)


def deleted_at(lab: Lab, table: str = "items") -> dict[int, datetime | None]:
    rows = lab.rows(f"SELECT id, _etl_deleted_at FROM public.{table}")
    return {key: None if at is None else at.astimezone(UTC) for key, at in rows}


def copied_again(lab: Lab, **changes: Any) -> Watched:
    """A new copy of every table, and the stream behind it."""
    pipeline = lab.pipeline(**changes)
    assert [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)] == []
    lab.caught_up(pipeline)
    return pipeline


# --- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 20])
@pytest.mark.parametrize("max_bytes", [16 << 20, 20_000])
def test_random_changes_keep_what_was_deleted(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], batches: int, max_bytes: int
) -> None:
    """Unchanged TOAST, moved and repeated keys, truncations; all in one batch or in many, in memory or spooled."""
    tables = ("a", "b", "c")
    churned(*tables, rows=60)
    lab.execute(
        "ALTER TABLE b REPLICA IDENTITY FULL;"
        "CREATE UNIQUE INDEX c_id ON c (id); ALTER TABLE c REPLICA IDENTITY USING INDEX c_id"
    )
    shadow(lab, *tables)
    pipeline = lab.synced(batch=BatchConfig(max_age=0.2, max_bytes=max_bytes))
    writer = churn(*tables, seed=batches, keys=80)
    for at in range(batches):
        change(lab, writer, 240 // batches // 2)
        if at % 3 == 0:
            lab.execute(
                f"BEGIN; DELETE FROM a WHERE id % 7 = 1; TRUNCATE {'a, b' if at % 2 else 'c'};"
                "INSERT INTO a SELECT i, i, 'again', repeat('w', 3000) FROM generate_series(1, 20) i"
                " ON CONFLICT DO NOTHING; DELETE FROM a WHERE id < 4; COMMIT"
            )
        change(lab, writer, 240 // batches // 2)
        lab.caught_up(pipeline)
    assert_shadowed(lab, pipeline, *tables)


def test_the_moment_is_that_of_the_commit(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text);"
        "INSERT INTO items SELECT i, 'n' FROM generate_series(1, 6) i"
    )
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as first, lab.connect() as second:
        first.execute("DELETE FROM items WHERE id IN (1, 2)")
        second.execute("UPDATE items SET note = 'last' WHERE id = 3")
        second.execute("DELETE FROM items WHERE id = 3")
        second.execute("INSERT INTO items VALUES (7, 'came and went')")
        second.execute("DELETE FROM items WHERE id = 7")
        second.execute("UPDATE items SET id = 8 WHERE id = 4")
        second.commit()
        between = lab.execute("SELECT clock_timestamp()")[0][0]
        first.execute("DELETE FROM items WHERE id = 5")
        first.commit()
    lab.execute("INSERT INTO items VALUES (1, 'lives again')")
    lab.caught_up(pipeline)
    rows = lab.rows("SELECT id, note, _etl_deleted_at IS NULL FROM public.items ORDER BY id")
    assert rows == [
        (1, "lives again", True),
        (2, "n", False),
        (3, "last", False),
        (4, "n", False),
        (5, "n", False),
        (6, "n", True),
        (7, "came and went", False),
        (8, "n", True),
    ]
    found = deleted_at(lab)
    assert found[3] == found[7] == found[4]
    assert found[2] == found[5]
    assert found[3] is not None
    assert found[2] is not None
    assert found[3] < between < found[2]


def test_only_keys(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE items (id int, part int, PRIMARY KEY (id, part)); INSERT INTO items VALUES (1, 1), (2, 1)"
    )
    lab.publish()
    pipeline = lab.synced()
    lab.execute("DELETE FROM items WHERE id = 1; INSERT INTO items VALUES (3, 1); DELETE FROM items WHERE id = 3")
    lab.caught_up(pipeline)
    found = lab.rows("SELECT id, part, _etl_deleted_at IS NULL FROM public.items ORDER BY id")
    assert found == [(1, 1, False), (2, 1, True), (3, 1, False)]


def test_with_columns_that_are_hidden(lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None]) -> None:
    """The living rows are verified; deleted ones have the hashes of what they were."""
    churned("a", "b", "c", rows=60)
    shadow(lab, "a", "b", "c")
    columns = {
        "public.a": {"columns": {"hash": ["id"], "exclude": ["big"]}},
        "public.b": {"columns": {"exclude": ["n", "note", "big"], "rename": {"id": "key"}}},
        "public.c": {"columns": {"exclude": ["big"]}},
    }
    pipeline = lab.synced(tables=read_tables("tables", columns), hash_key=HASH_KEY)
    lab.execute("UPDATE c SET id = 1000 + id WHERE id % 10 = 1")  # the TOASTed values stay
    lab.caught_up(pipeline)
    change(lab, churn("a", "b", "c", keys=80), 200)
    lab.caught_up(pipeline)
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    hashed = HashKey.of(HASH_KEY)
    kept = lab.execute("SELECT id, n, note, gone IS NULL FROM shadow.a")
    assert any(not lives for *_, lives in kept)
    expected = Counter((hashed.hash_text(str(key).encode()), *row) for key, *row in kept)
    assert Counter(lab.rows("SELECT id, n, note, _etl_deleted_at IS NULL FROM public.a")) == expected
    expected = Counter(lab.execute("SELECT id, gone IS NULL FROM shadow.b"))
    assert Counter(lab.rows("SELECT key, _etl_deleted_at IS NULL FROM public.b")) == expected
    expected = Counter(lab.execute("SELECT id, n, note, gone IS NULL FROM shadow.c"))
    assert Counter(lab.rows("SELECT id, n, note, _etl_deleted_at IS NULL FROM public.c")) == expected


# --- a new copy ------------------------------------------------------------------------------------------------------


def test_a_new_copy_keeps_what_was_deleted(lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None]) -> None:
    churned("a", rows=60)
    shadow(lab, "a")
    pipeline = lab.synced()
    writer = churn("a", keys=80)
    for _ in range(3):
        change(lab, writer, 60)
        lab.caught_up(pipeline)
        pipeline.resync(TableName("public", "a"))
        lab.execute("DELETE FROM a WHERE id % 10 = 3")  # nobody streams it: the copy finds out
        pipeline = copied_again(lab)
        assert_shadowed(lab, pipeline, "a")


@pytest.mark.parametrize("failpoint", [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.COPY_FINISHED])
def test_killed_while_it_is_copied_again(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", rows=60)
    shadow(lab, "a")
    pipeline = lab.synced()
    change(lab, churn("a", keys=80), 60)
    lab.caught_up(pipeline)
    pipeline.resync(TableName("public", "a"))
    lab.execute("DELETE FROM a WHERE id % 10 = 3")
    for _ in range(2):
        assert lab.process("run", failpoint=f"{failpoint}:kill:1").wait(PATIENCE) == -signal.SIGKILL
        if failpoint == failpoints.COPY_FINISHED:
            break  # the next process does not copy it again
    assert_shadowed(lab, copied_again(lab), "a")


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
    assert_shadowed(lab, pipeline, "a", "b")


def test_a_copy_that_is_caught_up_keeps_what_is_deleted_meanwhile(lab: Lab) -> None:
    """The stream passes the snapshot while the copy is held: the catch-up brings the deletes."""
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, n int, note text, big text)")
    lab.execute("INSERT INTO items SELECT i, i, 'n', repeat('x', 3000) FROM generate_series(1, 50) i")
    lab.execute("ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE others (id int PRIMARY KEY)")
    shadow(lab, "items")
    lab.execute("ALTER PUBLICATION lab_pub ADD TABLE others")
    pipeline = lab.synced()
    pipeline.resync(TableName("public", "items"))

    def passed() -> None:
        lab.execute("DELETE FROM items WHERE id % 5 = 0; UPDATE items SET n = -1 WHERE id % 5 = 1")
        lab.execute("UPDATE items SET id = 1000 + id WHERE id % 5 = 2; INSERT INTO others VALUES (1)")
        with contextlib.ExitStack() as stack:
            streaming = lab.pipeline()
            stack.callback(streaming.close)
            streaming.stream(until=streaming.current_lsn())

    copying = lab.pipeline()
    with failpoints.activated(failpoints.COPY_STAGED, passed):
        assert [outcome for outcome in copying.sync() if isinstance(outcome, EtlError)] == []
    lab.execute("DELETE FROM items WHERE id % 5 = 3")
    lab.caught_up(copying)
    assert_shadowed(lab, copying, "items")


# --- schema changes --------------------------------------------------------------------------------------------------


def test_columns_change_under_deleted_rows(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, a int, b varchar(5), c text);"
        "INSERT INTO items SELECT i, i, 'b' || i, 'c' FROM generate_series(1, 4) i"
    )
    lab.publish()
    pipeline = lab.synced()
    lab.execute("DELETE FROM items WHERE id = 1")
    lab.execute("ALTER TABLE items RENAME a TO aa; ALTER TABLE items ALTER b TYPE text; ALTER TABLE items DROP c")
    lab.execute("ALTER TABLE items ADD d int DEFAULT 7; DELETE FROM items WHERE id = 2")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    gone = lab.rows("SELECT id, aa, b, d FROM public.items WHERE _etl_deleted_at IS NOT NULL ORDER BY id")
    assert gone == [(1, 1, "b1", 7), (2, 2, "b2", 7)]
    # Written anew at the source: the table is copied again, with what is deleted in it.
    lab.execute("ALTER TABLE items ALTER aa TYPE bigint; ALTER TABLE items ADD e int DEFAULT (random() * 9)::int")
    lab.execute("DELETE FROM items WHERE id = 3")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    gone = lab.rows("SELECT id, aa, b, d, e FROM public.items WHERE _etl_deleted_at IS NOT NULL ORDER BY id")
    assert gone == [(1, 1, "b1", 7, None), (2, 2, "b2", 7, None), (3, 3, "b3", 7, None)]


def test_another_key_has_it_copied_again(lab: Lab) -> None:
    """By the new key a deleted row may be one that lives."""
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, code int NOT NULL UNIQUE, note text);"
        "INSERT INTO items VALUES (1, 10, 'a'), (2, 20, 'b'), (3, 30, 'c')"
    )
    lab.publish()
    pipeline = lab.synced()
    lab.execute("DELETE FROM items WHERE id IN (1, 2); INSERT INTO items VALUES (4, 10, 'd')")
    lab.caught_up(pipeline)
    lab.execute("ALTER TABLE items DROP CONSTRAINT items_pkey; ALTER TABLE items ADD PRIMARY KEY (code)")
    lab.execute("UPDATE items SET note = 'dd' WHERE id = 4")
    lab.caught_up(pipeline)
    pipeline = copied_again(lab)
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    found = lab.rows("SELECT id, code, note, _etl_deleted_at IS NULL FROM public.items ORDER BY code")
    assert found == [(4, 10, "dd", True), (2, 20, "b", False), (3, 30, "c", True)]


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_changed_mode_has_the_table_copied_again_and_says_so(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, email text); INSERT INTO items VALUES (1, 'ada'), (2, 'bob')")
    lab.publish()
    keeping = {"tables": read_tables("tables", {"public.items": {"write_mode": "soft_delete"}})}
    lab.config = replace(lab.config, write_mode=WriteMode.MIRROR)
    lab.synced()
    lab.execute("DELETE FROM items WHERE id = 1")
    pipeline = copied_again(lab, **keeping)
    said = "public.items is copied again: its write_mode was changed from mirror to soft_delete"
    assert str(pipeline.observer.errors["items"]) == said
    lab.execute("DELETE FROM items WHERE id = 2; INSERT INTO items VALUES (3, 'eve')")
    lab.caught_up(pipeline)
    found = lab.rows("SELECT id, email, _etl_deleted_at IS NULL FROM public.items ORDER BY id")
    assert found == [(1, "ada", False), (2, "bob", False), (3, "eve", True)]

    hidden = {"public.items": {"write_mode": "soft_delete", "columns": {"mask": ["email"]}}}
    copied_again(lab, tables=read_tables("tables", hidden))  # what was shown is not left in deleted rows
    assert lab.rows("SELECT id, email FROM public.items ORDER BY id") == [(1, None), (2, None), (3, "***")]

    mirror = copied_again(lab)
    said = "its write_mode was changed from soft_delete to mirror, which removes its deleted rows"
    assert said in str(mirror.observer.errors["items"])
    assert lab.rows("SELECT * FROM public.items") == [(3, "eve")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("id int PRIMARY KEY, _etl_deleted_at date", "public.items has a column _etl_deleted_at, and write_mode"),
        ("id int", "public.items has no key, and write_mode soft_delete finds deleted rows by it"),
    ],
)
def test_a_table_that_cannot_keep_its_rows_is_refused_at_the_start(lab: Lab, columns: str, said: str) -> None:
    lab.execute(f"CREATE TABLE items ({columns})")
    lab.publish()
    with pytest.raises(ConfigError, match=said) as caught:
        lab.pipeline()
    assert caught.value.field == "write_mode"
    settings = read_tables("tables", {"items": {"write_mode": "mirror"}})
    assert lab.synced(tables=settings).find(TableName("public", "items")).state is TableState.READY


def test_a_column_of_that_name_that_comes_later_stops_its_table(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE others (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced()
    lab.execute(
        "ALTER TABLE items ADD _etl_deleted_at date; INSERT INTO items VALUES (1); INSERT INTO others VALUES (1)"
    )
    lab.caught_up(pipeline)
    assert "public.items has a column _etl_deleted_at" in str(pipeline.observer.errors["items"])
    assert Counter(lab.rows("SELECT id FROM public.others")) == Counter([(1,)])


def test_a_column_of_that_name_is_refused_whatever_the_settings_make_of_it(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, _etl_deleted_at timestamptz)")
    lab.publish()
    for columns in ({"exclude": ["_etl_deleted_at"]}, {"rename": {"_etl_deleted_at": "gone"}}):
        with pytest.raises(ConfigError, match=r"public.items has a column _etl_deleted_at") as caught:
            lab.pipeline(tables=read_tables("tables", {"items": {"columns": columns}}))
        assert "rename the column at the source" in str(caught.value.hint)


class _Mirrors(ScriptedDestination):
    """A destination of another package that cannot keep deleted rows, and did not say so."""

    def copy(self, schema: TableSchema) -> Any:
        return _MirrorCopy(super().copy(schema))


class _MirrorCopy:
    def __init__(self, inner: ScriptedCopy) -> None:
        self.write = inner.write
        self.publish = inner.publish
        self._inner = inner

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._inner.__exit__(*raised)


def test_a_destination_that_cannot_keep_them_is_told_before_anything_is_staged(lab: Lab) -> None:
    lab.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)")
    lab.publish()
    destination = _Mirrors(DuckDBDestination(lab.path, lab.config.pipeline))
    pipeline = lab.pipeline(destination=destination)
    pipeline.sync()
    assert "this destination cannot keep deleted rows" in str(pipeline.observer.errors["items"])
    assert (destination.calls("copy"), destination.calls("copy.write"), destination.calls("copy.publish")) == (1, 0, 0)


def test_a_renamed_table_whose_old_name_the_settings_have_stops(lab: Lab) -> None:
    """By the pipeline's mode it would be a mirror, and its deleted rows be removed."""
    lab.config = replace(lab.config, write_mode=WriteMode.MIRROR)
    lab.execute("CREATE TABLE items (id int PRIMARY KEY, note text); INSERT INTO items VALUES (1, 'a'), (2, 'b')")
    lab.publish()
    by_old, by_new = (
        read_tables("tables", {name: {"write_mode": "soft_delete"}}) for name in ("public.items", "public.things")
    )
    pipeline = lab.synced(tables=by_old)
    lab.execute("DELETE FROM items WHERE id = 1")
    lab.caught_up(pipeline)
    lab.execute("ALTER TABLE items RENAME TO things; INSERT INTO things VALUES (3, 'c')")
    lab.caught_up(pipeline)
    pipeline.sync()
    said = "public.items was renamed to public.things, and the settings have write_mode soft_delete for its old name"
    assert any(said in str(error) for error in pipeline.observer.errors.values())
    pipeline.close()
    for name in ("items", "things"):
        with contextlib.suppress(EtlError):
            lab.pipeline().resync(TableName("public", name))
    copied_again(lab, tables=by_new)
    found = lab.rows("SELECT id, note, _etl_deleted_at IS NULL FROM public.things ORDER BY id")
    assert found == [(1, "a", False), (2, "b", True), (3, "c", True)]
