"""Columns that come and go while the stream runs, and behind it; what cannot be carried stops one table."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING

import pytest

from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from tests.integration.replication.conftest import Lab

CARRIED = {
    "added, empty": "ALTER TABLE $t ADD c int; INSERT INTO $t VALUES (10, 'x', 10, 7)",
    "added with a constant": "ALTER TABLE $t ADD c text DEFAULT 'né\"w'; INSERT INTO $t VALUES (10, 'x', 10)",
    "added with a constant, an old row changed": "ALTER TABLE $t ADD c numeric(9, 2) DEFAULT 1.5; UPDATE $t SET n = 0",
    "added twice": "ALTER TABLE $t ADD c int DEFAULT 1; UPDATE $t SET n = 8 WHERE id = 1; ALTER TABLE $t ADD d bool;"
    "UPDATE $t SET d = true WHERE id = 2",
    "dropped": "ALTER TABLE $t DROP n; INSERT INTO $t VALUES (10, 'x')",
    "dropped and added": "ALTER TABLE $t DROP n, ADD c int; UPDATE $t SET c = 5 WHERE id = 1",
    "dropped and added again with another type": "ALTER TABLE $t DROP n; UPDATE $t SET a = 'between' WHERE id = 2;"
    "ALTER TABLE $t ADD n text DEFAULT 'd'; UPDATE $t SET a = 'after' WHERE id = 1",
    "added and dropped again": "ALTER TABLE $t ADD c int DEFAULT 3; UPDATE $t SET n = 4; ALTER TABLE $t DROP c;"
    "UPDATE $t SET n = 5 WHERE id = 1",
    "not null with a constant": "ALTER TABLE $t ADD c int NOT NULL DEFAULT 4; DELETE FROM $t WHERE id = 1",
    "a change of another table between": "ALTER TABLE $t ADD c int; UPDATE other SET n = 1; UPDATE $t SET c = 2",
}
IN_ONE_TRANSACTION = {
    "between two rows": "UPDATE $t SET n = 1; ALTER TABLE $t ADD c int DEFAULT 9; UPDATE $t SET n = 2 WHERE id = 1",
    "rolled back to a savepoint": "UPDATE $t SET n = 1; SAVEPOINT s; ALTER TABLE $t ADD c int DEFAULT 9;"
    "UPDATE $t SET n = 2; ROLLBACK TO s; UPDATE $t SET a = 'kept' WHERE id = 1",
    "rolled back, then another one": "SAVEPOINT s; ALTER TABLE $t ADD c int; UPDATE $t SET c = 1; ROLLBACK TO s;"
    "ALTER TABLE $t ADD d text DEFAULT 'd'; UPDATE $t SET n = 3 WHERE id = 1",
    "a truncate between": "UPDATE $t SET n = 1; ALTER TABLE $t ADD c int; TRUNCATE $t;"
    "INSERT INTO $t VALUES (1, 'b', 2, 3)",
}
REFUSED = {
    "a default computed per row": "ALTER TABLE $t ADD c float8 DEFAULT random(); UPDATE $t SET n = 1",
    "another type": "ALTER TABLE $t ALTER n TYPE bigint; UPDATE $t SET n = 1",
    "a renamed column": "ALTER TABLE $t RENAME n TO m; UPDATE $t SET m = 1",
    "a renamed table": "ALTER TABLE $t RENAME TO $t_u; UPDATE $t_u SET n = 1",
    "another key": "ALTER TABLE $t DROP CONSTRAINT $t_pkey, ADD PRIMARY KEY (n); UPDATE $t SET a = 'k'",
    "no key": "ALTER TABLE $t DROP CONSTRAINT $t_pkey; INSERT INTO $t VALUES (10, 'x', 10)",
    "renamed while another takes the name": "UPDATE $t SET n = n + 100; ALTER TABLE $t RENAME n TO m;"
    "ALTER TABLE $t ADD n int; UPDATE $t SET n = 1 WHERE id = 1",
    "dropped and added again with its type": "UPDATE $t SET n = n + 100; ALTER TABLE $t DROP n;"
    "ALTER TABLE $t ADD n int; UPDATE $t SET n = 1 WHERE id = 1",
}


def run(lab: Lab, pipeline: Pipeline, tables: Mapping[str, str], *, live: bool) -> None:
    """Runs the statements of every table; if `live`, each is streamed before the table's next."""
    for step in zip_longest(*(statements.split(";") for statements in tables.values())):
        for table, statement in zip(tables, step, strict=True):
            if statement is not None:
                lab.execute(statement.replace("$t", table))
        if live:
            lab.caught_up(pipeline)


def make(lab: Lab) -> None:
    for name in ("t", "other"):
        lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a text, n int)")
        lab.execute(f"INSERT INTO {name} SELECT i, 'old ' || i, i FROM generate_series(1, 5) i")
    lab.publish()


@pytest.mark.parametrize("live", [True, False], ids=["live", "behind"])
def test_added_and_dropped_columns_are_carried(lab: Lab, live: bool) -> None:
    """`live`: each statement is streamed before the next; else the catalog is ahead of the WAL, and the source busy."""
    make(lab)
    tables = {f"t{number}": statements for number, statements in enumerate(CARRIED.values())}
    for table in tables:
        lab.execute(f"CREATE TABLE {table} AS TABLE t; ALTER TABLE {table} ADD PRIMARY KEY (id)")
    pipeline = lab.synced()
    run(lab, pipeline, tables, live=live)
    lab.assert_equal(pipeline)
    lab.assert_equal(lab.pipeline())


@pytest.mark.parametrize("case", IN_ONE_TRANSACTION)
def test_columns_change_within_a_transaction(lab: Lab, case: str) -> None:
    make(lab)
    pipeline = lab.synced()
    with lab.connect() as connection:
        for statement in IN_ONE_TRANSACTION[case].split(";"):
            connection.execute(statement.replace("$t", "t").encode())
    lab.assert_equal(pipeline)


@pytest.mark.parametrize("live", [True, False], ids=["live", "behind"])
def test_what_cannot_be_carried_stops_one_table(lab: Lab, live: bool) -> None:
    make(lab)
    tables = {f"t{number}": (case, statements) for number, (case, statements) in enumerate(REFUSED.items())}
    for table in tables:
        lab.execute(f"CREATE TABLE {table} AS TABLE t")
        lab.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY (id)")
    pipeline = lab.synced()
    run(lab, pipeline, {table: statements for table, (_, statements) in tables.items()}, live=live)
    lab.execute("UPDATE other SET n = n + 1")
    lab.caught_up(pipeline)
    for status in pipeline.store.tables():
        if status.name.name in tables:
            case, _ = tables[status.name.name]
            assert status.state is TableState.ERRORED, f"{case}: {status}"
            assert "etl resync" in str(status.hint), case
    lab.assert_equal(pipeline, errored=list(tables))


def test_a_replayed_older_relation_does_not_alter_backwards(lab: Lab) -> None:
    """What was written but not stored is read again after a crash, older descriptions of the table with it."""
    make(lab)
    pipeline = lab.synced()
    before = pipeline.store.progress()
    lab.execute("UPDATE t SET n = 1")
    lab.execute("ALTER TABLE t ADD c int DEFAULT 3, DROP a")
    lab.execute("UPDATE t SET c = 4 WHERE id = 1")
    lab.execute("UPDATE other SET n = 2")
    assert lab.process("stream", failpoint="batch_written").wait(60) == -signal.SIGKILL
    assert pipeline.store.progress() == before
    again = lab.caught_up(lab.pipeline())
    lab.execute("UPDATE t SET n = 5 WHERE id = 2")
    lab.assert_equal(again)
