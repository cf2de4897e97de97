"""Row changes, one kind at a time: what the source has after each is what the destination has."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

TOAST = {
    "earlier in the same batch": "INSERT INTO $t VALUES (1, 1, repeat('n', 9000), repeat('m', 9000));"
    "UPDATE $t SET n = 2 WHERE id = 1",
    "only in the copy": "UPDATE $t SET n = 2",
    "with a new key": "UPDATE $t SET id = id + 100",
    "with two new keys": "UPDATE $t SET id = id + 100; UPDATE $t SET n = 5; UPDATE $t SET id = id + 100",
    "one of two changed": "UPDATE $t SET big = 'short' WHERE id = 51; UPDATE $t SET n = 3",
    "of a row deleted between": "DELETE FROM $t WHERE id = 51;"
    "INSERT INTO $t VALUES (51, 0, repeat('y', 9000), NULL); UPDATE $t SET n = 7, other = 'o' WHERE id = 51",
    "of two swapped rows": "UPDATE $t SET id = 0 WHERE id = 51; UPDATE $t SET id = 51 WHERE id = 52;"
    "UPDATE $t SET id = 52 WHERE id = 0",
    "of a key given to another row": "DELETE FROM $t WHERE id = 52; UPDATE $t SET id = 52 WHERE id = 51;"
    "UPDATE $t SET n = 9 WHERE id = 52",
    "in a row that ends deleted": "UPDATE $t SET n = 2 WHERE id = 51; DELETE FROM $t WHERE id = 51",
    "before and after a truncate": "UPDATE $t SET n = 2; TRUNCATE $t;"
    "INSERT INTO $t VALUES (51, 1, repeat('t', 9000), NULL); UPDATE $t SET n = 3",
    "with the whole old row": "ALTER TABLE $t REPLICA IDENTITY FULL; UPDATE $t SET n = 2; UPDATE $t SET id = id + 100",
}
KEYS = {
    "a swap": "UPDATE $t SET a = 0 WHERE a = 1; UPDATE $t SET a = 1 WHERE a = 2; UPDATE $t SET a = 2 WHERE a = 0",
    "a rotation at once": "UPDATE $t SET a = a + 1000; UPDATE $t SET a = a - 999",
    "deleted and inserted": "DELETE FROM $t WHERE a = 1; INSERT INTO $t VALUES (1, 'x', 'again')",
    "inserted and deleted": "INSERT INTO $t VALUES (50, 'x', 'shortly'); DELETE FROM $t WHERE a = 50",
    "deleted, inserted, deleted": "DELETE FROM $t WHERE a = 1;"
    "INSERT INTO $t VALUES (1, 'x', 'n'); DELETE FROM $t WHERE a = 1",
    "moved onto a deleted key": "DELETE FROM $t WHERE a = 2; UPDATE $t SET a = 2 WHERE a = 1",
    "moved away and back": "UPDATE $t SET a = 70 WHERE a = 1; UPDATE $t SET a = 1, v = 'back' WHERE a = 70",
    "one half of the key": "UPDATE $t SET b = 'other' WHERE a = 1; UPDATE $t SET v = NULL WHERE b = 'other'",
    "truncated between": "UPDATE $t SET v = 'gone'; TRUNCATE $t; INSERT INTO $t VALUES (1, 'x', 'new')",
    "truncated twice": "TRUNCATE $t; INSERT INTO $t VALUES (1, 'x', 'no'); TRUNCATE $t;"
    "INSERT INTO $t VALUES (2, 'y', 'yes')",
    "truncated at the end": "INSERT INTO $t VALUES (90, 'x', 'no'); TRUNCATE $t",
    "an index as identity": "CREATE UNIQUE INDEX ON $t (b); ALTER TABLE $t REPLICA IDENTITY USING INDEX $t_b_idx;"
    "UPDATE $t SET v = 'w' WHERE a = 1",
}


def change(lab: Lab, cases: dict[str, str], tables: list[str], *, one_transaction: bool) -> None:
    """Runs the statements of a case on its table."""
    for table, statements in zip(tables, cases.values(), strict=True):
        with lab.connect() as connection:
            connection.autocommit = not one_transaction
            for statement in statements.split(";"):
                connection.execute(statement.replace("$t", table).encode())


@pytest.mark.parametrize("one_transaction", [True, False])
def test_unchanged_toast_keeps_its_value(lab: Lab, one_transaction: bool) -> None:
    tables = [f"t{number}" for number in range(len(TOAST))]
    for table in tables:
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int, big text, other text)")
        lab.execute(f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL")
        lab.execute(
            f"INSERT INTO {table} SELECT i, i, repeat('b' || i, 3000), repeat('o' || i, 3000)"
            " FROM generate_series(51, 53) i"
        )
    lab.publish()
    pipeline = lab.synced()
    change(lab, TOAST, tables, one_transaction=one_transaction)
    lab.assert_equal(pipeline)


@pytest.mark.parametrize("one_transaction", [True, False])
def test_keys_change_hands(lab: Lab, one_transaction: bool) -> None:
    tables = [f"t{number}" for number in range(len(KEYS))]
    cases = dict(KEYS)
    if one_transaction:
        cases["an index as identity"] = "UPDATE $t SET v = 'w' WHERE a = 1"  # a table with changes cannot be altered
    for table in tables:
        lab.execute(f"CREATE TABLE {table} (a int, b text NOT NULL, v text, PRIMARY KEY (a, b))")
        lab.execute(f"INSERT INTO {table} SELECT i, 'k' || i, 'v' || i FROM generate_series(1, 5) i")
    lab.publish()
    pipeline = lab.synced()
    change(lab, cases, tables, one_transaction=one_transaction)
    lab.assert_equal(pipeline)


def test_replica_identities(lab: Lab) -> None:
    lab.execute("CREATE TABLE whole (id int PRIMARY KEY, n int, v text); ALTER TABLE whole REPLICA IDENTITY FULL")
    lab.execute("CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int)")
    lab.execute("ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key")
    lab.execute("CREATE TABLE whole_without_key (n int, v text); ALTER TABLE whole_without_key REPLICA IDENTITY FULL")
    lab.execute("CREATE TABLE nothing (id int PRIMARY KEY, n int); ALTER TABLE nothing REPLICA IDENTITY NOTHING")
    lab.execute("CREATE TABLE without_key (n int, v text)")
    for table in ("whole_without_key", "without_key"):
        lab.execute(f"INSERT INTO {table} VALUES (1, NULL), (1, NULL), (2, 'two')")
    lab.execute("INSERT INTO whole SELECT i, i, NULL FROM generate_series(1, 9) i")
    lab.execute("INSERT INTO by_index SELECT i, 'c' || i, i FROM generate_series(1, 9) i")
    lab.publish()
    pipeline = lab.synced()
    lab.execute(
        "UPDATE whole SET n = 0 WHERE id < 4; DELETE FROM whole WHERE id = 5; UPDATE whole SET id = 50 WHERE id = 9"
    )
    lab.execute("UPDATE by_index SET n = 0 WHERE id < 4; DELETE FROM by_index WHERE id = 5")
    lab.execute("UPDATE by_index SET code = 'c90', id = 90 WHERE id = 9; UPDATE by_index SET id = 80 WHERE id = 8")
    lab.execute("INSERT INTO nothing VALUES (1, 1), (2, 2)")
    lab.execute(
        "INSERT INTO without_key VALUES (1, NULL); TRUNCATE without_key; INSERT INTO without_key VALUES (3, 'x')"
    )
    lab.execute("INSERT INTO without_key VALUES (3, 'x'); INSERT INTO whole_without_key VALUES (1, NULL)")
    lab.execute("DELETE FROM whole_without_key WHERE ctid = '(0,1)'; UPDATE whole_without_key SET v = 'x' WHERE n = 2")
    lab.assert_equal(pipeline)


def test_an_update_without_a_key_stops_that_table_only(lab: Lab) -> None:
    """The source accepts it, as the partitions have an identity; that of the whole table is sent, and there is none."""
    for table in ("updated", "deleted"):
        lab.execute(f"CREATE TABLE {table} (n int) PARTITION BY RANGE (n)")
        lab.execute(f"CREATE TABLE {table}_all PARTITION OF {table} DEFAULT")
        lab.execute(f"ALTER TABLE {table}_all REPLICA IDENTITY FULL")
        lab.execute(f"INSERT INTO {table} VALUES (1), (2)")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.execute("UPDATE updated SET n = 3 WHERE n = 1")
        connection.execute("INSERT INTO other VALUES (1)")
        connection.execute("DELETE FROM deleted WHERE n = 1")
    lab.caught_up(pipeline)
    for table in ("updated", "deleted"):
        status = pipeline.find(TableName("public", table))
        assert status.state is TableState.ERRORED
        assert f"public.{table} is published without a key" in str(status.error)
        assert "ADD PRIMARY KEY" in str(status.hint)
        assert "of a partitioned table for itself" in str(status.hint)
    lab.execute("INSERT INTO other VALUES (2)")
    lab.assert_equal(pipeline, errored=["updated", "deleted"])


def test_truncate_of_several_tables_between_changes(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent)"
    )
    lab.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    lab.execute(
        "INSERT INTO parent SELECT generate_series(1, 9); INSERT INTO child SELECT i, i FROM generate_series(1, 9) i"
    )
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.execute("INSERT INTO child VALUES (10, 1)")
        connection.execute("TRUNCATE parent CASCADE")
        connection.execute("INSERT INTO parent VALUES (1), (77)")
        connection.execute("INSERT INTO kept VALUES (2)")
        connection.execute("INSERT INTO child VALUES (1, 77)")
    lab.execute("TRUNCATE child, kept")
    lab.execute("INSERT INTO kept VALUES (3)")
    lab.assert_equal(pipeline)


def test_partitions_are_one_table(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE events (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        "CREATE TABLE events_2 (v text, day date NOT NULL, id int NOT NULL);"
        "ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');"
        "INSERT INTO events SELECT i, date '2024-01-01' + i, 'v' || i FROM generate_series(0, 58) i"
    )
    lab.publish("TABLE events")
    pipeline = lab.synced()
    lab.execute("UPDATE events SET day = day + 31 WHERE id = 3")  # moves the row to the other partition
    lab.execute("UPDATE events SET v = 'w' WHERE id % 7 = 0; DELETE FROM events WHERE id = 10")
    lab.execute("CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2024-03-01') TO ('2024-04-01')")
    lab.execute("INSERT INTO events VALUES (100, '2024-03-05', 'new')")
    lab.assert_equal(pipeline)
    lab.execute("TRUNCATE events; INSERT INTO events VALUES (1, '2024-01-01', 'alone')")
    lab.assert_equal(pipeline)


def test_names_that_need_quotes_and_tables_that_are_empty(lab: Lab) -> None:
    lab.execute('CREATE SCHEMA "My Schema"')
    lab.execute(
        'CREATE TABLE "My Schema"."Order ""Lines"".x" ("Id" int PRIMARY KEY, "select" text, "a.b" int, "ü" int)'
    )
    lab.execute('CREATE TABLE "select" (id int PRIMARY KEY)')
    lab.execute("CREATE TABLE nothing_ever (id int PRIMARY KEY, v text)")
    lab.execute('CREATE TABLE "orders" (id int PRIMARY KEY); CREATE TABLE "My Schema".orders (id int PRIMARY KEY)')
    lab.publish()
    pipeline = lab.synced()
    lab.execute('INSERT INTO "My Schema"."Order ""Lines"".x" VALUES (1, \'s\', 2, 3), (2, NULL, NULL, NULL)')
    lab.execute('UPDATE "My Schema"."Order ""Lines"".x" SET "Id" = 3, "select" = \'\' WHERE "Id" = 1')
    lab.execute(
        'INSERT INTO "select" VALUES (1); INSERT INTO orders VALUES (1); INSERT INTO "My Schema".orders VALUES (2)'
    )
    lab.assert_equal(pipeline)
