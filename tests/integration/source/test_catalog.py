"""What the catalog says of published tables, on a real server."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from psycopg import sql

from etl_core.errors import SourceUnavailable
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, format_type
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TypeKind
from etl_core.source.catalog import (
    PublishedTable,
    _read_types,
    published_table,
    published_tables,
    table_schema,
)
from etl_core.source.connection import Connection
from etl_core.state.schema_json import schema_from_json, schema_to_json
from etl_core.testing.database import Database
from etl_core.values.arrow import is_supported


def publish(database: Database, *statements: str) -> None:
    for statement in statements:
        database.execute(statement)
    database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")


def one(conn: Connection, name: str = "t") -> PublishedTable:
    return next(table for table in published_tables(conn, "p") if table.name.name == name)


def test_columns_types_and_key(database: Database, conn: Connection, walsender: Connection) -> None:
    publish(
        database,
        "CREATE TABLE t (gone int, id int, v varchar(20) NOT NULL, n numeric(12,2), a text[], PRIMARY KEY (v, id))",
        "ALTER TABLE t DROP COLUMN gone",
    )
    table = one(conn)
    int4, text = PgType(23, "int4"), PgType(25, "text")
    assert table.schema.name == TableName("public", "t")
    assert table.schema.columns == (
        Column("id", int4, nullable=False, attnum=2),
        Column("v", PgType(1043, "varchar"), type_modifier=24, nullable=False, attnum=3),
        Column("n", PgType(1700, "numeric"), type_modifier=((12 << 16) | 2) + 4, attnum=4),
        Column("a", PgType(1009, "_text", kind=TypeKind.ARRAY, element=text), attnum=5),
    )
    assert table.schema.key == ("id", "v"), "in column order"
    assert (table.is_partitioned, table.leaves, table.row_filter) == (False, (), None)
    assert table.schema.table_id == database.execute("SELECT 't'::regclass::oid::bigint")[0][0]
    assert one(walsender) == table


def test_comments(database: Database, conn: Connection) -> None:
    publish(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, n int)",
        "COMMENT ON TABLE t IS 'It''s \"ours\"'",
        "COMMENT ON COLUMN t.n IS 'how many'",
    )
    schema = one(conn).schema
    assert schema.comment == 'It\'s "ours"'
    assert [column.comment for column in schema.columns] == [None, "how many"]
    kept = schema_from_json(schema_to_json(schema))
    assert (kept.comment, kept.columns[1].comment) == (schema.comment, "how many")
    database.execute("COMMENT ON COLUMN t.n IS 'how many, now'")
    assert one(conn).schema == schema, "a comment is no change of the schema"


def test_types_of_ones_own(database: Database, conn: Connection) -> None:
    publish(
        database,
        "CREATE SCHEMA own",
        "CREATE TYPE own.mood AS ENUM ('a', 'b')",
        "CREATE DOMAIN own.moods AS own.mood[]",
        "CREATE DOMAIN own.more AS own.moods",
        "CREATE TYPE own.pair AS (x int, y int)",
        "CREATE TYPE own.moodrange AS RANGE (subtype = own.mood, multirange_type_name = own.manymoods)",
        "CREATE TABLE t (d own.more, c own.pair, r int4range, m int4multirange, rr own.moodrange, mm own.manymoods,"
        " v int2vector, p point, n name)",
    )
    by_name = {column.name: column.type for column in one(conn).schema.columns}
    more = by_name["d"]
    assert (more.name, more.namespace, more.kind) == ("more", "own", TypeKind.DOMAIN)
    moods = more.element
    assert moods is not None
    assert (moods.name, moods.kind) == ("moods", TypeKind.DOMAIN)
    array = moods.element
    assert array is not None
    assert (array.name, array.kind) == ("_mood", TypeKind.ARRAY)
    mood = array.element
    assert mood is not None
    assert (mood.name, mood.namespace, mood.kind, mood.element) == ("mood", "own", TypeKind.ENUM, None)
    kinds = {name: (found.kind, found.element) for name, found in by_name.items() if name != "d"}
    assert kinds == {
        "c": (TypeKind.COMPOSITE, None),
        "r": (TypeKind.RANGE, builtin(pg_types.INT4)),
        "m": (TypeKind.MULTIRANGE, by_name["r"]),
        "rr": (TypeKind.RANGE, mood),
        "mm": (TypeKind.MULTIRANGE, by_name["rr"]),
        # Not true arrays: they print without braces, or with another delimiter.
        "v": (TypeKind.BASE, None),
        "p": (TypeKind.BASE, None),
        "n": (TypeKind.BASE, None),
    }


def test_every_type_of_postgresql_and_of_its_extensions_is_known(database: Database, conn: Connection) -> None:
    """None is carried as bytes: of the catalog's types, and of those of all extensions that the server has."""
    there = database.execute("SELECT name FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY name")
    for (name,) in there:
        with contextlib.suppress(psycopg.Error):  # some bring what another one has brought, or need a program
            database.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(sql.Identifier(name)))
    oids = [oid for (oid,) in database.execute("SELECT oid::bigint FROM pg_type WHERE typtype <> 'p'")]
    types = _read_types(conn, oids)
    assert len(types) == len(oids) > 500
    assert [found.name for found in types.values() if not is_supported(Column("c", found))] == []


def test_the_attributes_of_composites(database: Database, conn: Connection) -> None:
    """Those there are now, with their modifiers; of one within another, in arrays and domains, and of a row type."""
    publish(
        database,
        "CREATE TYPE pair AS (a numeric(10,2), gone int, b text)",
        "ALTER TYPE pair DROP ATTRIBUTE gone, ADD ATTRIBUTE c varchar(5)",
        "CREATE DOMAIN small AS pair",
        "CREATE TABLE kinds (kind text, pairs small[])",
        "CREATE TABLE t (k kinds, n int)",
    )
    kinds = one(conn).schema.column("k").type
    assert [(column.name, column.type.name) for column in kinds.attributes] == [("kind", "text"), ("pairs", "_small")]
    array = kinds.attributes[1].type
    assert array.element is not None
    pair = array.element.element
    assert pair is not None
    assert [(column.name, format_type(column), column.attnum) for column in pair.attributes] == [
        ("a", "numeric(10,2)", 1),
        ("b", "text", 3),
        ("c", "varchar(5)", 4),
    ]


@pytest.mark.parametrize(("leaf", "identity"), [("FULL", ReplicaIdentity.FULL), ("DEFAULT", ReplicaIdentity.NOTHING)])
def test_full_counts_where_all_partitions_have_it(
    database: Database, conn: Connection, leaf: str, identity: ReplicaIdentity
) -> None:
    publish(
        database,
        "CREATE TABLE t (a int) PARTITION BY RANGE (a)",
        "CREATE TABLE middle PARTITION OF t FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (a)",
        "CREATE TABLE leaf PARTITION OF middle DEFAULT",
        f"ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE leaf REPLICA IDENTITY {leaf}",
    )
    assert one(conn).schema.replica_identity is identity


@pytest.mark.parametrize(
    ("statements", "identity", "key"),
    [
        ([], ReplicaIdentity.DEFAULT, ()),
        (["ALTER TABLE t ADD PRIMARY KEY (b)"], ReplicaIdentity.DEFAULT, ("b",)),
        (["ALTER TABLE t ADD PRIMARY KEY (b) DEFERRABLE"], ReplicaIdentity.DEFAULT, ()),
        (["ALTER TABLE t ADD PRIMARY KEY (b)", "ALTER TABLE t REPLICA IDENTITY FULL"], ReplicaIdentity.FULL, ("b",)),
        (["ALTER TABLE t REPLICA IDENTITY FULL"], ReplicaIdentity.FULL, ()),
        (["ALTER TABLE t ADD PRIMARY KEY (b)", "ALTER TABLE t REPLICA IDENTITY NOTHING"], ReplicaIdentity.NOTHING, ()),
        (
            [
                "ALTER TABLE t ADD PRIMARY KEY (b)",
                "CREATE UNIQUE INDEX u ON t (c, a)",
                "ALTER TABLE t REPLICA IDENTITY USING INDEX u",
            ],
            ReplicaIdentity.INDEX,
            ("a", "c"),
        ),
    ],
)
def test_key_follows_replica_identity(
    database: Database, conn: Connection, statements: list[str], identity: ReplicaIdentity, key: tuple[str, ...]
) -> None:
    publish(database, "CREATE TABLE t (a int NOT NULL, b int NOT NULL, c int NOT NULL)", *statements)
    schema = one(conn).schema
    assert (schema.replica_identity, schema.key) == (identity, key)


def test_column_lists_row_filters_and_generated_columns(database: Database, conn: Connection) -> None:
    if database.server.version_num < 150000:
        pytest.skip("column lists and row filters came with PostgreSQL 15")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int, g int GENERATED ALWAYS AS (a + 1) STORED)")
    database.execute("CREATE TABLE no_key (id int, a int, PRIMARY KEY (id, a))")
    database.execute("CREATE PUBLICATION p FOR TABLE t (b, id) WHERE (b > 3 AND id <> 7), TABLE no_key (a)")
    table = one(conn)
    assert table.schema.column_names == ("id", "b")
    assert table.row_filter == "((b > 3) AND (id <> 7))"
    assert one(conn, "no_key").schema.key == (), "half a key identifies nothing"
    database.execute("ALTER PUBLICATION p SET TABLE t")
    assert one(conn).schema.column_names == ("id", "a", "b")
    if database.server.version_num >= 180000:
        database.execute("ALTER PUBLICATION p SET (publish_generated_columns = stored)")
        assert one(conn).schema.column_names == ("id", "a", "b", "g")


PARTITIONS = (
    "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE SCHEMA old",
    "CREATE TABLE old.t_0 PARTITION OF t FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id)",
    "CREATE TABLE t_1_1 PARTITION OF t_1 FOR VALUES FROM (10) TO (15)",
)


def test_partitions_under_their_root(database: Database, conn: Connection) -> None:
    publish(database, *PARTITIONS)
    (table,) = published_tables(conn, "p")
    assert table.is_partitioned
    assert table.schema.key == ("id",)
    assert table.leaves == (TableName("old", "t_0"), TableName("public", "t_1_1"))


def test_partitions_as_tables_of_their_own(database: Database, conn: Connection) -> None:
    for statement in PARTITIONS:
        database.execute(statement)
    database.execute("CREATE PUBLICATION p FOR TABLE t")
    tables = published_tables(conn, "p")
    assert [str(table.name) for table in tables] == ["old.t_0", "public.t_1_1"]
    assert not any(table.is_partitioned for table in tables)


def test_estimates_come_from_statistics(database: Database, conn: Connection) -> None:
    publish(
        database,
        *PARTITIONS,
        "CREATE TABLE plain (v text)",
        "INSERT INTO t SELECT generate_series(0, 14)",
        "INSERT INTO plain SELECT repeat('x', 1000) FROM generate_series(1, 100)",
        "ANALYZE t, plain",
    )
    assert (one(conn).estimated_rows, one(conn).estimated_bytes) == (15, 2 * 8192)
    assert one(conn, "plain").estimated_rows == 100
    assert one(conn, "plain").estimated_bytes == database.execute("SELECT pg_relation_size('plain')")[0][0]


def test_one_table_as_of_now(database: Database, conn: Connection) -> None:
    publish(database, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE other (id int)")
    table = one(conn)
    table_id = table.schema.table_id
    assert published_table(conn, table_id, "p") == table
    database.execute("ALTER TABLE t ADD COLUMN v text")
    schema = table_schema(conn, table_id)
    assert schema is not None
    assert schema.column_names == ("id", "v")
    database.execute("DROP TABLE t")
    assert table_schema(conn, table_id) is None
    assert table_schema(conn, TableId(4294967295)) is None


def test_a_table_without_columns(database: Database, conn: Connection) -> None:
    publish(database, "CREATE TABLE t ()")
    assert one(conn).schema.columns == ()


def test_a_publication_that_does_not_exist(conn: Connection) -> None:
    with pytest.raises(SourceUnavailable, match='publication "nope" does not exist') as caught:
        published_tables(conn, "nope")
    assert "start again" in (caught.value.hint or "")


def test_a_thousand_tables(database: Database, conn: Connection) -> None:
    database.execute(
        "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a text, b int[])', i);"
        " END LOOP; END $$"
    )
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    tables = published_tables(conn, "p")
    assert len({table.schema.table_id for table in tables}) == 1000
    assert {table.schema.column_names for table in tables} == {("id", "a", "b")}
    assert {table.schema.key for table in tables} == {("id",)}
