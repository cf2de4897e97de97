"""Reads the fingerprints of a pipeline's tables from the catalog: one query for all of them, and one for their types.

Nothing is locked and no table is opened (`pg_partition_tree` and `pg_get_publication_tables` do both), so whoever
alters a table is neither waited for nor held up.
https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from etl_core.errors import SourceUnavailable
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.fingerprint import Attribute, Fingerprint, Node, Publishing, TypeForm, read_way
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_FIRST_OWN_OID = 16384
"""OIDs below belong to PostgreSQL itself; its types never change."""
_OLDEST_HORIZON = 1 << 30
"""Transactions after which the age of a row's xmin can no longer be compared."""
_PROBED_BLOCKS = 2000
"""Of a rewritten file: where a row from before is looked for."""

_PUBLICATION = """
SELECT p.oid::bigint, p.xmin::text::bigint, p.pubowner::bigint,
       pg_catalog.to_jsonb(p) - 'oid' - 'pubname' - 'pubowner',
       pg_catalog.pg_current_wal_insert_lsn()::text,
       pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint
FROM (VALUES (1)) one(row) LEFT JOIN pg_catalog.pg_publication p ON p.pubname = {name}
"""

_WAYS_14 = """
SELECT r.prrelid AS target, r.oid, false AS is_namespace, NULL::text AS condition, NULL::int2[] AS columns
FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = {publication}
"""
_WAYS_15 = """
SELECT r.prrelid AS target, r.oid, false AS is_namespace, pg_catalog.md5(r.prqual::text) AS condition,
       r.prattrs::int2[] AS columns
FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = {publication}
UNION ALL
SELECT s.pnnspid, s.oid, true, NULL, NULL
FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = {publication}
"""

# A table's creation leaves one row in pg_attribute that nothing ever writes again: that of the system column tableoid.
# CREATE TABLE … PARTITION OF writes it by the same command as the columns, and ATTACH writes the columns anew.
_TABLES = """
WITH RECURSIVE wanted(oid) AS MATERIALIZED (SELECT pg_catalog.unnest({oids}::oid[])),
ways AS MATERIALIZED ({ways}),
tree(root, relid, link) AS (
    SELECT w.oid, w.oid, NULL::xid FROM wanted w
    UNION ALL
    SELECT t.root, i.inhrelid, i.xmin
    FROM tree t
    JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'p'
    JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending
),
ancestors(root, relid) AS (
    SELECT w.oid, w.oid FROM wanted w
    UNION ALL
    SELECT a.root, i.inhparent
    FROM ancestors a
    JOIN pg_catalog.pg_class c ON c.oid = a.relid AND c.relispartition
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.relid
),
nodes AS (
    SELECT t.root, pg_catalog.json_agg(pg_catalog.json_build_array(
               c.oid::bigint,
               CASE WHEN c.relkind = 'r' THEN c.relfilenode::bigint ELSE 0 END,
               COALESCE(t.link::text::bigint, 0),
               t.link IS NOT NULL AND EXISTS (
                   SELECT
                   FROM pg_catalog.pg_attribute born
                   JOIN pg_catalog.pg_attribute own ON own.attrelid = born.attrelid
                        AND own.xmin = born.xmin AND own.cmin = born.cmin
                   WHERE born.attrelid = c.oid AND born.attnum = -6 AND born.xmin = t.link AND own.attnum > 0)
           ) ORDER BY c.oid) AS described
    FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid
    GROUP BY t.root
),
columns AS (
    SELECT w.oid, pg_catalog.json_agg(pg_catalog.json_build_array(
               a.attnum, CASE WHEN a.attisdropped THEN '' ELSE a.attname END, a.atttypid::bigint, a.atttypmod,
               a.attgenerated, a.xmin::text::bigint) ORDER BY a.attnum) AS described
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.oid AND a.attnum > 0
    GROUP BY w.oid
),
published AS (
    SELECT a.root, pg_catalog.json_agg(pg_catalog.json_build_array(
               y.target::bigint, y.oid::bigint, y.is_namespace,
               CASE WHEN y.is_namespace THEN (
                   SELECT max(d.xmin::text::bigint) FROM pg_catalog.pg_depend d
                   WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = a.relid AND d.objsubid = 0
                     AND d.refclassid = 'pg_catalog.pg_namespace'::regclass) ELSE 0 END,
               y.condition, y.columns, a.relid = a.root) ORDER BY y.oid, a.relid) AS described
    FROM ancestors a
    JOIN pg_catalog.pg_class c ON c.oid = a.relid
    JOIN ways y ON y.target = CASE WHEN y.is_namespace THEN c.relnamespace ELSE c.oid END
    GROUP BY a.root
)
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relispartition,
       columns.described, nodes.described, published.described
FROM wanted w
JOIN pg_catalog.pg_class c ON c.oid = w.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN columns ON columns.oid = c.oid
LEFT JOIN nodes ON nodes.root = c.oid
LEFT JOIN published ON published.root = c.oid
"""

_TYPES = """
WITH RECURSIVE used(oid, needs) AS (
    SELECT first.oid, NULL::oid FROM pg_catalog.unnest({oids}::oid[]) first(oid)
    UNION
    SELECT part.oid, used.oid
    FROM used
    JOIN pg_catalog.pg_type t ON t.oid = used.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL
        SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL
        SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part(oid)
    WHERE part.oid >= {first_own}
)
SELECT t.oid::bigint, t.typtype = 'e',
       CASE t.typtype
           WHEN 'e' THEN (
               SELECT pg_catalog.json_agg(pg_catalog.json_build_array(e.oid::bigint, e.enumlabel) ORDER BY e.oid)
               FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
           WHEN 'c' THEN (
               SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attnum, pg_catalog.concat_ws(
                          ' ', pg_catalog.quote_ident(a.attname), a.atttypid, a.atttypmod)) ORDER BY a.attnum)
               FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
       END,
       (SELECT pg_catalog.json_agg(u.needs::bigint) FROM used u WHERE u.oid = t.oid AND u.needs IS NOT NULL)
FROM pg_catalog.pg_type t WHERE t.oid IN (SELECT oid FROM used)
"""

# What a publication may publish, by its own rows: the server's list of what it does publish opens every table.
_CANDIDATES = """
WITH RECURSIVE ways AS MATERIALIZED ({ways}),
named(oid) AS (
    SELECT w.target FROM ways w WHERE NOT w.is_namespace
    UNION
    SELECT i.inhrelid
    FROM named
    JOIN pg_catalog.pg_class c ON c.oid = named.oid AND c.relkind = 'p'
    JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid
    WHERE NOT {via_root}
)
SELECT c.oid::bigint
FROM pg_catalog.pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= {first_own}
  AND CASE WHEN {via_root} THEN NOT c.relispartition ELSE c.relkind = 'r' END
  AND ({all_tables} OR c.oid IN (SELECT oid FROM named)
       OR c.relnamespace IN (SELECT w.target FROM ways w WHERE w.is_namespace))
"""

# A row of a transaction from before proves that no ALTER TABLE has computed all rows anew.
_OLD_ROW = """
SELECT EXISTS (
    SELECT FROM ONLY {relation}
    WHERE ctid < '({blocks},0)'::pg_catalog.tid AND pg_catalog.age(xmin) > pg_catalog.age({horizon}::xid))
"""
_RELATION = """
SELECT n.nspname::text, c.relname::text,
       pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {oid}
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What the catalog said at one moment; every transaction it had seen ended at or before `lsn`.

    `tables` has no entry for a table that does not exist. `publishing` has no ways; None if there is no publication.
    """

    lsn: Lsn
    publishing: Publishing | None
    tables: Mapping[TableId, Fingerprint]

    @property
    def names(self) -> Mapping[TableId, TableName]:
        return {table_id: table.name for table_id, table in self.tables.items()}


def look(conn: Connection, publication: str, tables: Iterable[TableId]) -> Look:
    """The fingerprints of `tables`. `conn` is in autocommit mode, or in the transaction whose snapshot is meant."""
    try:
        if conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE and conn.autocommit:
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                return _look(conn, publication, tables)
            finally:
                conn.execute("ROLLBACK")
        return _look(conn, publication, tables)
    except psycopg.Error as error:
        raise translate(error) from None


def candidates(conn: Connection, publishing: Publishing) -> set[TableId]:
    """The tables that the publication may publish, and all that it does but for partitions whose root it leaves out."""
    statement = sql.SQL(_CANDIDATES).format(
        ways=_ways(conn, publishing.oid),
        via_root=sql.Literal(publishing.says("pubviaroot")),
        all_tables=sql.Literal(publishing.says("puballtables")),
        first_own=sql.Literal(_FIRST_OWN_OID),
    )
    try:
        return {TableId(row[0]) for row in conn.execute(statement).fetchall()}
    except psycopg.Error as error:
        raise translate(error) from None


def has_old_row(conn: Connection, oid: int, horizon: int) -> bool:
    """Whether one of the first rows of the relation is of a transaction that had ended before `horizon`.

    Opens the relation. False also if it is empty, may not be read, or if `horizon` is too long ago to be compared.
    """
    try:
        row = conn.execute(sql.SQL(_RELATION).format(oid=sql.Literal(oid))).fetchone()
        if row is None or row[2] - horizon > _OLDEST_HORIZON:
            return False
        statement = sql.SQL(_OLD_ROW).format(
            relation=sql.Identifier(row[0], row[1]),
            blocks=sql.SQL(str(_PROBED_BLOCKS)),
            horizon=sql.Literal(str(horizon % 2**32)),
        )
        found = conn.execute(statement).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return False  # a partition of which only the root may be read
    except psycopg.errors.UndefinedTable:
        raise SourceUnavailable("a table was renamed or dropped while it was looked at") from None
    except psycopg.Error as error:
        raise translate(error) from None
    return found is not None and bool(found[0])


def _look(conn: Connection, name: str, tables: Iterable[TableId]) -> Look:
    row = conn.execute(sql.SQL(_PUBLICATION).format(name=sql.Literal(name))).fetchone()
    assert row is not None  # noqa: S101 - a join with one row
    oid, xmin, owner, columns, lsn, horizon = row
    publishing = None
    if oid is not None:
        flags = tuple(sorted((flag, said is True or said == "s") for flag, said in columns.items()))
        publishing = Publishing(oid, xmin, owner, flags)
    statement = sql.SQL(_TABLES).format(oids=sql.Literal([int(table) for table in tables]), ways=_ways(conn, oid))
    rows = conn.execute(statement).fetchall()
    types = _read_types(conn, {column[2] for row in rows for column in row[6] or ()})
    return Look(
        Lsn.parse(lsn),
        publishing,
        {TableId(row[0]): _build(row, publishing, types, horizon) for row in rows},
    )


def _ways(conn: Connection, publication: int | None) -> sql.Composed:
    ways = _WAYS_15 if conn.info.server_version >= 150000 else _WAYS_14
    return sql.SQL(ways).format(publication=sql.Literal(publication))


def _build(
    row: tuple[Any, ...], publishing: Publishing | None, types: Mapping[int, tuple[TypeForm, ...]], horizon: int
) -> Fingerprint:
    oid, namespace, name, kind, persistence, is_partition, columns, nodes, ways = row
    attributes = tuple(Attribute(*column) for column in columns or ())
    forms = {form.oid: form for attribute in attributes for form in types.get(attribute.type_oid, ())}
    is_published = False
    if publishing is not None:
        is_published = persistence == "p" and _is_published(publishing, kind, is_partition, ways or ())
        publishing = Publishing(
            publishing.oid,
            publishing.xmin,
            publishing.owner,
            publishing.flags,
            tuple(read_way(way) for way in ways or ()),
        )
    return Fingerprint(
        table_id=oid,
        name=TableName(namespace, name),
        kind=kind,
        persistence=persistence,
        attributes=attributes,
        nodes=tuple(Node(*node) for node in nodes or ()),
        types=tuple(forms[oid] for oid in sorted(forms)),
        publishing=publishing,
        is_published=is_published,
        horizon=horizon,
    )


def _is_published(publishing: Publishing, kind: str, is_partition: bool, ways: Iterable[list[Any]]) -> bool:
    """Under the table's own name: a partition may be published as its root, a partitioned table as its partitions."""
    all_tables, via_root = publishing.says("puballtables"), publishing.says("pubviaroot")
    if kind == "p" and not via_root:
        return False
    if via_root and is_partition and (all_tables or not all(way[6] for way in ways)):
        return False
    return all_tables or bool(ways)


def _read_types(conn: Connection, oids: set[int]) -> Mapping[int, tuple[TypeForm, ...]]:
    """Enums and composites that values of each type hold, itself among them."""
    wanted = sorted(oid for oid in oids if oid >= _FIRST_OWN_OID)
    if not wanted:
        return {}
    statement = sql.SQL(_TYPES).format(oids=sql.Literal(wanted), first_own=sql.Literal(_FIRST_OWN_OID))
    parts: dict[int, list[int]] = {}
    forms: dict[int, TypeForm] = {}
    for oid, is_enum, described, users in conn.execute(statement).fetchall():
        if described is not None:
            forms[oid] = TypeForm(oid, is_enum, tuple((part, what) for part, what in described))
        for user in users or ():
            parts.setdefault(user, []).append(oid)
    return {oid: tuple(forms[used] for used in _closure(oid, parts) if used in forms) for oid in wanted}


def _closure(oid: int, parts: Mapping[int, list[int]]) -> set[int]:
    found, ahead = {oid}, [oid]
    while ahead:
        for part in parts.get(ahead.pop(), ()):
            if part not in found:
                found.add(part)
                ahead.append(part)
    return found
