"""The preflight of publication and tables: coverage, operations, keys, and the rights to read every row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import psycopg
from psycopg import sql

from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_core.source.catalog import PublishedTable, published_tables
from etl_core.source.connection import Connection
from etl_core.source.finding import Finding, Severity
from etl_core.source.plan import Harm, TablePlan, left_out, read_plan, rows_left_out
from etl_core.source.publication import (
    Publication,
    add_tables_statement,
    create_statement,
    find_publication,
    harms_of_publishing,
    publishes_generated_by_default,
    unpublished,
)
from etl_core.source.selected import all_tables, selected_tables, selected_unpublished, told_unpublished
from etl_core.source.server import ServerInfo
from etl_core.source.sqlstate import translate
from etl_core.table_pattern import TableSelection
from etl_core.values.arrow import is_supported

_SHOWN = 10
"""Findings of one kind are listed for so many tables; the rest is counted."""

# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_FACTS = """
SELECT w.namespace, w.name,
       c.relkind::text,
       c.relpersistence::text,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.row_security_active(c.oid),
       pg_catalog.pg_has_role(c.relowner, 'USAGE')
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
    may_use_namespace: bool
    may_select: bool
    hides_rows: bool
    is_owner: bool

    @property
    def is_table(self) -> bool:
        return self.kind in ("r", "p")


NamesNow: TypeAlias = Callable[[Connection, Sequence[TableName]], Sequence[TableName]]


def as_selected(_: Connection, tables: Sequence[TableName]) -> Sequence[TableName]:
    """For a pipeline of which nothing is known: no table is followed under another name."""
    return tables


def examine_tables(
    conn: Connection,
    info: ServerInfo,
    name: str,
    selection: TableSelection | None,
    *,
    allow_append_only: bool = False,
    names_now: NamesNow = as_selected,
) -> Iterator[Finding]:
    """Findings about the publication called `name` and about the tables selected, by default those it publishes."""
    tables = selected_tables(conn, name, selection)
    if tables is not None:
        tables = tuple(names_now(conn, tables))
    publication = find_publication(conn, name)
    published = published_tables(conn, name) if publication else []
    wanted = list(tables) if tables is not None else [table.name for table in published]
    facts = _read_facts(conn, wanted)
    existing = [fact for fact in facts if fact.is_table]
    if publication is None:
        yield from _check_creation(
            conn, info, name, existing if tables is not None else None, allow_append_only=allow_append_only
        )
    else:
        yield from _check_publication(conn, publication, published)
        yield from _check_coverage(conn, publication, [fact.name for fact in existing])
        yield from _check_left(conn, publication, selection)
    for fact in facts:
        yield from _check_kind(conn, fact)
    # The source refuses updates of every table that is published, replicated or not.
    plan = read_plan(conn, {*(fact.name for fact in existing), *(table.name for table in published)}, name)
    findings = [finding for fact in existing for finding in _check_table(conn, info, fact)]
    findings += _check_identity(
        conn, plan, publication, {table.name for table in published}, allow_append_only=allow_append_only
    )
    findings += _check_left_out(conn, [table for table in plan if table.name in set(wanted)], publication)
    yield from _shortened(findings)
    yield from _check_types([table for table in published if table.name in set(wanted)])
    if existing and all(finding.severity is Severity.NOTE for finding in findings):
        yield Finding(Severity.OK, "tables", f"{len(existing)} tables can be read, and their rows be told apart")


def _read_facts(conn: Connection, tables: Sequence[TableName]) -> list[_Facts]:
    names = ([table.namespace for table in tables], [table.name for table in tables])
    try:
        rows = conn.execute(_FACTS, names).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return [_Facts(TableName(row[0], row[1]), *row[2:]) for row in rows]


def _check_creation(
    conn: Connection,
    info: ServerInfo,
    name: str,
    tables: Sequence[_Facts] | None,
    *,
    allow_append_only: bool,
) -> Iterator[Finding]:
    if tables is None:
        safe = _safe_tables(conn, all_tables(conn))
        message = (
            f"publication {name} does not exist, and no tables are configured to create it for;"
            f" {len(safe)} tables of the database can be published without harm"
        )
        yield Finding(Severity.UNSAFE, "publication", message, create_statement(conn, name, safe) if safe else None)
        return
    harms = harms_of_publishing(conn, [table.name for table in tables])
    if harms and not allow_append_only:
        # In the suggested SQL there is only what leaves the source working.
        harmless = _safe_tables(conn, [table.name for table in tables])
        tables = [table for table in tables if table.name in set(harmless)]
    if not tables:
        return  # why none can be published is said of each
    statement = create_statement(
        conn, name, [table.name for table in tables], append_only=bool(harms) and allow_append_only
    )
    foreign = [table.name for table in tables if not table.is_owner]
    row = conn.execute("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')").fetchone()
    if not foreign and row is not None and row[0]:
        yield Finding(Severity.OK, "publication", f"publication {name} does not exist yet; it is created when needed")
        return
    lacking = f"does not own {foreign[0]}" if foreign else f"lacks CREATE on database {info.database}"
    message = f"publication {name} does not exist and {info.user} may not create it: it {lacking}"
    yield Finding(Severity.UNSAFE, "publication", message, statement)


def _safe_tables(conn: Connection, tables: Sequence[TableName]) -> list[TableName]:
    generated = publishes_generated_by_default(conn)
    return [table.name for table in read_plan(conn, tables) if not table.harms(conn, publishes_generated=generated)]


def _check_left_out(conn: Connection, plan: Sequence[TablePlan], publication: Publication | None) -> Iterator[Finding]:
    """What of the tables does not arrive. A partition that is lost stops its table's copy."""
    generated = publishes_generated_by_default(conn) if publication is None else publication.generated
    lost = [table for table in plan if table.lost_partitions]
    unsafe = {sentence for table in lost for sentence in rows_left_out(table)}
    for sentence in left_out(conn, plan, publishes_generated=generated):
        yield Finding(Severity.UNSAFE if sentence in unsafe else Severity.NOTE, "left_out", sentence)


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
    safe = _safe_tables(conn, missing)
    if missing:
        yield Finding(
            Severity.UNSAFE,
            "publication",
            f"publication {publication.name} does not publish {', '.join(map(str, missing[:_SHOWN]))}"
            + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""),
            add_tables_statement(conn, publication.name, safe) if safe else None,
        )


def _check_left(conn: Connection, publication: Publication, selection: TableSelection | None) -> Iterator[Finding]:
    """Tables that the patterns match, of which the publication does not know."""
    left = selected_unpublished(conn, publication.name, selection)
    if left:
        safe = _safe_tables(conn, left)
        yield Finding(
            Severity.WARNING,
            "publication",
            told_unpublished(left, publication.name),
            add_tables_statement(conn, publication.name, safe) if safe else None,
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


def _check_table(conn: Connection, info: ServerInfo, table: _Facts) -> Iterator[Finding]:
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


def _check_identity(
    conn: Connection,
    plan: Sequence[TablePlan],
    publication: Publication | None,
    published: Collection[TableName],
    *,
    allow_append_only: bool,
) -> Iterator[Finding]:
    """Where the source would refuse UPDATE and DELETE, or the destination could not follow them."""
    generated = publishes_generated_by_default(conn) if publication is None else publication.generated
    changes_published = (not allow_append_only) if publication is None else publication.update or publication.delete
    for table in plan:
        harms = table.harms(conn, publishes_generated=generated)
        for harm in harms:
            publishes_it = publication if table.name in published else None
            yield _harm_finding(harm, publishes_it, changes_published=changes_published)
        if harms:
            continue
        if len({one.identity for one in table.relations if not one.is_child and one.kind in ("r", "p")}) > 1:
            yield Finding(
                Severity.WARNING,
                "replica_identity",
                f"partitions of table {table.name} have another replica identity than the table; give them the same",
            )
        if table.is_multiset:
            yield Finding(
                Severity.NOTE,
                "replica_identity",
                f"table {table.name} has no key: with replica identity FULL its rows are found by all their values,"
                " which reads the whole table in the destination for each batch with updates or deletes (a primary key"
                " costs less)",
            )
        elif not table.has_key:
            yield Finding(
                Severity.WARNING,
                "replica_identity",
                f"table {table.name} has no primary key or replica identity index, and not all of it has replica"
                " identity FULL: inserts are appended, and an update or delete stops the table",
            )


def _harm_finding(harm: Harm, publication: Publication | None, *, changes_published: bool) -> Finding:
    if not changes_published:
        message = f"table {harm.relation} {harm.why}: only inserts are replicated"
        return Finding(Severity.WARNING, "replica_identity", message, harm.sql)
    if not harm.breaks_source:
        consequence = "its updates and deletes cannot be replicated"
    elif publication is None:
        consequence = "the source would refuse every UPDATE and DELETE of it as soon as it is published"
    else:
        consequence = f"the source refuses every UPDATE and DELETE of it while {publication.name} publishes it"
    ways = [*harm.ways]
    ways += ["take it out of the publication", "have the publication publish inserts only (allow_append_only: true)"]
    message = f"table {harm.relation} {harm.why}: {consequence}; {', or '.join(ways)}"
    return Finding(Severity.UNSAFE, "replica_identity", message, harm.sql)


def _check_types(tables: Sequence[PublishedTable]) -> Iterator[Finding]:
    raw = [
        f"{table.name}.{column.name} ({format_type(column)})"
        for table in tables
        for column in table.schema.columns
        if not is_supported(column)
    ]
    if raw:
        shown = ", ".join(raw[:_SHOWN]) + (f" and {len(raw) - _SHOWN} more" if len(raw) > _SHOWN else "")
        yield Finding(Severity.NOTE, "types", f"these columns have types that are not known (types.unknown): {shown}")


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
