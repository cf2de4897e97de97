"""The preflight of publication and tables: coverage, operations, keys, and the rights to read every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from etl_core.identifiers import TableName
from etl_core.schema.arrow import is_supported
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import ReplicaIdentity
from etl_core.source.catalog import PublishedTable, published_tables
from etl_core.source.connection import Connection
from etl_core.source.finding import Finding, Severity
from etl_core.source.publication import (
    Publication,
    add_tables_statement,
    create_statement,
    find_publication,
    unpublished,
)
from etl_core.source.server import ServerInfo
from etl_core.source.sqlstate import translate

_SHOWN = 10
"""Findings of one kind are listed for so many tables; the rest is counted."""

# A unique index that can serve as replica identity: whole, immediate, of columns that are never NULL.
# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_FACTS = """
SELECT w.namespace, w.name,
       c.relkind::text,
       c.relpersistence::text,
       c.relreplident::text,
       EXISTS (SELECT FROM pg_catalog.pg_index i
               WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND i.indimmediate),
       (SELECT ic.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
          AND i.indexprs IS NULL
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                          WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)
        ORDER BY i.indnatts, ic.relname LIMIT 1),
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.row_security_active(c.oid),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       EXISTS (SELECT FROM pg_catalog.pg_partition_tree(CASE WHEN c.relkind = 'p' THEN c.oid END) t
               JOIN pg_catalog.pg_class l ON l.oid = t.relid
               WHERE t.isleaf AND l.relreplident <> c.relreplident)
FROM unnest(%s::text[], %s::text[]) AS w(namespace, name)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.namespace
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
"""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the catalog says of a table's name; `kind` None if there is no such table."""

    name: TableName
    kind: str | None
    persistence: str
    identity: str
    has_primary_key: bool
    unique_index: str | None
    may_use_namespace: bool
    may_select: bool
    hides_rows: bool
    is_owner: bool
    leaves_differ: bool

    @property
    def is_table(self) -> bool:
        return self.kind in ("r", "p")

    @property
    def is_identified(self) -> bool:
        identity = ReplicaIdentity(self.identity)
        return identity is ReplicaIdentity.INDEX or (identity is not ReplicaIdentity.NOTHING and self.has_primary_key)


def examine_tables(
    conn: Connection, info: ServerInfo, name: str, tables: Sequence[TableName] | None
) -> Iterator[Finding]:
    """Findings about the publication called `name` and about `tables`, by default those it publishes."""
    publication = find_publication(conn, name)
    published = published_tables(conn, name) if publication else []
    wanted = list(tables) if tables is not None else [table.name for table in published]
    facts = _read_facts(conn, wanted)
    existing = [fact for fact in facts if fact.is_table]
    if publication is None:
        yield from _check_creation(conn, info, name, existing if tables is not None else None)
    else:
        yield from _check_publication(conn, publication, published)
        yield from _check_coverage(conn, publication, [fact.name for fact in existing])
    for fact in facts:
        yield from _check_kind(conn, fact)
    findings = [finding for fact in existing for finding in _check_table(conn, info, fact, publication)]
    yield from _shortened(findings)
    yield from _check_types([table for table in published if table.name in set(wanted)])
    if existing and not findings:
        yield Finding(Severity.OK, "tables", f"{len(existing)} tables can be read and identified by a key")


def _read_facts(conn: Connection, tables: Sequence[TableName]) -> list[_Facts]:
    names = ([table.namespace for table in tables], [table.name for table in tables])
    try:
        rows = conn.execute(_FACTS, names).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return [_Facts(TableName(row[0], row[1]), *row[2:]) for row in rows]


def _check_creation(
    conn: Connection, info: ServerInfo, name: str, tables: Sequence[_Facts] | None
) -> Iterator[Finding]:
    if tables is None:
        message = f"publication {name} does not exist, and no tables are configured to create it for"
        yield Finding(Severity.UNSAFE, "publication", message, create_statement(conn, name, None))
        return
    statement = create_statement(conn, name, [table.name for table in tables])
    foreign = [table.name for table in tables if not table.is_owner]
    row = conn.execute("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')").fetchone()
    if tables and not foreign and row is not None and row[0]:
        yield Finding(Severity.OK, "publication", f"publication {name} does not exist yet; it is created when needed")
        return
    lacking = f"does not own {foreign[0]}" if foreign else f"lacks CREATE on database {info.database}"
    message = f"publication {name} does not exist and {info.user} may not create it: it {lacking}"
    yield Finding(Severity.UNSAFE, "publication", message, statement if tables else None)


def _check_publication(
    conn: Connection, publication: Publication, published: Sequence[PublishedTable]
) -> Iterator[Finding]:
    name = sql.Identifier(publication.name)
    missing = [
        operation for operation in ("insert", "update", "delete", "truncate") if not getattr(publication, operation)
    ]
    if missing:
        publish = sql.SQL("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')").format(name)
        message = (
            f"publication {publication.name} does not publish {', '.join(missing)}: the destination never sees them"
        )
        yield Finding(Severity.WARNING, "publication", message, publish.as_string(conn))
    if not published:
        message = f"publication {publication.name} publishes no table"
        yield Finding(Severity.WARNING, "publication", message)
    elif not missing:
        message = f"publication {publication.name} publishes {len(published)} tables"
        yield Finding(Severity.OK, "publication", message)
    if not publication.via_partition_root and _has_partitions(conn, published):
        root = sql.SQL("ALTER PUBLICATION {} SET (publish_via_partition_root = true)").format(name)
        message = (
            f"publication {publication.name} publishes partitions as tables of their own;"
            " change it before the first copy if the destination shall have one table"
        )
        yield Finding(Severity.NOTE, "publication", message, root.as_string(conn))


def _has_partitions(conn: Connection, published: Sequence[PublishedTable]) -> bool:
    oids = [int(table.schema.table_id) for table in published]
    query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = ANY (%s) AND relispartition)"
    row = conn.execute(query, (oids,)).fetchone()
    return row is not None and bool(row[0])


def _check_coverage(conn: Connection, publication: Publication, tables: Sequence[TableName]) -> Iterator[Finding]:
    missing = unpublished(conn, publication.name, tables)
    if missing:
        yield Finding(
            Severity.UNSAFE,
            "publication",
            f"publication {publication.name} does not publish {', '.join(map(str, missing[:_SHOWN]))}"
            + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""),
            add_tables_statement(conn, publication.name, missing),
        )


def _check_kind(conn: Connection, table: _Facts) -> Iterator[Finding]:
    if table.kind is None:
        yield Finding(Severity.UNSAFE, "tables", f"the source has no table {table.name}")
    elif not table.is_table:
        yield Finding(Severity.UNSAFE, "tables", f"{table.name} is not a table, so it has no changes to replicate")
    elif table.persistence != "p":
        statement = sql.SQL("ALTER TABLE {} SET LOGGED").format(_identifier(table.name))
        message = f"table {table.name} is unlogged or temporary: its changes are not in the WAL"
        yield Finding(Severity.UNSAFE, "tables", message, statement.as_string(conn))


def _check_table(
    conn: Connection, info: ServerInfo, table: _Facts, publication: Publication | None
) -> Iterator[Finding]:
    user = sql.Identifier(info.user)
    if not table.may_use_namespace:
        grant = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(table.name.namespace), user)
        message = f"{info.user} may not use schema {table.name.namespace} of table {table.name}"
        yield Finding(Severity.UNSAFE, "rights", message, grant.as_string(conn))
    if not table.may_select:
        grant = sql.SQL("GRANT SELECT ON {} TO {}").format(_identifier(table.name), user)
        message = f"{info.user} may not read table {table.name}, so it cannot be copied"
        yield Finding(Severity.UNSAFE, "rights", message, grant.as_string(conn))
    if table.hides_rows:
        bypass = sql.SQL("ALTER ROLE {} BYPASSRLS").format(user)
        message = f"row-level security of table {table.name} would hide rows from {info.user}, so the copy is refused"
        yield Finding(Severity.UNSAFE, "row_security", message, bypass.as_string(conn))
    yield from _check_identity(conn, table, publication)


def _check_identity(conn: Connection, table: _Facts, publication: Publication | None) -> Iterator[Finding]:
    if table.leaves_differ:
        yield Finding(
            Severity.WARNING,
            "replica_identity",
            f"partitions of table {table.name} have another replica identity than the table; give them the same",
        )
    if table.is_identified:
        return
    changes_published = publication is None or publication.update or publication.delete
    if ReplicaIdentity(table.identity) is ReplicaIdentity.FULL:
        consequence = "inserts are appended, and an update or delete stops the table"
    elif changes_published:
        consequence = "the source refuses every UPDATE and DELETE of it as soon as it is published"
    else:
        consequence = "only inserts are replicated"
    nothing = ReplicaIdentity(table.identity) is ReplicaIdentity.NOTHING
    what = "has replica identity NOTHING" if nothing else "has no primary key or replica identity index"
    statement = _identity_statement(conn, table)
    advice = "" if statement else "; add a primary key, or take the table out of the publication"
    yield Finding(
        Severity.UNSAFE if nothing and changes_published else Severity.WARNING,
        "replica_identity",
        f"table {table.name} {what}: {consequence}{advice}",
        statement,
    )


def _identity_statement(conn: Connection, table: _Facts) -> str | None:
    if table.has_primary_key:
        statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY DEFAULT").format(_identifier(table.name))
    elif table.unique_index is not None:
        statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(
            _identifier(table.name), sql.Identifier(table.unique_index)
        )
    else:
        return None  # only a person knows what identifies a row
    return statement.as_string(conn)


def _check_types(tables: Sequence[PublishedTable]) -> Iterator[Finding]:
    raw = [
        f"{table.name}.{column.name} ({format_type(column)})"
        for table in tables
        for column in table.schema.columns
        if not is_supported(column)
    ]
    if raw:
        shown = ", ".join(raw[:_SHOWN]) + (f" and {len(raw) - _SHOWN} more" if len(raw) > _SHOWN else "")
        yield Finding(Severity.NOTE, "types", f"these columns are carried as the bytes of their text: {shown}")


def _shortened(findings: Sequence[Finding]) -> Iterator[Finding]:
    """At most `_SHOWN` findings of a check and severity, then how many more: 1,000 tables may lack the same grant."""
    counts: dict[tuple[str, Severity], int] = {}
    for finding in findings:
        kind = (finding.check, finding.severity)
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= _SHOWN:
            yield finding
    for (check, severity), count in counts.items():
        if count > _SHOWN:
            yield Finding(severity, check, f"the same holds for {count - _SHOWN} more tables")


def _identifier(name: TableName) -> sql.Identifier:
    return sql.Identifier(name.namespace, name.name)
