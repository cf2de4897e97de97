"""Tables that were replicated and that the source no longer offers: dropped, renamed, not published any more.

At the first start such a table is a mistake in the configuration and is refused (`publication.check_publication`).
Later it is the matter of that table alone, and the others go on.
"""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from etl_core.errors import TableAbsent
from etl_core.identifiers import TableId, TableName
from etl_core.source.connection import Connection
from etl_core.source.publication import add_tables_statement, find_publication, unpublished
from etl_core.source.sqlstate import translate

# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_BY_NAME = """
SELECT w.namespace, w.name
FROM unnest(%s::text[], %s::text[]) AS w(namespace, name)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.namespace
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
"""
_BY_ID = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%s::oid[])
"""


def permanent_tables(conn: Connection, names: Collection[TableName]) -> set[TableName]:
    """Those of `names` that a permanent table has now."""
    try:
        rows = conn.execute(_BY_NAME, ([t.namespace for t in names], [t.name for t in names])).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return {TableName(*row) for row in rows}


def names_now(conn: Connection, tables: Collection[TableId]) -> dict[TableId, TableName]:
    """What tables are called; one that was dropped has no name."""
    try:
        rows = conn.execute(_BY_ID, ([int(table) for table in tables],)).fetchall() if tables else []
    except psycopg.Error as error:
        raise translate(error) from None
    return {TableId(row[0]): TableName(*row[1:]) for row in rows}


def find_absent(conn: Connection, publication: str, tables: Collection[TableName]) -> dict[TableName, TableAbsent]:
    """Those of `tables` that cannot be replicated now, with the reason.

    Two queries for all tables. A publication that does not exist publishes none of them, which is not for this function
    to say: only what is not a permanent table of that name is absent then.
    """
    names = list(tables)
    there = permanent_tables(conn, names)
    absent = {table: missing(table) for table in names if table not in there}
    present = [table for table in names if table in there]
    if find_publication(conn, publication) is not None:
        for table in unpublished(conn, publication, present):
            absent[table] = TableAbsent(
                f"{table} is no longer published by {publication}, so its changes do not arrive",
                table=str(table),
                hint=f"let the owner of the publication run: {add_tables_statement(conn, publication, [table])}; "
                "the table is copied again then (a partition is published under its root: configure the root)",
            )
    return absent


def missing(table: TableName) -> TableAbsent:
    """The error of a table that is not there under its name."""
    return TableAbsent(
        f"the source has no table {table} any more: it was dropped, or is no longer a permanent table; the destination"
        " keeps the rows it has",
        table=str(table),
        hint="take it out of source.tables; if it is created again, it is copied again",
    )


def left_out(table: TableName, now_called: TableName) -> TableAbsent:
    """The error of a table that the configuration leaves out by its name of now."""
    return TableAbsent(
        f"{table} is called {now_called} at the source now, which source.tables leaves out; the destination keeps its"
        f" rows as {table}",
        table=str(table),
        hint=f"write {now_called} in source.tables, or take out what leaves it out; it is copied again then",
    )
