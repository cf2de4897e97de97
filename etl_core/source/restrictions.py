"""What a publication leaves out of its tables by column lists and row filters, which came with PostgreSQL 15.

https://www.postgresql.org/docs/current/logical-replication-row-filter.html
https://www.postgresql.org/docs/current/logical-replication-col-lists.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg

from etl_core.identifiers import TableName
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_FIRST_VERSION = 150000

# A filter is stored as an expression tree, whose text has each of its columns as a number. To print it for people would
# open the table, and wait for whoever alters it.
_RESTRICTIONS = r"""
SELECT r.prrelid::bigint, n.nspname::text, c.relname::text, p.pubviaroot,
       (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])),
       r.prqual IS NOT NULL,
       (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = r.prrelid AND a.attnum IN (
            SELECT used.number[1]::int2
            FROM pg_catalog.regexp_matches(r.prqual::text, ':varattno (\d+)', 'g') used(number)))
FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %s
"""


@dataclass(frozen=True, slots=True)
class Restriction:
    """What of `table` is published: `columns`, and rows that a filter on `filter_columns` lets through. None: all."""

    table: TableName
    columns: tuple[str, ...] | None
    filter_columns: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Of one publication, by the OID of each table that it names; and whether it publishes partitions as their root."""

    by_oid: Mapping[int, Restriction]
    via_root: bool

    def of(self, root: int, relation: int) -> Restriction | None:
        """What counts for rows in `relation`, a partition of `root` or the table itself."""
        return self.by_oid.get(root if self.via_root and root in self.by_oid else relation)


def read_restrictions(conn: Connection, publication: str) -> Restrictions:
    """Of the publication of that name; none if it does not exist. Locks nothing."""
    if conn.info.server_version < _FIRST_VERSION:
        return Restrictions({}, False)
    try:
        rows = conn.execute(_RESTRICTIONS, (publication,)).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    by_oid = {
        oid: Restriction(
            TableName(namespace, name),
            None if columns is None else tuple(columns),
            tuple(used or ()) if is_filtered else None,
        )
        for oid, namespace, name, _, columns, is_filtered, used in rows
    }
    return Restrictions(by_oid, any(row[3] for row in rows))


def read_filter(conn: Connection, publication: str, table: TableName) -> str | None:
    """The row filter that the publication has for the table, as SQL; None without one. Opens the table."""
    query = """
        SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid)
        FROM pg_catalog.pg_publication p
        JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = %s AND n.nspname = %s AND c.relname = %s
    """
    try:
        row = conn.execute(query, (publication, table.namespace, table.name)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return None if row is None else row[0]
