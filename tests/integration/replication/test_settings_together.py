"""Settings that are about the same table: what one of them keeps, counts or shows is what the others go by.

The source is the oracle: `verify` compares every column that both sides have.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etl_core.config_tables import read_tables
from etl_core.errors import CopiedAgain, EtlError
from etl_core.identifiers import TableName

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

TABLES: dict[str, dict[str, Any]] = {
    "kept": {"schema_changes": "ignore"},
    "kept_log": {"schema_changes": "ignore", "write_mode": "append"},
    "kept_past": {"schema_changes": "ignore", "write_mode": "history"},
    "kept_deleted": {"schema_changes": "ignore", "write_mode": "soft_delete"},
    "past": {"write_mode": "history"},
    "deleted": {"write_mode": "soft_delete"},
    "hidden": {"schema_changes": "ignore", "columns": {"hash": ["a"], "rename": {"n": "amount"}, "exclude": ["gone"]}},
    "spans": {"schema_changes": "ignore", "write_mode": "history"},
}
IGNORING = [name for name, said in TABLES.items() if said.get("schema_changes") == "ignore"]


def go_on(lab: Lab, pipeline: Watched) -> None:
    """As a run: copies and streams until nothing is to be copied any more."""
    for _ in range(3):
        pipeline.stop.clear()
        for outcome in pipeline.sync():
            assert not isinstance(outcome, EtlError), outcome
        lab.caught_up(pipeline)


def assert_equal(lab: Lab, pipeline: Watched) -> None:
    go_on(lab, pipeline)
    different = [(one.table.name, one.problem) for one in pipeline.verify() if not one.is_equal]
    assert different == [], (different, pipeline.observer.errors, pipeline.observer.states[-12:])


def types_of(lab: Lab, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in lab.rows(f"DESCRIBE public.{table}") if not row[0].startswith("_etl")}


def test_what_is_kept_counted_and_shown_is_of_one_table(lab: Lab) -> None:
    for table in TABLES:
        lab.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, n numeric, a text, gone numeric, r numrange);"
            f"INSERT INTO {table} SELECT i, i + 0.5, 'a' || i, i, numrange(i, i + 1) FROM generate_series(1, 9) i"
        )
    lab.publish()
    lab.config = replace(lab.config, tables=read_tables("tables", TABLES), types={"range": "struct"}, hash_key="k" * 32)
    pipeline = lab.synced()
    assert types_of(lab, "kept")["n"] == types_of(lab, "kept_log")["gone"] == "DECIMAL(38,9)"
    for table in TABLES:
        # More digits than the column has, in a table whose columns are not those of the destination any more.
        lab.execute(
            f"ALTER TABLE {table} RENAME n TO m; ALTER TABLE {table} DROP gone, ADD b numeric DEFAULT 7;"
            f"UPDATE {table} SET m = 0.123456789012, b = 0.12345678901234 WHERE id = 2;"
            f"DELETE FROM {table} WHERE id = 3; INSERT INTO {table} (id, m) VALUES (20, 1)"
        )
    go_on(lab, pipeline)
    for table in IGNORING:
        called = "amount" if table == "hidden" else "n"
        assert types_of(lab, table)[called] == "DECIMAL(38,12)", table
        assert "b" not in types_of(lab, table)
    for table in ("kept", "kept_log", "kept_past", "kept_deleted"):
        assert list(types_of(lab, table)) == ["id", "n", "a", "gone", "r"]
        assert types_of(lab, table)["gone"] == "DECIMAL(38,9)"
    assert types_of(lab, "past")["m"] == "DECIMAL(38,12)"
    assert types_of(lab, "deleted")["b"] == "DECIMAL(38,14)"
    assert_equal(lab, pipeline)
    assert lab.rows("SELECT n FROM public.kept_past_current WHERE id = 2") == lab.execute(
        "SELECT m FROM past WHERE id = 2"
    )
    assert lab.rows("SELECT count(*) FROM public.past_history WHERE id = 3 AND _etl_valid_to IS NOT NULL") == [(1,)]

    # By the stream, by new copies, and by another process.
    for table in TABLES:
        lab.execute(f"UPDATE {table} SET m = m + 1 WHERE id % 2 = 0; INSERT INTO {table} (id, r) VALUES (30, 'empty')")
    assert_equal(lab, pipeline)
    again = lab.pipeline()
    for table in TABLES:
        again.resync(TableName("public", table))
    assert_equal(lab, again)
    for table in IGNORING:
        assert "b" not in types_of(lab, table)
    errors = pipeline.observer.errors | again.observer.errors
    assert all(isinstance(error, CopiedAgain) for error in errors.values()), errors


def test_types_and_names_that_change_where_changes_are_ignored(lab: Lab) -> None:
    """What is no change of the table reaches it, and a name that is ours stops that table alone."""
    lab.execute(
        "CREATE TYPE pair AS (a int, b int); CREATE TYPE more AS (a int, b int); CREATE TYPE mood AS ENUM ('ok')"
    )
    kinds = {"swapped": "pair", "grown": "more[]", "states": "mood", "declared": "numeric", "digits": "numeric"}
    ours = {"log": "append", "past": "history", "deleted": "soft_delete"}
    for table, kind in {**kinds, **dict.fromkeys((*ours, "flows"), "int")}.items():
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, p {kind}); INSERT INTO {table} VALUES (1)")
    lab.publish()
    settings: dict[str, dict[str, Any]] = {
        **{table: {} for table in kinds},
        "states": {"types": {"enum": "enum"}},
        **{table: {"write_mode": mode} for table, mode in ours.items()},
    }
    ignoring = {table: {"schema_changes": "ignore", **said} for table, said in settings.items()}
    lab.config = replace(lab.config, tables=read_tables("tables", ignoring))
    pipeline = lab.synced()
    for table in kinds:
        lab.execute(f"ALTER TABLE {table} ADD extra int; INSERT INTO {table} (id) VALUES (2)")
    go_on(lab, pipeline)
    pipeline.resync(TableName("public", "digits"))
    go_on(lab, pipeline)
    lab.execute("ALTER TYPE pair DROP ATTRIBUTE a, ADD ATTRIBUTE c int; INSERT INTO swapped (id, p) VALUES (3, (5, 6))")
    lab.execute("ALTER TYPE more ADD ATTRIBUTE c int; INSERT INTO grown (id, p) VALUES (3, ARRAY[(5, 6, 7)::more])")
    lab.execute("ALTER TYPE mood ADD VALUE 'new'")
    lab.execute("INSERT INTO states (id, p) VALUES (3, 'new')")
    lab.execute(
        "ALTER TABLE declared ALTER p TYPE numeric(20,15); INSERT INTO declared (id, p) VALUES (3, 0.123456789012345)"
    )
    lab.execute("ALTER TABLE digits DROP extra; INSERT INTO digits (id, p) VALUES (3, 1.5)")
    before = dict(pipeline.observer.errors)
    go_on(lab, pipeline)
    assert "digits" not in {name for name in pipeline.observer.errors if name not in before}
    for table in kinds:
        assert "extra" not in types_of(lab, table)
    assert lab.rows("SELECT p FROM public.swapped WHERE id = 3") == [({"b": 5, "c": 6},)]
    assert types_of(lab, "declared")["p"] == "DECIMAL(38,15)"

    lab.execute(
        "ALTER TABLE log ADD _etl_old_x int; INSERT INTO log VALUES (2, 2, 5); UPDATE log SET p = 7 WHERE id = 1"
    )
    lab.execute("ALTER TABLE past ADD x int; ALTER TABLE past RENAME x TO _etl_lsn; INSERT INTO past VALUES (2, 2, 5)")
    lab.execute("ALTER TABLE deleted ADD _etl_deleted_at timestamptz; INSERT INTO deleted (id) VALUES (2)")
    lab.execute("INSERT INTO flows VALUES (2, 2)")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT id FROM public.flows ORDER BY id") == [(1,), (2,)]
    for table in ours:
        assert "has a column _etl_" in str(pipeline.observer.errors[table]), table
    equal = {one.table.name: one.is_equal for one in pipeline.verify()}
    assert equal == {**dict.fromkeys((*kinds, "flows"), True), **dict.fromkeys(ours, False)}
