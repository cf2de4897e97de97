"""The publication a pipeline reads: found, checked against the configured tables, created when rights allow.

https://www.postgresql.org/docs/current/sql-createpublication.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql

from etl_core.errors import ConfigError, SourceRefused
from etl_core.identifiers import TableName
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_PUBLICATION = """
SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables
FROM pg_catalog.pg_publication WHERE pubname = %s
"""

# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_FIND_TABLES = """
SELECT w.namespace, w.name, c.relkind::text, c.relpersistence::text
FROM unnest(%s::text[], %s::text[]) AS w(namespace, name)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.namespace
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
"""

_PUBLISHED = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_get_publication_tables(%s) p
JOIN pg_catalog.pg_class c ON c.oid = p.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}


@dataclass(frozen=True, slots=True)
class Publication:
    """A row of `pg_publication`: which operations it publishes, and how it names partitions."""

    name: str
    insert: bool
    update: bool
    delete: bool
    truncate: bool
    via_partition_root: bool
    all_tables: bool


def find_publication(conn: Connection, name: str) -> Publication | None:
    """The publication called `name`, None if there is none."""
    try:
        row = conn.execute(_PUBLICATION, (name,)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return Publication(name, *row) if row else None


def publication_oid(conn: Connection, name: str) -> int | None:
    """Tells a publication from one that was created again under its name. None if there is none."""
    try:
        row = conn.execute("SELECT oid::bigint FROM pg_catalog.pg_publication WHERE pubname = %s", (name,)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return row[0] if row else None


def ensure_publication(conn: Connection, name: str, tables: Sequence[TableName] | None) -> bool:
    """Creates the publication for `tables` unless it exists; True if this call created it.

    One that exists is never altered. Raises ConfigError for a table that does not exist or cannot be published, and
    SourceRefused, whose hint is the SQL that mends it, when the publication misses a table or may not be created.
    """
    if check_publication(conn, name, tables) or tables is None:
        return False
    statement = create_statement(conn, name, tables)
    try:
        conn.execute(sql.SQL(statement))  # composed below, of quoted names
    except errors.DuplicateObject:
        _check_coverage(conn, name, tables)
        return False
    except errors.InsufficientPrivilege as error:
        raise SourceRefused(
            f"publication {name} may not be created: {error.diag.message_primary}",
            hint=f"let a superuser or the owner of the tables run: {statement}",
        ) from None
    except psycopg.Error as error:
        raise translate(error) from None
    return True


def check_publication(conn: Connection, name: str, tables: Sequence[TableName] | None) -> bool:
    """Whether the publication exists. Raises what `ensure_publication` raises, but for the right to create it."""
    if tables is not None:
        _check_tables_exist(conn, tables)
    if find_publication(conn, name) is not None:
        _check_coverage(conn, name, tables or ())
        return True
    if not tables:
        raise ConfigError(
            f"publication {name} does not exist, and no tables are configured to create it for",
            field="source.tables",
            hint=f"list the tables, or create it: {create_statement(conn, name, None)}",
        )
    return False


def drop_publication(conn: Connection, name: str) -> bool:
    """Drops the publication; False if there was none."""
    if find_publication(conn, name) is None:
        return False
    try:
        conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise translate(error) from None
    return True


def create_statement(conn: Connection, name: str, tables: Iterable[TableName] | None) -> str:
    """The SQL that creates the publication, for all tables if `tables` is None."""
    if tables is None:
        target: sql.Composable = sql.SQL("ALL TABLES")
    else:
        target = sql.SQL("TABLE {}").format(_table_list(tables))
    statement = sql.SQL("CREATE PUBLICATION {} FOR {} WITH (publish_via_partition_root = true)")
    return statement.format(sql.Identifier(name), target).as_string(conn)


def add_tables_statement(conn: Connection, name: str, tables: Iterable[TableName]) -> str:
    """The SQL that adds tables to the publication."""
    statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
    return statement.format(sql.Identifier(name), _table_list(tables)).as_string(conn)


def unpublished(conn: Connection, name: str, tables: Iterable[TableName]) -> list[TableName]:
    """Those of `tables` that the publication, which exists, does not publish under their own name."""
    try:
        rows = conn.execute(_PUBLISHED, (name,)).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    published = {TableName(*row) for row in rows}
    return [table for table in tables if table not in published]


def _check_coverage(conn: Connection, name: str, tables: Sequence[TableName]) -> None:
    missing = unpublished(conn, name, tables)
    if missing:
        raise SourceRefused(
            f"publication {name} does not publish {_listed(missing)}",
            hint=f"let its owner run: {add_tables_statement(conn, name, missing)}"
            " (a partition is published under its root: configure the root)",
        )


def _check_tables_exist(conn: Connection, tables: Sequence[TableName]) -> None:
    names = ([table.namespace for table in tables], [table.name for table in tables])
    try:
        rows = conn.execute(_FIND_TABLES, names).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    missing = [TableName(row[0], row[1]) for row in rows if row[2] is None]
    if missing:
        raise ConfigError(
            f"the source has no table {_listed(missing)}",
            field="source.tables",
            hint="check the spelling; capitals need double quotes, and a name without a namespace is in public",
        )
    for namespace, name, kind, persistence in rows:
        table = TableName(namespace, name)
        if kind not in ("r", "p"):
            raise ConfigError(
                f"{table} is {_KINDS.get(kind, 'not a table')}, which has no changes to replicate",
                field="source.tables",
                hint="replicate the tables it is made of",
            )
        if persistence != "p":
            raise ConfigError(
                f"table {table} is unlogged, so it leaves nothing in the WAL to replicate",
                field="source.tables",
                hint=f"ALTER TABLE {table} SET LOGGED",
            )


def _table_list(tables: Iterable[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(table.namespace, table.name) for table in tables)


def _listed(tables: Sequence[TableName]) -> str:
    shown = ", ".join(str(table) for table in tables[:5])
    return shown if len(tables) <= 5 else f"{shown} and {len(tables) - 5} more"
