"""The plan: what of each table will not arrive, and where publishing it would make the source refuse writes.

PostgreSQL refuses UPDATE and DELETE of a published table that has no replica identity, or whose publication's column
list leaves a column of that out or whose row filter looks at another column. PostgreSQL 18 refuses them also where the
identity holds a generated column that is not published, and with REPLICA IDENTITY FULL beside such a column.
What counts is the relation that holds the row: for a partitioned table each partition.
https://www.postgresql.org/docs/current/logical-replication-publication.html#LOGICAL-REPLICATION-PUBLICATION-REPLICA-IDENTITY

Everything is read from the catalog without a lock on the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from etl_core.errors import SourceUnavailable
from etl_core.identifiers import TableName
from etl_core.schema.table import ReplicaIdentity
from etl_core.source.connection import Connection
from etl_core.source.restrictions import Restriction, Restrictions, read_filter, read_restrictions
from etl_core.source.sqlstate import translate

_SHOWN = 5
_GENERATED_CAN_BE_PUBLISHED = 180000

# Children by inheritance and partitions, at any depth. pg_partition_tree would lock every partition.
# `unnest` takes several arrays only under its bare name; search_path is empty, so that is pg_catalog's.
_RELATIONS = """
WITH RECURSIVE tree(root, oid, by_inheritance) AS (
    SELECT c.oid, c.oid, false
    FROM unnest(%(namespaces)s::text[], %(names)s::text[]) AS w(namespace, name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.namespace
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
    UNION
    SELECT tree.root, i.inhrelid, tree.by_inheritance OR NOT c.relispartition
    FROM tree
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
)
SELECT rn.nspname::text, r.relname::text, n.nspname::text, c.relname::text,
       c.relkind::text, c.relpersistence::text, c.relreplident::text,
       tree.by_inheritance,
       identity.columns,
       COALESCE(primary_key.is_plain, false),
       (SELECT ic.relname::text
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
          AND i.indexprs IS NULL
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                          WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
                            AND (NOT a.attnotnull OR a.attgenerated <> ''))
        ORDER BY i.indnatts, ic.relname LIMIT 1),
       special.stored, special.virtual, special.large_objects, special.columns,
       r.oid::bigint, c.oid::bigint
FROM tree
JOIN pg_catalog.pg_class r ON r.oid = tree.root
JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS columns
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END
) identity ON true
LEFT JOIN LATERAL (
    SELECT pg_catalog.bool_and(a.attgenerated = '') AS is_plain
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND i.indisprimary
) primary_key ON true
LEFT JOIN LATERAL (
    SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = 's') AS stored,
           pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = 'v') AS virtual,
           pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
               FILTER (WHERE t.typname = 'lo' OR t.oid = 'pg_catalog.oid'::pg_catalog.regtype) AS large_objects,
           pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS columns
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) special ON true
WHERE c.relpersistence <> 't'
ORDER BY 1, 2, c.oid <> r.oid, 3, 4
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, or a partition or child of it, as the catalog describes it.

    `key` are the columns of its replica identity's index (of the primary key with FULL), empty without one. `by_index`
    names a unique index that could serve as replica identity. `has_plain_primary_key`: one without generated columns.
    `restriction` is what the publication that was asked about leaves out of it.
    """

    name: TableName
    kind: str
    persistence: str
    identity: ReplicaIdentity
    is_child: bool
    key: tuple[str, ...]
    has_plain_primary_key: bool
    by_index: str | None
    stored: tuple[str, ...]
    virtual: tuple[str, ...]
    large_objects: tuple[str, ...]
    columns: tuple[str, ...]
    restriction: Restriction | None

    def unpublished(self, *, publishes_generated: bool) -> tuple[str, ...]:
        """Columns that do not arrive. `publishes_generated`: the publication has stored ones where it lists none."""
        if self.restriction is not None and self.restriction.columns is not None:
            return tuple(name for name in self.columns if name not in self.restriction.columns)
        return self.virtual if publishes_generated else (*self.stored, *self.virtual)


@dataclass(frozen=True, slots=True)
class Harm:
    """A relation whose updates and deletes cannot be replicated.

    `breaks_source`: the source refuses them while they are published. `sql` makes it safe; `ways` are all ways out that
    are particular to it, in words, those by `sql` among them.
    """

    relation: TableName
    why: str
    breaks_source: bool
    sql: str | None
    ways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """One table with its partitions and children by inheritance, itself first."""

    relations: tuple[Relation, ...]
    publication: str | None = None

    @property
    def table(self) -> Relation:
        return self.relations[0]

    @property
    def name(self) -> TableName:
        return self.table.name

    @property
    def children(self) -> tuple[Relation, ...]:
        """Tables that inherit from it: SELECT on it gives their rows, its publication does not."""
        return tuple(relation for relation in self.relations if relation.is_child)

    @property
    def lost_partitions(self) -> tuple[Relation, ...]:
        """Partitions whose changes PostgreSQL never sends: foreign tables, and unlogged ones."""
        return tuple(
            relation
            for relation in self.relations[1:]
            if not relation.is_child and (relation.kind == "f" or relation.persistence == "u")
        )

    @property
    def has_key(self) -> bool:
        """Whether a row is known by a key; false if it is unknown or a generated column is in it."""
        return bool(self.table.key)

    @property
    def is_multiset(self) -> bool:
        """Whether a row is known by all its values: see TableSchema."""
        holders = [one for one in self.relations[1:] if not one.is_child and one.kind == "r"]
        return not self.has_key and all(one.identity is ReplicaIdentity.FULL for one in (self.table, *holders))

    def harms(self, conn: Connection, *, publishes_generated: bool) -> list[Harm]:
        """Where publishing the table's updates and deletes does harm; `publishes_generated`: the stored columns."""
        version = conn.info.server_version
        holders = [one for one in self.relations if one.kind == "r" and not one.is_child and one.persistence == "p"]
        if self.table.kind == "p" and not holders:
            holders = [self.table]
        harms = []
        for relation in holders:
            why, breaks_source = _harm(relation, version, publishes_generated)
            if why:
                statement, ways = _remedy(conn, relation)
                harms.append(Harm(relation.name, why, breaks_source, statement, ways))
            elif relation.restriction is not None and self.publication is not None:
                harms += _restriction_harms(conn, relation, relation.restriction, self.publication)
        return harms


def _harm(relation: Relation, version: int, publishes_generated: bool) -> tuple[str, bool]:
    """Why updates of it cannot be replicated, empty if they can; and whether the source then refuses them."""
    is_checked = version >= _GENERATED_CAN_BE_PUBLISHED
    generated = {*relation.stored, *relation.virtual}
    unpublished = [name for name in relation.unpublished(publishes_generated=publishes_generated) if name in generated]
    if relation.identity is ReplicaIdentity.NOTHING:
        return "has replica identity NOTHING", True
    if relation.identity is ReplicaIdentity.FULL:
        if is_checked and unpublished:
            return f"has replica identity FULL, and generated column {unpublished[0]} is not published", True
        return "", False
    if not relation.key:
        if relation.identity is ReplicaIdentity.INDEX:
            return "has lost the index of its replica identity", True
        return "has no primary key or replica identity", True
    hidden = [name for name in relation.key if name in unpublished]
    if hidden:
        return f"has the generated column {hidden[0]} in its key, which is not published", is_checked
    return "", False


def _remedy(conn: Connection, relation: Relation) -> tuple[str | None, tuple[str, ...]]:
    """A statement that gives it a usable identity, if one does, and all ways to one in words."""
    has_none = not relation.key and relation.identity is ReplicaIdentity.DEFAULT
    ways = ["add a primary key"] if has_none else []
    if relation.has_plain_primary_key and relation.identity is not ReplicaIdentity.DEFAULT:
        what: sql.Composable = sql.SQL("DEFAULT")
    elif relation.by_index is not None:
        what = sql.SQL("USING INDEX {}").format(sql.Identifier(relation.by_index))
    elif relation.key or relation.virtual:
        ways.append("give it a replica identity index over published columns that are NOT NULL")
        if relation.stored:
            ways.append("from PostgreSQL 18 on set publish_generated_columns = stored for the publication")
        return None, tuple(ways)  # FULL does not help where a generated column is missing
    else:
        ways.append(
            "set replica identity FULL as below: the source writes whole old rows to the WAL, and the destination finds"
            " a row by all its values, which reads the whole table there for each batch with updates or deletes"
        )
        return _identity_statement(conn, relation, sql.SQL("FULL")), tuple(ways)
    return _identity_statement(conn, relation, what), (*ways, "run the statement below")


def _identity_statement(conn: Connection, relation: Relation, what: sql.Composable) -> str:
    statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}")
    return statement.format(sql.Identifier(relation.name.namespace, relation.name.name), what).as_string(conn)


def _restriction_harms(
    conn: Connection, relation: Relation, restriction: Restriction, publication: str
) -> Iterator[Harm]:
    """Of a relation that has a usable identity: what of it the publication's list or filter goes past."""
    listed, filtered = restriction.columns, restriction.filter_columns
    is_full = relation.identity is ReplicaIdentity.FULL
    if listed is not None and is_full:
        why = "has replica identity FULL, and the publication has a column list for it"
        if relation.has_plain_primary_key and set(relation.key) <= set(listed):
            ways = ("give it the primary key as replica identity, as below",)
            yield Harm(relation.name, why, True, _identity_statement(conn, relation, sql.SQL("DEFAULT")), ways)
        else:
            yield Harm(relation.name, why, True, *_republished(conn, publication, restriction, None, filtered=True))
        return
    hidden = [name for name in relation.key if listed is not None and name not in listed]
    if listed is not None and hidden:
        why = f"has column {hidden[0]} in its replica identity, which the column list of the publication leaves out"
        columns = (*listed, *hidden)
        yield Harm(relation.name, why, True, *_republished(conn, publication, restriction, columns, filtered=True))
    beside = [name for name in filtered or () if name not in relation.key and not is_full]
    if beside:
        why = f"has a row filter in the publication on column {beside[0]}, which is not in its replica identity"
        has_generated = bool(relation.stored or relation.virtual)  # with FULL, PostgreSQL 18 refuses changes for them
        if relation.has_plain_primary_key and listed is None and not has_generated:
            ways = ("set replica identity FULL as below: the source writes whole old rows to the WAL",)
            yield Harm(relation.name, why, True, _identity_statement(conn, relation, sql.SQL("FULL")), ways)
        elif not hidden:
            yield Harm(relation.name, why, True, *_republished(conn, publication, restriction, listed, filtered=False))


def _republished(
    conn: Connection, publication: str, restriction: Restriction, columns: Sequence[str] | None, *, filtered: bool
) -> tuple[str, tuple[str, ...]]:
    """The SQL that publishes `columns` of a table, or all, with its filter only if `filtered`; also in words."""
    name, table = sql.Identifier(publication), sql.Identifier(restriction.table.namespace, restriction.table.name)
    listed = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL("")
    condition = read_filter(conn, publication, restriction.table) if filtered else None
    where = sql.SQL(" WHERE ({})").format(sql.SQL(condition)) if condition else sql.SQL("")
    statement = sql.SQL("ALTER PUBLICATION {p} DROP TABLE ONLY {t}; ALTER PUBLICATION {p} ADD TABLE ONLY {t}{c}{where}")
    what = "its key among the columns" if columns else "all its columns"
    rows = " and without the row filter" if restriction.filter_columns is not None and not filtered else ""
    way = f"publish it with {what}{rows}, as below, and it is copied again by itself"
    return statement.format(p=name, t=table, c=listed, where=where).as_string(conn), (way,)


def read_plan(conn: Connection, tables: Iterable[TableName], publication: str | None = None) -> list[TablePlan]:
    """The plan of those of `tables` that exist, by name; with what `publication`, if given, leaves out of them."""
    wanted = list(tables)
    restrictions = Restrictions({}, False) if publication is None else read_restrictions(conn, publication)
    names = {"namespaces": [table.namespace for table in wanted], "names": [table.name for table in wanted]}
    try:
        rows = conn.execute(_RELATIONS, names).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    found: dict[TableName, list[Relation]] = {}
    for row in rows:
        found.setdefault(TableName(row[0], row[1]), []).append(_relation(row[2:], restrictions))
    return [TablePlan(tuple(relations), publication) for relations in found.values()]


def _relation(row: Sequence[Any], restrictions: Restrictions) -> Relation:
    return Relation(
        name=TableName(row[0], row[1]),
        kind=row[2],
        persistence=row[3],
        identity=ReplicaIdentity(row[4]),
        is_child=row[5],
        key=tuple(row[6] or ()),
        has_plain_primary_key=row[7],
        by_index=row[8],
        stored=tuple(row[9] or ()),
        virtual=tuple(row[10] or ()),
        large_objects=tuple(row[11] or ()),
        columns=tuple(row[12] or ()),
        restriction=None if row[5] else restrictions.of(row[13], row[14]),
    )


def has_large_objects(conn: Connection) -> bool:
    """Whether the database holds any large object."""
    try:
        row = conn.execute("SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)").fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return row is not None and bool(row[0])


def is_known_empty(conn: Connection, name: TableName) -> bool:
    """Whether the relation itself surely has no row; false if it may not be read. `conn` is in a transaction."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {})").format(sql.Identifier(name.namespace, name.name))
    try:
        with conn.transaction():
            row = conn.execute(query).fetchone()
    except psycopg.Error:
        if conn.broken:
            raise SourceUnavailable(f"the connection was lost while {name} was looked at") from None
        return False
    return row is not None and not row[0]


def left_out(conn: Connection, plan: Iterable[TablePlan], *, publishes_generated: bool) -> list[str]:
    """What of the tables will not arrive, a sentence each."""
    tables = list(plan)
    sentences = []
    for table in tables:
        hidden = table.table.unpublished(publishes_generated=publishes_generated)
        restriction = table.table.restriction
        if hidden and restriction is not None and restriction.columns is not None:
            sentences.append(
                f"{table.name}: the column list of publication {table.publication} leaves out columns, which will not"
                f" arrive: {', '.join(hidden)}"
            )
        elif hidden:
            sentences.append(
                f"{table.name}: generated columns are not published and will not arrive: {', '.join(hidden)}"
            )
        if restriction is not None and restriction.filter_columns is not None:
            on = f" on {', '.join(restriction.filter_columns)}" if restriction.filter_columns else ""
            sentences.append(
                f"{table.name}: publication {table.publication} has a row filter{on}: rows that do not match it will"
                " not arrive"
            )
        sentences += rows_left_out(table)
    holders = [f"{table.name}.{name}" for table in tables for name in table.table.large_objects]
    if holders and has_large_objects(conn):
        sentences.append(
            f"large objects are not replicated: {_listed(holders)} will hold their numbers, without the contents"
        )
    return sentences


def rows_left_out(table: TablePlan) -> list[str]:
    """Which rows that SELECT on the table gives will not arrive, a sentence each."""
    sentences = []
    if table.children:
        children = _listed([child.name for child in table.children])
        sentences.append(
            f"{table.name} has children by inheritance, whose rows do not arrive in it: {children}"
            " (replicate them as tables of their own)"
        )
    if table.lost_partitions:
        partitions = [
            f"{one.name} ({'foreign table' if one.kind == 'f' else 'unlogged'})" for one in table.lost_partitions
        ]
        sentences.append(
            f"PostgreSQL does not send the changes of these partitions of {table.name}: {_listed(partitions)}"
        )
    return sentences


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
