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
from etl_core.source.opening import fetch_opening
from etl_core.source.plan import Harm, left_out, read_plan
from etl_core.source.sqlstate import translate

_PUBLICATION = """
SELECT p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, p.puballtables,
       -- A column of PostgreSQL 18.
       COALESCE(pg_catalog.to_jsonb(p) ->> 'pubgencols' = 's', false)
FROM pg_catalog.pg_publication p WHERE p.pubname = %s
"""

# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_FIND_TABLES = """
SELECT w.namespace, w.name, c.relkind::text, c.relpersistence::text
FROM unnest(%s::text[], %s::text[]) AS w(namespace, name)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.namespace
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
"""

_PUBLISHED = b"""
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_get_publication_tables(%s) p
JOIN pg_catalog.pg_class c ON c.oid = p.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}


@dataclass(frozen=True, slots=True)
class Publication:
    """A row of `pg_publication`: operations, how it names partitions, whether it has the stored generated columns."""

    name: str
    insert: bool
    update: bool
    delete: bool
    truncate: bool
    via_partition_root: bool
    all_tables: bool
    generated: bool = False


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


def ensure_publication(
    conn: Connection, name: str, tables: Sequence[TableName] | None, *, allow_append_only: bool = False
) -> bool:
    """Creates the publication for `tables` unless it exists; True if this call created it.

    One that exists is never altered. Raises ConfigError for a table that does not exist or cannot be published, and
    SourceRefused, whose hint is the SQL that mends it, when the publication misses a table or may not be created, or
    if it would make the source refuse UPDATE and DELETE. With `allow_append_only` it publishes only inserts then.
    """
    if check_publication(conn, name, tables, allow_append_only=allow_append_only) or tables is None:
        return False
    append_only = bool(harms_of_publishing(conn, tables))
    statement = create_statement(conn, name, tables, append_only=append_only)
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


def check_publication(
    conn: Connection, name: str, tables: Sequence[TableName] | None, *, allow_append_only: bool = False
) -> bool:
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
            hint="list the tables, or create it: etl doctor prints the SQL",
        )
    harms = harms_of_publishing(conn, tables)
    if harms and not allow_append_only:
        raise _harmful(name, harms)
    if harms:
        _check_all_append_only(conn, tables)
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


def create_statement(conn: Connection, name: str, tables: Iterable[TableName], *, append_only: bool = False) -> str:
    """The SQL that creates the publication for exactly these tables, without children by inheritance.

    With `append_only` it publishes inserts alone. From PostgreSQL 18 on it publishes stored generated columns.
    """
    options = [sql.SQL("publish_via_partition_root = true")]
    if append_only:
        options.append(sql.SQL("publish = 'insert'"))
    if publishes_generated_by_default(conn):
        options.append(sql.SQL("publish_generated_columns = stored"))
    statement = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})")
    return statement.format(sql.Identifier(name), _table_list(tables), sql.SQL(", ").join(options)).as_string(conn)


def publishes_generated_by_default(conn: Connection) -> bool:
    """Whether a publication of ours would publish stored generated columns: the server can do that since 18."""
    return conn.info.server_version >= 180000


def harms_of_publishing(conn: Connection, tables: Iterable[TableName]) -> list[Harm]:
    """What a publication of ours for `tables` would do harm to, if it published updates and deletes."""
    generated = publishes_generated_by_default(conn)
    return [harm for table in read_plan(conn, tables) for harm in table.harms(conn, publishes_generated=generated)]


def _harmful(name: str, harms: Sequence[Harm]) -> SourceRefused:
    first = harms[0]
    more = f" (and {len(harms) - 1} more tables)" if len(harms) > 1 else ""
    consequence = (
        "the source would refuse every UPDATE and DELETE of it"
        if first.breaks_source
        else "its updates and deletes could not be replicated"
    )
    ways = [f"run: {first.sql}"] if first.sql else ["give it a replica identity of published columns"]
    if first.sql and first.sql.endswith(" FULL"):
        ways = [f"run: {first.sql} (rows are found by all their values then, which costs more the larger the table is)"]
    if "add a primary key" in first.ways:
        ways.insert(0, "add a primary key")
    return SourceRefused(
        f"publication {name} is not created: table {first.relation} {first.why}, and {consequence}{more}",
        hint=f"{', or '.join(ways)}; or take the table out of source.tables (where a pattern matches it, add"
        f" '!{first.relation}'); or set allow_append_only: true, which publishes only inserts (etl doctor lists every"
        " table)",
    )


def _check_all_append_only(conn: Connection, tables: Sequence[TableName]) -> None:
    """A publication has one list of operations: tables with a key would silently lose their updates."""
    keyed = [
        table.name
        for table in read_plan(conn, tables)
        if table.has_key and not table.harms(conn, publishes_generated=publishes_generated_by_default(conn))
    ]
    if keyed:
        raise SourceRefused(
            "allow_append_only publishes only inserts, so updates and deletes of the tables that have a key would be"
            f" missing: {_listed(keyed)}",
            hint="replicate the tables without a key in a pipeline and publication of their own",
        )


def told_left_out(conn: Connection, name: str, tables: Sequence[TableName]) -> list[str]:
    """What of these tables the publication, or the one that is to be created, leaves out: a sentence each."""
    publication = find_publication(conn, name)
    generated = publishes_generated_by_default(conn) if publication is None else publication.generated
    return left_out(conn, read_plan(conn, tables, name), publishes_generated=generated)


def told_harms(conn: Connection, name: str, tables: Iterable[TableName], *, only_refused: bool = False) -> list[str]:
    """What the publication, if it exists, does to changes of these tables, which it publishes: a sentence each.

    `only_refused`: where the source refuses them.
    """
    publication = find_publication(conn, name)
    if publication is None:
        return []
    sentences = []
    for table in read_plan(conn, tables, name):
        for harm in table.harms(conn, publishes_generated=publication.generated):
            if only_refused and not (harm.breaks_source and (publication.update or publication.delete)):
                continue
            if not (publication.update or publication.delete):
                sentences.append(f"{harm.relation} {harm.why}: only its inserts are replicated")
            elif harm.breaks_source:
                sentences.append(
                    f"UNSAFE: table {harm.relation} {harm.why}, so the source refuses its UPDATE and DELETE while"
                    f" publication {name} publishes it (etl doctor prints the SQL)"
                )
            else:
                sentences.append(f"table {harm.relation} {harm.why}: its first update or delete stops it")
    return sentences


def add_tables_statement(conn: Connection, name: str, tables: Iterable[TableName]) -> str:
    """The SQL that adds tables to the publication."""
    statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
    return statement.format(sql.Identifier(name), _table_list(tables)).as_string(conn)


def published_names(conn: Connection, name: str) -> list[TableName]:
    """What the publication, which exists, publishes, under the names it does."""
    return [TableName(*row) for row in fetch_opening(conn, _PUBLISHED, (name,))]


def unpublished(conn: Connection, name: str, tables: Iterable[TableName]) -> list[TableName]:
    """Those of `tables` that the publication, which exists, does not publish under their own name."""
    published = set(published_names(conn, name))
    return [table for table in tables if table not in published]


def _check_coverage(conn: Connection, name: str, tables: Sequence[TableName]) -> None:
    missing = unpublished(conn, name, tables)
    if missing:
        harmed = {harm.relation for harm in harms_of_publishing(conn, missing)}
        raise SourceRefused(
            f"publication {name} does not publish {_listed(missing)}",
            hint="some of them have no usable replica identity, so adding them can make the source refuse UPDATE and"
            " DELETE: etl doctor prints the SQL"
            if harmed
            else f"let its owner run: {add_tables_statement(conn, name, missing)}"
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
    return sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(sql.Identifier(table.namespace, table.name)) for table in tables
    )


def _listed(tables: Sequence[TableName]) -> str:
    shown = ", ".join(str(table) for table in tables[:5])
    return shown if len(tables) <= 5 else f"{shown} and {len(tables) - 5} more"
