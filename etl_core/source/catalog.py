"""What a publication publishes, read from the catalog: tables, columns, types, keys, partitions.

One statement for all tables (1,000 of them in well under a second), so that its answer is of one moment, and one for
their types. Works on ordinary and on replication connections.
https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind
from etl_core.source.connection import Connection
from etl_core.source.money import money_decimals
from etl_core.source.opening import fetch_opening
from etl_core.source.sqlstate import translate

# Column lists and row filters came with PostgreSQL 15; 14 publishes all columns that are not generated.
_PUBLISHED_15 = "SELECT relid, attrs::int2[] AS attrs, qual FROM pg_catalog.pg_get_publication_tables({name})"
_PUBLISHED_14 = (
    "SELECT relid, NULL::int2[] AS attrs, NULL::pg_catalog.pg_node_tree AS qual"
    " FROM pg_catalog.pg_get_publication_tables({name})"
)
# One table, whether published or not, with all its columns: pg_get_publication_tables opens every table of the
# publication, and waits for whoever has locked one of them.
_ANY = (
    "SELECT c.oid AS relid, NULL::pg_catalog.pg_node_tree AS qual,"
    " (SELECT pg_catalog.array_agg(a.attnum) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid) AS attrs"
    " FROM pg_catalog.pg_class c WHERE c.oid = {oid}"
)
_LEAVES = """
    SELECT c.oid AS relid WHERE c.relkind <> 'p'
    UNION ALL
    SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(CASE WHEN c.relkind = 'p' THEN c.oid END) t WHERE t.isleaf
"""
# pg_partition_tree locks every partition.
_NO_LEAVES = "SELECT NULL::oid AS relid WHERE false"

# Sizes come from statistics, never from pg_relation_size, which waits for whoever alters the table.
_TABLES = """
WITH published AS MATERIALIZED ({published})
SELECT c.oid::bigint,
       n.nspname::text,
       c.relname::text,
       c.relkind::text,
       -- The root's identity is sent with each row, and the old row as that of its partition has it. Locks none.
       CASE WHEN c.relkind = 'p' AND c.relreplident = 'f' AND EXISTS (
           WITH RECURSIVE tree(oid) AS (
               SELECT c.oid UNION SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid)
           SELECT FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.oid
           WHERE l.relkind = 'r' AND l.relreplident <> 'f')
       THEN 'n' ELSE c.relreplident::text END,
       pg_catalog.obj_description(c.oid, 'pg_class'),
       pg_catalog.pg_get_expr(p.qual, p.relid),
       columns.described,
       identity.attnums,
       leaves.names,
       leaves.bytes,
       leaves.rows
FROM published p
JOIN pg_catalog.pg_class c ON c.oid = p.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT pg_catalog.json_agg(
               pg_catalog.json_build_array(
                   a.attname, a.atttypid::bigint, a.atttypmod, a.attnotnull, a.attnum,
                   -- One element, whose text the array's text quotes. The join undoes the split of a box's commas.
                   CASE WHEN a.atthasmissing THEN
                       pg_catalog.array_to_string(a.attmissingval::text::text[], ',') END,
                   pg_catalog.col_description(c.oid, a.attnum))
               ORDER BY a.attnum) AS described
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND CASE WHEN p.attrs IS NULL THEN a.attgenerated = '' ELSE a.attnum = ANY (p.attrs) END
) columns ON true
LEFT JOIN LATERAL (
    SELECT i.indkey::int2[] AS attnums
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END
) identity ON true
LEFT JOIN LATERAL (
    SELECT pg_catalog.json_agg(pg_catalog.json_build_array(ln.nspname, l.relname) ORDER BY ln.nspname, l.relname)
               FILTER (WHERE c.relkind = 'p') AS names,
           sum(GREATEST(l.relpages, 0)::bigint) * pg_catalog.current_setting('block_size')::bigint AS bytes,
           sum(GREATEST(l.reltuples, 0)::bigint) AS rows
    FROM ({leaves}) leaf
    JOIN pg_catalog.pg_class l ON l.oid = leaf.relid AND l.relkind = 'r'
    JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
) leaves ON true
{condition}
ORDER BY n.nspname, c.relname
"""

# A true array's element type names it as its array type; int2vector and oidvector print differently and are not named.
_TYPES = """
WITH RECURSIVE needed(oid) AS (
    SELECT pg_catalog.unnest({oids}::oid[])
    UNION
    SELECT part.oid
    FROM needed JOIN pg_catalog.pg_type t USING (oid)
    CROSS JOIN LATERAL (
        SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END WHERE t.typtype = 'd' OR t.typelem <> 0
        UNION ALL
        SELECT CASE t.typtype WHEN 'r' THEN r.rngsubtype ELSE r.rngtypid END
        FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part(oid)
)
SELECT t.oid::bigint, t.typname::text, n.nspname::text, t.typtype::text, t.typdelim::text,
       CASE t.typtype WHEN 'd' THEN t.typbasetype WHEN 'r' THEN r.rngsubtype WHEN 'm' THEN r.rngtypid
            ELSE e.oid END::bigint,
       e.oid IS NOT NULL, t.typtypmod,
       CASE WHEN t.typtype = 'c' THEN (
           SELECT pg_catalog.json_agg(
                      pg_catalog.json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.attnum)
                      ORDER BY a.attnum)
           FROM pg_catalog.pg_attribute a
           WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END,
       CASE WHEN t.typtype = 'e' THEN (
           SELECT pg_catalog.json_agg(l.enumlabel ORDER BY l.enumsortorder)
           FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid) END
FROM needed
JOIN pg_catalog.pg_type t USING (oid)
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
LEFT JOIN pg_catalog.pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
"""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table as its publication publishes it.

    `row_filter` is the publication's WHERE expression, as SQL with qualified names. `leaves` are the partitions that
    hold the rows of a partitioned table, at any depth; empty for an ordinary one. The estimates are of the last
    VACUUM or ANALYZE, 0 before the first.
    """

    schema: TableSchema
    is_partitioned: bool = False
    row_filter: str | None = None
    leaves: tuple[TableName, ...] = ()
    estimated_rows: int = 0
    estimated_bytes: int = 0

    @property
    def name(self) -> TableName:
        return self.schema.name


def published_tables(conn: Connection, publication: str) -> list[PublishedTable]:
    """All tables the publication publishes, by name; partitions under their root if it says publish_via_partition_root.

    Raises SourceUnavailable if there is no such publication: the next start creates it.
    """
    return _read_tables(conn, _published(conn, publication), sql.SQL(_LEAVES), sql.SQL(""))


def find_table_id(conn: Connection, name: TableName) -> TableId | None:
    """The OID of the relation that has the name now, None if there is none."""
    query = (
        "SELECT c.oid::bigint FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s"
    )
    try:
        row = conn.execute(query, (name.namespace, name.name)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return TableId(row[0]) if row else None


def published_table(conn: Connection, table_id: TableId, publication: str) -> PublishedTable | None:
    """One table as of now; None if it does not exist or is not published."""
    return published_among(conn, [table_id], publication).get(table_id)


def published_among(conn: Connection, table_ids: Sequence[TableId], publication: str) -> dict[TableId, PublishedTable]:
    """Those of the tables that exist and are published, as of now."""
    condition = sql.SQL("WHERE c.oid = ANY ({}::oid[])").format(sql.Literal([int(table_id) for table_id in table_ids]))
    tables = _read_tables(conn, _published(conn, publication), sql.SQL(_LEAVES), condition)
    return {table.schema.table_id: table for table in tables}


def table_schema(conn: Connection, table_id: TableId) -> TableSchema | None:
    """One table as of now with all its columns, published or not; None if it does not exist.

    It may be ahead of the WAL being read. Waits for no lock, on this table or another.
    """
    only = sql.SQL(_ANY).format(oid=sql.Literal(int(table_id)))
    tables = _read_tables(conn, only, sql.SQL(_NO_LEAVES), sql.SQL(""))
    return tables[0].schema if tables else None


def _published(conn: Connection, publication: str) -> sql.Composed:
    published = _PUBLISHED_15 if conn.info.server_version >= 150000 else _PUBLISHED_14
    return sql.SQL(published).format(name=sql.Literal(publication))


def _read_tables(
    conn: Connection, published: sql.Composable, leaves: sql.Composable, condition: sql.Composable
) -> list[PublishedTable]:
    statement = sql.SQL(_TABLES).format(published=published, leaves=leaves, condition=condition)
    rows = fetch_opening(conn, statement)
    types = _read_types(conn, {column[1] for row in rows for column in row[7] or ()})
    return [_build_table(row, types) for row in rows]


def _build_table(row: tuple[Any, ...], types: Mapping[int, PgType]) -> PublishedTable:
    oid, namespace, name, relkind, identity, comment, row_filter, described, key_attnums, leaves, size, estimated = row
    columns = tuple(
        Column(
            name=column_name,
            type=types.get(type_oid) or PgType(type_oid, "unknown"),
            type_modifier=type_modifier,
            nullable=not not_null,
            attnum=attnum,
            missing_value=missing_value,
            comment=column_comment,
        )
        for column_name, type_oid, type_modifier, not_null, attnum, missing_value, column_comment in described or ()
    )
    wanted = set(key_attnums or ())
    key = tuple(column.name for column in columns if column.attnum in wanted)
    schema = TableSchema(
        table_id=TableId(oid),
        name=TableName(namespace, name),
        columns=columns,
        # A key of which a column is not published identifies nothing; PostgreSQL refuses updates of such a table.
        key=key if len(key) == len(wanted) else (),
        replica_identity=ReplicaIdentity(identity),
        comment=comment,
    )
    return PublishedTable(
        schema=schema,
        is_partitioned=relkind == "p",
        row_filter=row_filter,
        leaves=tuple(TableName(*leaf) for leaf in leaves or ()),
        estimated_rows=int(estimated or 0),
        estimated_bytes=int(size or 0),
    )


def _read_types(conn: Connection, oids: Iterable[int]) -> dict[int, PgType]:
    wanted = sorted(oids)
    if not wanted:
        return {}
    rows = {row[0]: row for row in fetch_opening(conn, sql.SQL(_TYPES).format(oids=sql.Literal(wanted)))}
    decimals = money_decimals(conn) if pg_types.MONEY in rows else -1
    types: dict[int, PgType] = {}

    def build(oid: int) -> PgType:
        if oid not in types:
            _, name, namespace, kind, delimiter, element, is_array, type_modifier, attributes, labels = rows[oid]
            described = PgType(
                oid=oid,
                name=name,
                namespace=namespace,
                kind=TypeKind.ARRAY if is_array else TypeKind(kind),
                element=build(element) if element is not None and element in rows else None,
                type_modifier=type_modifier,
                attributes=tuple(
                    Column(attribute, build(type_oid), modifier, attnum=attnum)
                    for attribute, type_oid, modifier, attnum in attributes or ()
                ),
                delimiter=delimiter,
                labels=tuple(labels or ()),
            )
            if pg_types.has_form(described):
                described = replace(described, form=decimals if oid == pg_types.MONEY else 0)
            types[oid] = described
        return types[oid]

    return {oid: build(oid) for oid in wanted if oid in rows}
