"""Tables altered while they stream: carried forward exactly, or that table alone is copied again and says why.

Every test alters many tables at once, one per kind of change, so that each also shows that the others are left alone.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import pytest

from etl_core.errors import COPIED_AGAIN, CopiedAgain, UnsupportedType
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from tests.unknown_type import CREATE_THING

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

Cases: TypeAlias = Mapping[str, Sequence[str]]

NEW_ROW = "INSERT INTO {t} (id, a) VALUES (10, 10); UPDATE {t} SET a = 20 WHERE id = 2"
"""After it the stream knows the table's columns."""

CARRIED: Cases = {
    "nullable": [
        "ALTER TABLE {t} ADD c int",
        "INSERT INTO {t} VALUES (9, 9, '9', 9); UPDATE {t} SET c = 7 WHERE id = 1",
    ],
    "constant": [
        "ALTER TABLE {t} ADD c text NOT NULL DEFAULT 'it''s {{}} \"äß\" \\', ADD d numeric(12, 3) DEFAULT -1.5,"
        " ADD e int[] DEFAULT '{{1,NULL,3}}', ADD f jsonb DEFAULT '{{\"k\": [1, null]}}',"
        " ADD g bytea DEFAULT '\\x00ff',"
        " ADD h timestamptz DEFAULT '2020-02-29 12:00:00.000001+05', ADD i boolean DEFAULT true, ADD j text DEFAULT ''",
        NEW_ROW,
    ],
    "one_for_all_rows": ["ALTER TABLE {t} ADD c timestamptz NOT NULL DEFAULT now()", NEW_ROW],
    "default_changed": ["ALTER TABLE {t} ADD c int DEFAULT 1", "ALTER TABLE {t} ALTER c SET DEFAULT 2", NEW_ROW],
    "default_dropped": ["ALTER TABLE {t} ADD c int DEFAULT 1", "ALTER TABLE {t} ALTER c DROP DEFAULT", NEW_ROW],
    "two_steps": [
        "ALTER TABLE {t} ADD c int DEFAULT 3",
        NEW_ROW,
        "ALTER TABLE {t} ADD d text",
        "DELETE FROM {t} WHERE id = 10",
    ],
    "dropped": ["ALTER TABLE {t} DROP a", "UPDATE {t} SET b = 'after' WHERE id = 1"],
    "dropped_first": ["UPDATE {t} SET b = 'before'", "ALTER TABLE {t} DROP a", "INSERT INTO {t} VALUES (9, 'nine')"],
    "other_type": [
        "ALTER TABLE {t} DROP b, ADD b bigint",
        "INSERT INTO {t} VALUES (9, 9, 9); UPDATE {t} SET b = 2 WHERE id = 2",
    ],
    "in_one_transaction": [
        "BEGIN; UPDATE {t} SET a = a + 1; ALTER TABLE {t} ADD c int DEFAULT 5; UPDATE {t} SET c = 6 WHERE id = 1;"
        "INSERT INTO {t} VALUES (9, 9, 'nine', 9); ALTER TABLE {t} DROP b; DELETE FROM {t} WHERE id = 2;"
        "INSERT INTO {t} VALUES (2, 2, 2); COMMIT"
    ],
    "rolled_back": [
        "BEGIN; UPDATE {t} SET a = a + 1; SAVEPOINT s; ALTER TABLE {t} ADD c int DEFAULT 5; UPDATE {t} SET c = 6;"
        "ROLLBACK TO s; INSERT INTO {t} VALUES (9, 9, 'nine'); COMMIT",
        "BEGIN; ALTER TABLE {t} DROP a; INSERT INTO {t} VALUES (8, 'eight'); ROLLBACK",
        NEW_ROW,
    ],
    "truncated": [
        "BEGIN; TRUNCATE {t}; ALTER TABLE {t} ADD c int DEFAULT 5; INSERT INTO {t} VALUES (1, 1, 'one'); COMMIT"
    ],
    "nullability": ["ALTER TABLE {t} ALTER b SET DEFAULT '', ALTER b SET NOT NULL", NEW_ROW],
    "renamed_column": ["ALTER TABLE {t} RENAME b TO c", NEW_ROW],
    "renamed_twice": [
        "ALTER TABLE {t} RENAME b TO c; INSERT INTO {t} VALUES (8, 8, 'eight')",
        "ALTER TABLE {t} RENAME c TO d; ALTER TABLE {t} RENAME a TO c; UPDATE {t} SET c = 80 WHERE id = 8",
    ],
    "renamed_key": ["ALTER TABLE {t} RENAME id TO uid", "UPDATE {t} SET a = 5; DELETE FROM {t} WHERE uid = 2"],
    "swapped_names": [
        "ALTER TABLE {t} ADD d text; UPDATE {t} SET d = 'd' || id",
        "INSERT INTO {t} VALUES (8, 8, 'eight', 'd8')",
        "ALTER TABLE {t} RENAME b TO x; ALTER TABLE {t} RENAME d TO b; ALTER TABLE {t} RENAME x TO d",
        "INSERT INTO {t} VALUES (9, 9, 'is d', 'is b'); UPDATE {t} SET b = 'b' WHERE id = 8",
    ],
    "renamed_in_a_transaction": [
        "BEGIN; UPDATE {t} SET a = 7 WHERE id = 1; ALTER TABLE {t} RENAME b TO c; INSERT INTO {t} VALUES (8, 8, 'x');"
        "UPDATE {t} SET id = 31 WHERE id = 3; ALTER TABLE {t} RENAME a TO b; DELETE FROM {t} WHERE id = 2;"
        "UPDATE {t} SET c = 'c' WHERE b = 7; COMMIT"
    ],
    "longer": [
        "ALTER TABLE {t} ADD c varchar(5) DEFAULT 'five'; UPDATE {t} SET c = 'six' WHERE id = 1",
        "ALTER TABLE {t} ALTER c TYPE varchar(50)",
        "UPDATE {t} SET c = 'much longer' WHERE id = 2",
        "ALTER TABLE {t} ALTER c TYPE text",
        NEW_ROW,
    ],
    "more_digits": [
        "ALTER TABLE {t} ADD c numeric(6, 2) DEFAULT 1.50; UPDATE {t} SET c = 1234.56 WHERE id = 1",
        "ALTER TABLE {t} ALTER c TYPE numeric(12, 2)",
        "UPDATE {t} SET c = 1234567890.12 WHERE id = 2",
    ],
    "new_key": [
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ALTER a SET NOT NULL, ADD PRIMARY KEY (a)",
        "INSERT INTO {t} (id, a) VALUES (1, 10); UPDATE {t} SET b = 'two' WHERE a = 2; DELETE FROM {t} WHERE a = 3;"
        "UPDATE {t} SET a = 20 WHERE a = 2",
    ],
    "key_by_an_index": [
        "ALTER TABLE {t} ALTER b SET NOT NULL; CREATE UNIQUE INDEX ON {t} (b); ALTER TABLE {t} REPLICA IDENTITY USING"
        " INDEX {t}_b_idx",
        "UPDATE {t} SET b = 'by b', id = 4 WHERE id = 1; DELETE FROM {t} WHERE id = 2",
    ],
    "analyzed": ["UPDATE {t} SET a = 3", "ANALYZE {t}", NEW_ROW],
    "untouched": [NEW_ROW],
}

OTHER_ROWS = {
    "renamed_key": "INSERT INTO {t} (uid) VALUES (30)",
    "new_key": "INSERT INTO {t} (id, a) VALUES (30, 30)",
    "key_by_an_index": "INSERT INTO {t} (id, b) VALUES (30, 'thirty')",
}
"""A row more for those tables of CARRIED that have no column id, or need others too."""

REFUSED: Cases = {
    "per_row": ["ALTER TABLE {t} ADD c float8 DEFAULT random()", NEW_ROW],
    "clock": ["ALTER TABLE {t} ADD c timestamptz DEFAULT clock_timestamp()", NEW_ROW],
    "serial": ["ALTER TABLE {t} ADD c serial", NEW_ROW],
    "identity": ["ALTER TABLE {t} ADD c int GENERATED ALWAYS AS IDENTITY", NEW_ROW],
    "widened": ["ALTER TABLE {t} ALTER a TYPE bigint", NEW_ROW],
    "shorter": ["ALTER TABLE {t} ALTER b TYPE varchar(20)", NEW_ROW],
    "computed": ["ALTER TABLE {t} ALTER b TYPE text USING b || '!'", NEW_ROW],
    "key_of_a_full_identity": [
        "ALTER TABLE {t} REPLICA IDENTITY FULL",
        "UPDATE {t} SET b = 'full' WHERE id = 1",
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ALTER a SET NOT NULL, ADD PRIMARY KEY (a)",
        NEW_ROW,
    ],
    "no_key": ["ALTER TABLE {t} DROP CONSTRAINT {t}_pkey", "INSERT INTO {t} VALUES (9, 9, 'nine')"],
    "readded_key": ["ALTER TABLE {t} DROP id, ADD id serial PRIMARY KEY", "UPDATE {t} SET a = 5"],
    "swapped": ["ALTER TABLE {t} DROP b, ADD c text DEFAULT 'c'", NEW_ROW],
    "came_again_and_was_renamed": [
        "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b text; UPDATE {t} SET b = 'new' WHERE id = 1;"
        "ALTER TABLE {t} RENAME b TO z; INSERT INTO {t} (id, z) VALUES (8, 'z'); COMMIT"
    ],
    "name_given_to_another": [
        "BEGIN; ALTER TABLE {t} DROP a; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD d text DEFAULT 'x';"
        "INSERT INTO {t} VALUES (8, 'is z'); ALTER TABLE {t} RENAME d TO z; ALTER TABLE {t} ADD d text;"
        "INSERT INTO {t} VALUES (9, 'z', 'd'); COMMIT"
    ],
    "same_type": ["UPDATE {t} SET b = 'old'", "ALTER TABLE {t} DROP b, ADD b text", NEW_ROW],
}


BEHIND: Cases = {
    "renamed_widened": [
        "INSERT INTO {t} VALUES (8, 8, 'eight')",
        "ALTER TABLE {t} RENAME a TO c; ALTER TABLE {t} ALTER c TYPE bigint",
        "INSERT INTO {t} VALUES (9, 9, 'nine')",
    ],
    "renamed_longer": [
        "INSERT INTO {t} VALUES (8, 8, 'eight')",
        "ALTER TABLE {t} RENAME b TO c; ALTER TABLE {t} ALTER c TYPE varchar(20)",
        NEW_ROW,
    ],
    "added_widened": [
        "ALTER TABLE {t} ADD c int DEFAULT 5; UPDATE {t} SET a = 7 WHERE id = 1",
        "ALTER TABLE {t} ALTER c TYPE bigint",
    ],
    "added_renamed_widened": [
        "ALTER TABLE {t} ADD c int; UPDATE {t} SET c = 7",
        "ALTER TABLE {t} RENAME c TO d; ALTER TABLE {t} ALTER d TYPE bigint",
        "INSERT INTO {t} VALUES (9, 9, 'nine', 9)",
    ],
}
"""Refused if rows from before the change are read after it, when the catalog no longer says what their columns were."""


def create(lab: Lab, cases: Cases) -> None:
    for table in cases:
        lab.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, a int, b text);"
            f"INSERT INTO {table} SELECT i, i, 'b' || i FROM generate_series(1, 3) i"
        )


def alter(lab: Lab, cases: Cases, pipeline: Watched | None) -> None:
    """Every table's first step, then every table's second …; with `pipeline` streaming, each is read at once."""
    with lab.connect() as connection:
        connection.autocommit = True
        for steps in zip_longest(*(cases[table] for table in cases)):
            for table, step in zip(cases, steps, strict=True):
                for statement in step.split(";") if step else ():
                    connection.execute(statement.format(t=table).encode())
            lab.execute("INSERT INTO mark DEFAULT VALUES")
            if pipeline is not None:
                pipeline.observer.until_flushed(pipeline.current_lsn())


@pytest.mark.parametrize("streaming", [pytest.param(True, id="streaming"), pytest.param(False, id="behind")])
def test_altered_tables(lab: Lab, streaming: bool) -> None:
    cases = {**CARRIED, **REFUSED}
    lab.execute("CREATE TABLE mark (id serial PRIMARY KEY)")
    create(lab, cases)
    lab.publish()
    pipeline = lab.synced()
    if streaming:
        with lab.running(pipeline, pipeline.stream):
            alter(lab, cases, pipeline)
    else:
        alter(lab, cases, None)
    lab.assert_equal(pipeline, errored=sorted(REFUSED))
    for table in REFUSED:
        assert isinstance(pipeline.observer.errors[table], CopiedAgain)
        status = pipeline.find(TableName("public", table))
        assert status.state is TableState.INIT
        assert table in (status.error or "")
        assert status.hint == COPIED_AGAIN
    assert not lab.synced().observer.errors
    lab.assert_equal()


def test_a_table_altered_after_the_stream_began_and_before_its_own_first_row(lab: Lab) -> None:
    create(lab, {"first": (), "filled": (), "refused": ()})
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE first SET a = 5")
        pipeline.observer.until(lambda: any(flush.rows for flush in pipeline.observer.flushes), "the first flush")
        lab.execute("ALTER TABLE filled ADD c int DEFAULT 5; ALTER TABLE refused ADD c serial")
        lab.execute("UPDATE filled SET a = 5 WHERE id = 1; UPDATE refused SET a = 5 WHERE id = 1")
        pipeline.observer.until(lambda: "refused" in pipeline.observer.errors, "the refusal")
    lab.assert_equal(pipeline, errored=["refused"])


def test_a_replayed_older_relation_alters_nothing(lab: Lab) -> None:
    lab.execute("CREATE TABLE mark (id serial PRIMARY KEY)")
    create(lab, CARRIED)
    lab.publish()
    pipeline = lab.synced()
    alter(lab, CARRIED, None)

    def crash() -> None:
        raise ConnectionError("died after the destination's commit, before the store's")

    with failpoints.activated(failpoints.BATCH_WRITTEN, crash), pytest.raises(ConnectionError):
        pipeline.stream(until=pipeline.current_lsn())
    for table in CARRIED:
        lab.execute(OTHER_ROWS.get(table, "INSERT INTO {t} (id) VALUES (30)").format(t=table))
    again = lab.pipeline()
    assert again.store.progress() == pipeline.store.progress()
    lab.assert_equal(again)


def test_added_and_dropped_between_two_rows_of_one_transaction(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    lab.execute("INSERT INTO t SELECT i, repeat('x' || i, 2000) FROM generate_series(1, 3) i")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.execute("UPDATE t SET id = id + 10")
        connection.execute("ALTER TABLE t ADD n int DEFAULT 7")
        connection.execute("UPDATE t SET id = id + 10, n = 8 WHERE id = 11")
        connection.execute("ALTER TABLE t ADD m text DEFAULT 'm'")
        connection.execute("UPDATE t SET m = big WHERE id = 12")
        connection.execute("ALTER TABLE t DROP n")
        connection.execute("INSERT INTO t VALUES (1, 'short', NULL)")
        connection.execute("UPDATE t SET id = 14 WHERE id = 12")
    lab.assert_equal(pipeline)


def test_what_can_no_longer_be_told_is_refused(lab: Lab) -> None:
    lab.execute("CREATE TABLE mark (id serial PRIMARY KEY)")
    create(lab, BEHIND)
    lab.publish()
    pipeline = lab.synced()
    alter(lab, BEHIND, None)
    lab.assert_equal(pipeline, errored=sorted(BEHIND))


def test_a_column_of_a_user_s_type_is_dropped_while_rows_with_it_are_unread(lab: Lab) -> None:
    lab.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, m mood, b text); INSERT INTO t VALUES (1, 'sad', 'x')")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("INSERT INTO t VALUES (2, 'glad', 'y'); ALTER TABLE t DROP m; INSERT INTO t VALUES (3, 'z')")
    lab.assert_equal(pipeline)


def test_other_tables_go_on_after_one_was_dropped(lab: Lab) -> None:
    create(lab, {"gone": (), "other": ()})
    lab.publish()
    pipeline = lab.synced()
    lab.execute("UPDATE gone SET a = 5; UPDATE other SET a = 5; DROP TABLE gone; UPDATE other SET a = a + id")
    lab.caught_up(pipeline)
    lab.assert_equal()


UNKNOWN = f"""
{CREATE_THING}
CREATE DOMAIN things AS thing;
CREATE TABLE t (id int PRIMARY KEY, p thing, c things, ps thing[])
"""


def test_unknown_types_as_bytes(lab: Lab) -> None:
    lab.execute(UNKNOWN)
    lab.execute("INSERT INTO t VALUES (1, '(1.5,-2)', 'ä,', ARRAY['x/ y'::thing, NULL, '{}', 'ä'])")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("INSERT INTO t SELECT 2, p, c, ps FROM t; INSERT INTO t VALUES (3)")
    lab.execute("ALTER TABLE t ADD q thing DEFAULT '<(1,2),3>'; UPDATE t SET p = NULL, q = q WHERE id = 1")
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())
    types = {name: kind for name, kind, *_ in lab.rows("DESCRIBE public.t")}
    assert [types[name] for name in ("p", "c", "ps", "q")] == ["BLOB", "BLOB", "BLOB[]", "BLOB"]
    ours = lab.execute("SELECT id, p::text, c::text, q::text, ps::text[] FROM t ORDER BY id")
    decoded = "SELECT id, decode(p), decode(c), decode(q), [decode(x) FOR x IN ps] FROM public.t ORDER BY id"
    assert lab.rows(decoded) == ours


def test_unknown_types_as_text(lab: Lab) -> None:
    lab.execute(f"{UNKNOWN}; CREATE TYPE pair AS (a int, b thing); ALTER TABLE t ADD q pair")
    lab.execute("INSERT INTO t VALUES (1, '(1.5,-2)', 'ä,', ARRAY['x/ y'::thing, NULL, '{}', 'ä'], ROW(1, 'é'))")
    lab.publish()
    pipeline = lab.synced(types={"unknown": "varchar"})
    lab.execute("INSERT INTO t SELECT 2, p, c, ps, q FROM t; INSERT INTO t VALUES (3)")
    lab.execute("ALTER TABLE t ADD late thing DEFAULT '<(1,2),3>'; UPDATE t SET p = NULL WHERE id = 1")
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())
    ours = lab.execute("SELECT id, p::text, c::text, late::text, (q).b::text, ps::text[] FROM t ORDER BY id")
    assert lab.rows("SELECT id, p, c, late, q.b, ps FROM public.t ORDER BY id") == ours


def test_types_that_are_their_text(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (k text, during tstzrange, n int, net inet, rs int4range[], PRIMARY KEY (k, during))")
    lab.execute("INSERT INTO t VALUES ('Ab', '[2024-01-01 00:00+02,)', 1, '10.0.0.1/8', '{empty,\"[1,5)\"}')")
    lab.execute("INSERT INTO t VALUES ('é', 'empty', 2, NULL, '{NULL}')")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("SET timezone = 'Asia/Kathmandu'; INSERT INTO t VALUES ('x', '[2024-01-01 00:00,infinity]', 3)")
    lab.execute(
        "UPDATE t SET k = 'aB' WHERE n = 1; UPDATE t SET n = 30 WHERE k = 'x'; DELETE FROM t WHERE during = 'empty'"
    )
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())
    assert lab.rows("SELECT k, during, n, net, rs FROM public.t ORDER BY n") == [
        ("aB", '["2023-12-31 22:00:00+00",)', 1, "10.0.0.1/8", ["empty", "[1,5)"]),
        ("x", '["2023-12-31 18:15:00+00",infinity]', 30, None, None),
    ]


def test_unknown_types_are_refused_if_asked(lab: Lab) -> None:
    lab.execute(f"{UNKNOWN}; CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY)")
    lab.execute("CREATE TYPE pair AS (a int, b thing); CREATE TABLE pairs (id int PRIMARY KEY, within pair[])")
    lab.publish()
    pipeline = lab.pipeline(types={"unknown": "refuse"})
    outcomes = [str(outcome) for outcome in pipeline.sync() if isinstance(outcome, UnsupportedType)]
    assert [outcome.split()[1] for outcome in sorted(outcomes)] == ["p", "within"]
    lab.caught_up(pipeline)
    lab.execute("INSERT INTO other VALUES (1); ALTER TABLE late ADD place thing; INSERT INTO late VALUES (1, '(1,1)')")
    lab.assert_equal(pipeline, errored=["late", "pairs", "t"])
    assert "column place " in str(pipeline.observer.errors["late"])


def test_tables_copied_again_while_it_runs_go_on_and_are_not_copied_a_third_time(lab: Lab) -> None:
    """The server does not describe a table again after its copy: it has done so before."""
    altered = {
        "serial": "ALTER TABLE {t} ADD c serial; UPDATE {t} SET a = 5 WHERE id = 1",
        "widened": "ALTER TABLE {t} ALTER a TYPE bigint; UPDATE {t} SET a = 5 WHERE id = 1",
        "untold": "ALTER TABLE {t} DROP b, ADD c text; UPDATE {t} SET a = 5 WHERE id = 1",
    }
    create(lab, dict.fromkeys(altered, ()))
    lab.publish()
    pipeline = lab.synced()
    watch = pipeline.observer
    with lab.running(pipeline):
        for table in altered:
            lab.execute(f"UPDATE {table} SET a = 2 WHERE id = 2")
        watch.until_flushed(pipeline.current_lsn())
        ready = {table: watch.states.count((table, TableState.READY)) for table in altered}
        for table, statements in altered.items():
            for statement in statements.split(";"):
                lab.execute(statement.format(t=table))
        for table in altered:
            watch.until_state(table, TableState.READY, times=ready[table] + 1)
        for number in (20, 21):
            for table in altered:
                lab.execute(f"INSERT INTO {table} (id, a) VALUES ({number}, {number})")
            watch.until_flushed(pipeline.current_lsn())
    assert {table: watch.states.count((table, TableState.INIT)) for table in altered} == dict.fromkeys(altered, 1)
    lab.assert_equal(lab.pipeline())


def test_a_generated_column_that_became_an_ordinary_one_takes_nobody_s_place(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + 1) STORED, b int, c int)")
    lab.execute("INSERT INTO t (id, b, c) VALUES (1, 1, 1)")
    lab.publish()
    pipeline = lab.synced()
    for statement in (
        "ALTER TABLE t ALTER b SET NOT NULL",
        "ALTER TABLE t ALTER g DROP EXPRESSION",
        "ALTER TABLE t DROP c",
        "INSERT INTO t VALUES (2, 10, 20)",
        "ALTER TABLE t DROP g",
        "INSERT INTO t VALUES (3, 30)",
    ):
        lab.execute(statement)
    lab.caught_up(pipeline)
    lab.assert_equal(lab.synced())
