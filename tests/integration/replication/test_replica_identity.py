"""What identifies a row: replica identities, keys, names and partitions, and what a publication leaves out."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from etl_core.errors import CopiedAgain, EtlError
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from tests.integration.replication.conftest import Lab

requires_15 = "row filters and column lists came with PostgreSQL 15"


def name(table: str) -> TableName:
    return TableName("public", table)


def streamed(lab: Lab, pipeline: Pipeline, statements: str) -> None:
    """Runs each statement in a transaction of its own, and has them streamed."""
    for statement in statements.split(";"):
        lab.execute(statement)
    lab.caught_up(pipeline)


TOASTED = "big text, other text); ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;"
FILLED = "INSERT INTO {t} SELECT i, i, repeat('b' || i, 3000), repeat('o' || i, 3000) FROM generate_series(1, 6) i;"
IDENTITIES = {
    "default_": "CREATE TABLE {t} (id int PRIMARY KEY, n int NOT NULL, " + TOASTED,
    "full_": "CREATE TABLE {t} (id int PRIMARY KEY, n int NOT NULL, "
    + TOASTED
    + "ALTER TABLE {t} REPLICA IDENTITY FULL;",
    "by_index": "CREATE TABLE {t} (n int PRIMARY KEY, id int NOT NULL UNIQUE, "
    + TOASTED
    + "ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_id_key;",
    "no_primary_key": "CREATE TABLE {t} (n int NOT NULL, id int NOT NULL UNIQUE, "
    + TOASTED
    + "ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_id_key;",
    "composite": "CREATE TABLE {t} (n int, id int, " + TOASTED + "ALTER TABLE {t} ADD PRIMARY KEY (id, n);",
    "all_of_it": "CREATE TABLE {t} (n int, id int, "
    + TOASTED
    + "ALTER TABLE {t} ADD PRIMARY KEY (id, n); ALTER TABLE {t} REPLICA IDENTITY FULL;",
    '"Mixed ""Case"""': "CREATE TABLE {t} (id int PRIMARY KEY, n int, " + TOASTED,
    '"it\'s; -- 表 %s {{}}"': "CREATE TABLE {t} (id int PRIMARY KEY, n int, " + TOASTED,
}
CHANGES = """
UPDATE {t} SET other = 'changed' WHERE id = 1;
UPDATE {t} SET n = n + 100 WHERE id <= 4;
UPDATE {t} SET id = id + 10 WHERE id IN (2, 3);
UPDATE {t} SET id = id + 10, n = 0, big = 'short' WHERE id = 12;
UPDATE {t} SET n = -n - 1000;
DELETE FROM {t} WHERE id IN (4, 13);
INSERT INTO {t} (id, n, big) VALUES (4, 4, repeat('new', 3000)), (7, 7, NULL);
UPDATE {t} SET n = n + 70 WHERE id IN (4, 7);
DELETE FROM {t} WHERE id = 7
"""


@pytest.mark.parametrize("one_transaction", [True, False])
def test_rows_are_found_by_their_identity(lab: Lab, one_transaction: bool) -> None:
    for table, create in IDENTITIES.items():
        columns = FILLED.replace("{t} SELECT", "{t} (id, n, big, other) SELECT")
        lab.execute((create + columns).format(t=table))
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.autocommit = not one_transaction
        for table in IDENTITIES:
            for statement in CHANGES.split(";\n"):
                connection.execute(statement.format(t=table).encode())
    lab.assert_equal(pipeline)


KEYS = {
    "bigint": ("1", "9223372036854775807", "-1"),
    "text": ("''", "'ä \\ \"''{}'", "E'a\\tb\\nc'"),
    "uuid": ("gen_random_uuid()", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "gen_random_uuid()"),
    "numeric": ("1.0", "1.10", "-123456789.123456789"),
    "numeric(10,2)": ("1.0", "-1.1", "99999999.99"),
    "char(5)": ("'a'", "'b '", "''"),
    "timestamptz": ("'-infinity'", "'2024-02-29 23:59:59.999999+13'", "'0044-03-15 00:00 BC'"),
    "date": ("'infinity'", "'1969-12-31'", "'2024-02-29'"),
    "bytea": ("''", "'\\x00ff'", "'abc'"),
    "float8": ("0.1", "'Infinity'", "1e-300"),
    "bool": ("true", "false", "NULL"),
    "time": ("'24:00'", "'00:00'", "'12:34:56.789'"),
    "int[]": ("'{}'", "'{1,NULL}'", "'{5}'"),
    "interval": ("'1 mon'", "'-3 days'", "'04:05:06.7'"),
    "inet": ("'10.0.0.1'", "'::1'", "'10.0.0.0/8'"),
    "mood": ("'sad'", "'happy'", "NULL"),
    "positive": ("1", "2", "3"),
}


def test_keys_of_many_types(lab: Lab) -> None:
    lab.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    tables = {f"t{number}": kind for number, kind in enumerate(KEYS)}
    for table, kind in tables.items():
        first, second, _ = KEYS[kind]
        lab.execute(f"CREATE TABLE {table} (n int, k {kind} PRIMARY KEY)")
        lab.execute(f"INSERT INTO {table} VALUES (1, {first}), (2, {second})")
    lab.publish()
    pipeline = lab.synced()
    for table, kind in tables.items():
        third = KEYS[kind][2]
        if third != "NULL":
            lab.execute(f"INSERT INTO {table} VALUES (3, {third}); UPDATE {table} SET n = 30 WHERE n = 3")
        lab.execute(f"UPDATE {table} SET n = 10 WHERE n = 1")
        lab.execute(f"DELETE FROM {table} WHERE n = 2")
    lab.caught_up(pipeline)
    for table in tables:
        lab.execute(f"DELETE FROM {table} WHERE n = 30; UPDATE {table} SET n = 11 WHERE n = 10")
    lab.caught_up(pipeline)
    for table in tables:
        error = pipeline.observer.errors.get(table)
        assert error is None, (tables[table], error)
        assert lab.rows(f"SELECT n FROM public.{table}") == [(11,)], tables[table]
    assert not [comparison for comparison in pipeline.verify() if not comparison.is_equal]


UNIDENTIFIED = {
    "nothing": "CREATE TABLE {t} (id int, n int); ALTER TABLE {t} REPLICA IDENTITY NOTHING",
    "no_identity": "CREATE TABLE {t} (id int, n int)",
    "initially_deferred": "CREATE TABLE {t} (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int)",
    "hidden_key": "CREATE TABLE {t} (id int PRIMARY KEY, n int); ALTER TABLE {t} REPLICA IDENTITY NOTHING",
}


def test_rows_without_identity_are_appended(lab: Lab) -> None:
    for table, create in UNIDENTIFIED.items():
        lab.execute(f"{create}; INSERT INTO {{t}} VALUES (1, 1), (2, 2)".format(t=table))
    lab.publish()
    pipeline = lab.synced()
    for table in UNIDENTIFIED:
        lab.execute(f"INSERT INTO {table} VALUES (3, 3), (4, 4)")
    lab.assert_equal(pipeline)
    for table in UNIDENTIFIED:
        lab.execute(f"TRUNCATE {table}; INSERT INTO {table} VALUES (5, 5)")
    lab.assert_equal(pipeline)


def test_identity_changed_while_streaming(lab: Lab) -> None:
    for table in ("widened", "narrowed", "to_index", "to_nothing", "same_index"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL UNIQUE)")
        lab.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(1, 5) i")
    lab.execute("ALTER TABLE narrowed REPLICA IDENTITY FULL")
    for table in ("bag", "bag_appended"):
        lab.execute(f"CREATE TABLE {table} (id int, n int); ALTER TABLE {table} REPLICA IDENTITY FULL")
        lab.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(1, 5) i")
    lab.publish()
    pipeline = lab.synced()
    before = "UPDATE {t} SET n = 10 WHERE id = 1; DELETE FROM {t} WHERE id = 2"
    after = "UPDATE {t} SET id = 30 WHERE id = 3; DELETE FROM {t} WHERE id = 4; UPDATE {t} SET n = 50 WHERE id = 5"
    change = "ALTER TABLE {t} REPLICA IDENTITY "
    for table, statements in {
        "widened": f"{before}; {change} FULL; {after}",
        "narrowed": f"{before}; {change} DEFAULT; {after}",
        "same_index": f"{before}; {change} USING INDEX {{t}}_pkey; {after}",
        "to_index": f"{before}; {change} USING INDEX {{t}}_n_key; {after}",
        "to_nothing": f"{before}; {change} NOTHING; INSERT INTO {{t}} VALUES (9, 9)",
        "bag": f"{before}; {change} NOTHING; INSERT INTO {{t}} VALUES (9, 9)",
        "bag_appended": f"INSERT INTO {{t}} VALUES (8, 8); {change} NOTHING; INSERT INTO {{t}} VALUES (9, 9)",
    }.items():
        for statement in statements.format(t=table).split(";"):
            lab.execute(statement)
    lab.assert_equal(pipeline, errored=["to_nothing", "bag"])
    assert "the key changed from (id) to none" in str(pipeline.observer.errors["to_nothing"])
    # Its old rows were sent whole, but that nobody can know any more; no more of them will come.
    assert isinstance(pipeline.observer.errors["bag"], CopiedAgain)
    lab.assert_equal(lab.synced())


def test_names_that_differ_only_in_case_are_refused(lab: Lab) -> None:
    lab.execute('CREATE TABLE columns (id int PRIMARY KEY, a int, "A" int); CREATE TABLE "T" (id int PRIMARY KEY)')
    lab.execute('CREATE TABLE other (id int PRIMARY KEY, "SELECT" int, "a b" int, "ä%s""" int, _ int)')
    lab.execute('CREATE SCHEMA "Sales Dept"; CREATE TABLE "Sales Dept".other (LIKE other INCLUDING ALL)')
    lab.publish()
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.caught_up(pipeline)
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    pipeline = lab.pipeline()
    pipeline.sync()
    for table in ('"T"', "t", "columns", "other", '"Sales Dept".other'):
        lab.execute(f"INSERT INTO {table} VALUES (1)")
    lab.execute('UPDATE other SET "SELECT" = 1, "a b" = 2; UPDATE "Sales Dept".other SET "_" = 4')
    lab.assert_equal(pipeline, errored=["columns", "t"])


PARTITIONED = """
CREATE TABLE p (id int, region text, n int, big text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu');
CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us') PARTITION BY RANGE (id);
CREATE TABLE p_us_low PARTITION OF p_us FOR VALUES FROM (0) TO (100);
CREATE TABLE p_us_high (n int, dropped int, big text, region text NOT NULL, id int NOT NULL);
ALTER TABLE p_us_high DROP dropped;
ALTER TABLE p_us ATTACH PARTITION p_us_high FOR VALUES FROM (100) TO (1000);
ALTER TABLE p ALTER big SET STORAGE EXTERNAL;
INSERT INTO p SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i, repeat('x' || i, 2000)
    FROM generate_series(1, 150) i
"""
MOVES = """
UPDATE p SET region = 'us' WHERE id = 2;
UPDATE p SET region = 'eu', n = 0 WHERE id = 3;
UPDATE p SET id = 205 + id WHERE region = 'us' AND id < 6;
UPDATE p SET n = n + 1 WHERE id IN (207, 3, 104, 140);
DELETE FROM p WHERE id IN (3, 5, 120);
INSERT INTO p VALUES (300, 'us', 1, repeat('y', 9000)), (301, 'eu', 1, NULL);
UPDATE p SET region = 'eu' WHERE id = 300;
UPDATE p SET n = 7 WHERE id > 100
"""
AGAIN = """
UPDATE p SET region = 'eu' WHERE id = 101;
UPDATE p SET n = 8 WHERE id = 101;
UPDATE p SET region = 'us', id = 98 WHERE id = 101;
DELETE FROM p WHERE id IN (98, 4)
"""


@pytest.mark.parametrize("via_root", [True, False])
def test_rows_that_move_between_partitions(lab: Lab, via_root: bool) -> None:
    lab.execute(PARTITIONED)
    lab.execute(f"CREATE PUBLICATION lab_pub FOR TABLE p WITH (publish_via_partition_root = {via_root})")
    pipeline = lab.synced()
    expected = {"p"} if via_root else {"p_eu", "p_us_low", "p_us_high"}
    assert {status.name.name for status in pipeline.store.tables()} == expected
    streamed(lab, pipeline, MOVES)
    lab.assert_equal(pipeline)
    with lab.connect() as connection:
        for statement in AGAIN.split(";"):
            connection.execute(statement.encode())
        connection.commit()
    lab.execute("TRUNCATE p_us; INSERT INTO p VALUES (7, 'us', 7, 'seven')") if not via_root else None
    lab.assert_equal(pipeline)


def test_partitions_attached_and_detached(lab: Lab) -> None:
    lab.execute(PARTITIONED)
    lab.publish("TABLE p")
    pipeline = lab.synced()
    lab.execute("CREATE TABLE p_asia PARTITION OF p FOR VALUES IN ('asia')")
    lab.execute("INSERT INTO p VALUES (1, 'asia', 1, 'a'); UPDATE p SET region = 'asia' WHERE id = 2")
    lab.execute("ALTER TABLE p ADD c int DEFAULT 5, ADD d text; UPDATE p SET c = 6 WHERE id IN (1, 3)")
    lab.execute(
        "CREATE TABLE p_africa PARTITION OF p FOR VALUES IN ('africa'); UPDATE p SET region = 'africa' WHERE id = 4"
    )
    lab.assert_equal(pipeline)
    lab.execute("ALTER TABLE p ADD e float8 DEFAULT random(); UPDATE p SET n = 0 WHERE id = 1")
    lab.assert_equal(pipeline, errored=["p"])


FILTERED = """
CREATE TABLE t (id int, n int, secret text, big text, PRIMARY KEY (id, n));
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT i, i % 10, 'secret', repeat('x' || i, 2000) FROM generate_series(1, 40) i
"""


@pytest.mark.parametrize("full", [True, False])
def test_a_row_filter_and_a_column_list(lab: Lab, postgres: object, full: bool) -> None:
    if lab.execute("SELECT current_setting('server_version_num')::int < 150000") == [(True,)]:
        pytest.skip(requires_15)
    lab.execute(FILTERED)
    if full:
        lab.execute("ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION lab_pub FOR TABLE t WHERE (n < 5)")
    else:
        lab.execute("CREATE PUBLICATION lab_pub FOR TABLE t (id, n, big) WHERE (n < 5)")
    columns = "id, n, secret, big" if full else "id, n, big"
    pipeline = lab.synced()

    def assert_filtered() -> None:
        lab.caught_up(pipeline)
        theirs = lab.rows(f"SELECT {columns} FROM public.t ORDER BY id, n")
        assert theirs == lab.execute(f"SELECT {columns} FROM t WHERE n < 5 ORDER BY id, n")
        assert not [comparison for comparison in pipeline.verify() if not comparison.is_equal]

    assert [column[0] for column in lab.rows("DESCRIBE public.t")] == columns.split(", ")
    streamed(
        lab,
        pipeline,
        "UPDATE t SET secret = 'x'; UPDATE t SET big = 'short' WHERE id < 20; UPDATE t SET n = 9 WHERE id = 1;"
        "UPDATE t SET n = 1 WHERE id = 9; UPDATE t SET n = 8 WHERE id = 7; DELETE FROM t WHERE id IN (2, 6);"
        "INSERT INTO t VALUES (50, 1, 's', 'b'), (51, 9, 's', 'b'); UPDATE t SET n = n + 1 WHERE id = 4",
    )
    assert_filtered()
    lab.execute("UPDATE t SET n = 0 WHERE id = 38")  # its TOASTed value did not change
    if full:
        assert_filtered()
    else:
        lab.caught_up(pipeline)
        assert pipeline.find(name("t")).state is TableState.ERRORED
        assert "row filter" in (pipeline.observer.errors["t"].hint or "")
        [outcome] = pipeline.sync([name("t")])
        assert not isinstance(outcome, EtlError)
        assert_filtered()
