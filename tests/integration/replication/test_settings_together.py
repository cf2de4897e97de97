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
