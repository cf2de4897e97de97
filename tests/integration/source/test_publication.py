"""Publications: created when rights allow, else the SQL that a person has to run."""

from __future__ import annotations

import pytest
from psycopg import sql

from etl_core.errors import ConfigError, SourceRefused
from etl_core.identifiers import TableName
from etl_core.source.catalog import published_tables
from etl_core.source.connection import Connection
from etl_core.source.publication import drop_publication, ensure_publication, find_publication
from etl_core.testing.database import Database

ORDERS, ODD = TableName("public", "orders"), TableName("odd schema", 'Odd "Table"')


@pytest.fixture
def tables(database: Database) -> list[TableName]:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute('CREATE SCHEMA "odd schema"')
    database.execute('CREATE TABLE "odd schema"."Odd ""Table""" (id int PRIMARY KEY)')
    return [ORDERS, ODD]


def test_created_once_then_found_then_dropped(conn: Connection, tables: list[TableName]) -> None:
    assert find_publication(conn, "Shop pub") is None
    assert ensure_publication(conn, "Shop pub", tables)
    assert not ensure_publication(conn, "Shop pub", tables)
    assert not ensure_publication(conn, "Shop pub", None)
    publication = find_publication(conn, "Shop pub")
    assert publication is not None
    assert publication.insert
    assert publication.update
    assert publication.delete
    assert publication.truncate
    assert publication.via_partition_root
    assert not publication.all_tables
    assert [table.name for table in published_tables(conn, "Shop pub")] == [ODD, ORDERS]
    assert drop_publication(conn, "Shop pub")
    assert not drop_publication(conn, "Shop pub")


UNSAFE = {
    "no key": "CREATE TABLE x (v text)",
    "nothing": "CREATE TABLE x (v text PRIMARY KEY); ALTER TABLE x REPLICA IDENTITY NOTHING",
    "deferrable": "CREATE TABLE x (v text PRIMARY KEY DEFERRABLE)",
    "leaf": "CREATE TABLE x (v text PRIMARY KEY) PARTITION BY LIST (v); CREATE TABLE leaf PARTITION OF x DEFAULT;"
    " ALTER TABLE leaf REPLICA IDENTITY NOTHING",
}


@pytest.mark.parametrize("create", UNSAFE.values(), ids=list(UNSAFE))
def test_the_source_goes_on_accepting_updates(database: Database, conn: Connection, create: str) -> None:
    for statement in create.split(";"):
        database.execute(statement)
    database.execute("INSERT INTO x VALUES ('a')")
    wanted = [TableName("public", "x")]
    with pytest.raises(SourceRefused, match="is not created"):
        ensure_publication(conn, "p", wanted)
    assert find_publication(conn, "p") is None
    assert ensure_publication(conn, "p", wanted, allow_append_only=True)
    publication = find_publication(conn, "p")
    assert publication is not None
    assert (publication.insert, publication.update, publication.delete) == (True, False, False)
    database.execute("UPDATE x SET v = 'b'")
    database.execute("DELETE FROM x")


def test_append_only_is_never_for_tables_with_a_key(database: Database, conn: Connection) -> None:
    database.execute("CREATE TABLE log (v text)")
    database.execute("CREATE TABLE good (id int PRIMARY KEY)")
    wanted = [TableName("public", "log"), TableName("public", "good")]
    with pytest.raises(SourceRefused, match=r"would be missing: public\.good"):
        ensure_publication(conn, "p", wanted, allow_append_only=True)
    assert find_publication(conn, "p") is None


def test_children_by_inheritance_are_not_published(database: Database, conn: Connection) -> None:
    database.execute("CREATE TABLE parent (id int PRIMARY KEY)")
    database.execute("CREATE TABLE child () INHERITS (parent)")
    assert ensure_publication(conn, "p", [TableName("public", "parent")])
    database.execute("INSERT INTO child VALUES (1)")
    database.execute("UPDATE parent SET id = 2")


def test_without_tables_there_is_nothing_to_create(conn: Connection) -> None:
    with pytest.raises(ConfigError) as caught:
        ensure_publication(conn, "p", None)
    assert "list the tables" in (caught.value.hint or "")


def test_a_table_that_is_not_published_comes_with_the_sql(
    database: Database, conn: Connection, tables: list[TableName]
) -> None:
    database.execute("CREATE PUBLICATION p FOR TABLE orders")
    with pytest.raises(SourceRefused, match="does not publish") as caught:
        ensure_publication(conn, "p", tables)
    statement = (caught.value.hint or "").partition(": ")[2].partition(" (")[0]
    assert statement == 'ALTER PUBLICATION "p" ADD TABLE ONLY "odd schema"."Odd ""Table"""'
    database.execute(statement)
    assert not ensure_publication(conn, "p", tables)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELECT 1", "the source has no table public.x"),
        ("CREATE VIEW x AS SELECT 1 AS id", "public.x is a view"),
        ("CREATE UNLOGGED TABLE x (id int PRIMARY KEY)", "table public.x is unlogged"),
    ],
)
def test_what_cannot_be_published(database: Database, conn: Connection, statement: str, message: str) -> None:
    database.execute(statement)
    with pytest.raises(ConfigError, match=message):
        ensure_publication(conn, "p", [TableName("public", "x")])
    assert find_publication(conn, "p") is None


def test_a_partition_is_published_under_its_root(database: Database, conn: Connection) -> None:
    database.execute("CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10)")
    assert ensure_publication(conn, "p", [TableName("public", "root")])
    with pytest.raises(SourceRefused, match=r"public\.leaf") as caught:
        ensure_publication(conn, "p", [TableName("public", "leaf")])
    assert "configure the root" in (caught.value.hint or "")


def test_without_rights_the_sql_is_for_somebody_else(
    database: Database, conn: Connection, tables: list[TableName]
) -> None:
    role = f"role_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        with pytest.raises(SourceRefused, match="may not be created") as caught:
            ensure_publication(conn, "p", tables)
    finally:
        database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    database.execute((caught.value.hint or "").partition("run: ")[2])
    assert [table.name for table in published_tables(conn, "p")] == [ODD, ORDERS]
