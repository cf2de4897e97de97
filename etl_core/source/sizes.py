"""How much room tables take on the source's disk."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from etl_core.identifiers import TableId
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

# pg_table_size waits for a session that has locked a table against reading; a limit ends that, and all sizes with it.
_LIMIT = b"SET LOCAL statement_timeout = '2s'"
# Of a partitioned table that of its partitions: it has none itself.
_SIZES = b"""
SELECT c.oid::bigint,
       CASE WHEN c.relkind = 'p'
            THEN (SELECT pg_catalog.sum(pg_catalog.pg_table_size(relid)) FROM pg_catalog.pg_partition_tree(c.oid))
            ELSE pg_catalog.pg_table_size(c.oid) END::bigint
FROM pg_catalog.pg_class c
WHERE c.oid = ANY (%s::oid[])
"""

_ESTIMATES = b"""
SELECT c.oid::bigint, GREATEST(c.relpages, 0) * pg_catalog.current_setting('block_size')::bigint
FROM pg_catalog.pg_class c
WHERE c.relkind = 'r' AND c.oid = ANY (%s::oid[])
"""


def table_sizes(conn: Connection, tables: Sequence[TableId]) -> dict[TableId, int]:
    """Bytes of each table that exists, with TOAST and without indexes; none at all if a lock keeps us waiting.

    Raises SourceUnavailable, SourceRefused.
    """
    try:
        with conn.transaction():
            conn.execute(_LIMIT)
            rows = conn.execute(_SIZES, ([int(table_id) for table_id in tables],)).fetchall()
    except psycopg.errors.QueryCanceled:
        return {}
    except psycopg.Error as error:
        raise translate(error) from None
    return {TableId(table_id): size for table_id, size in rows if size is not None}


def estimated_sizes(conn: Connection, tables: Sequence[TableId]) -> dict[TableId, int]:
    """Bytes of those that are ordinary tables, without TOAST, by the last VACUUM or ANALYZE; 0 before the first.

    Waits for no lock. Raises SourceUnavailable, SourceRefused.
    """
    try:
        rows = conn.execute(_ESTIMATES, ([int(table_id) for table_id in tables],)).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return {TableId(table_id): size for table_id, size in rows}
