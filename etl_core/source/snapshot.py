"""One exported snapshot, imported by several connections: the table locked, proven unchanged, cut into ctid ranges.

A snapshot protects rows, not files. TRUNCATE, and an ALTER TABLE that rewrites the table, put a new file in place, in
which the old snapshot sees no row at all, so a copy begun after it would lose everything, silently. Therefore:

- every connection locks the table (ACCESS SHARE, for as long as it copies), so that no such thing happens later;
- under the lock the first one compares what the snapshot's catalog says (a SELECT sees the catalog through the
  snapshot) with what is now (functions and planning see it as it is): files, partitions, columns. A difference means
  that something came between, and the copy starts again with a new snapshot.
"""

from __future__ import annotations

import threading

import psycopg
from psycopg import pq, sql

from etl_core.errors import EtlError, SourceRefused, TableError, TransientError
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import base_type
from etl_core.schema.table import TableSchema
from etl_core.source.catalog import PublishedTable
from etl_core.source.command import check_result, result_sqlstate, run_command
from etl_core.source.connection import Connection
from etl_core.source.ctid_range import CtidRange
from etl_core.source.sqlstate import MISSING_RIGHT_HINT, translate

RANGE_BYTES = 64 << 20
"""Of the table's file; large enough that a range's start costs nothing, small enough to share between connections."""

_UNDEFINED_TABLE = "42P01"
_LOCK_NOT_AVAILABLE = "55P03"

# The relations that hold the table's rows, in the snapshot and now. relfilenode changes with every rewrite.
_CHANGED_FILES = """
WITH RECURSIVE tree(oid, relkind, relfilenode) AS (
    SELECT c.oid, c.relkind, c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = {table_id}
    UNION ALL
    SELECT c.oid, c.relkind, c.relfilenode
    FROM tree
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending AND tree.relkind = 'p'
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
),
now(oid) AS (
    SELECT {table_id}::oid WHERE NOT {is_partitioned}
    UNION ALL
    SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(CASE WHEN {is_partitioned} THEN {table_id}::oid END) t
    WHERE t.isleaf AND t.relid::oid <> {table_id}
),
snapshot AS (SELECT * FROM tree WHERE relkind <> 'p')
SELECT count(*)
FROM snapshot FULL JOIN now USING (oid)
WHERE snapshot.oid IS NULL OR now.oid IS NULL
   OR snapshot.relkind = 'r' AND snapshot.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(now.oid)
"""

_SNAPSHOT_COLUMNS = """
SELECT attname::text, attnum::int, atttypid::bigint, atttypmod
FROM pg_catalog.pg_attribute WHERE attrelid = {table_id} AND attnum > 0 AND NOT attisdropped
"""

_FILES = """
SELECT n.nspname::text, c.relname::text,
       pg_catalog.pg_relation_size(c.oid),
       pg_catalog.current_setting('block_size')::int,
       am.amname = 'heap',
       pg_catalog.has_table_privilege(c.oid, 'SELECT')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE c.relkind = 'r' AND c.oid IN (
    SELECT {table_id}::oid
    UNION ALL
    SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(CASE WHEN {is_partitioned} THEN {table_id}::oid END) t
    WHERE t.isleaf)
ORDER BY 1, 2
"""


def import_snapshot(conn: Connection, snapshot_name: str) -> None:
    """Begins a read-only transaction that sees what the exported snapshot sees. `conn` is in autocommit mode.

    The connection that exported it must still be idle in its command. Raises SourceUnavailable if it is gone.
    """
    try:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot_name)))
    except (
        psycopg.errors.InvalidParameterValue,
        psycopg.errors.UndefinedObject,
        psycopg.errors.ObjectNotInPrerequisiteState,
    ):
        raise TransientError(
            "the snapshot of the initial copy is gone: the connection that exported it ended",
            hint="the copy starts again with a new snapshot",
        ) from None
    except psycopg.Error as error:
        raise translate(error) from None


def lock_table(conn: Connection, table: PublishedTable, stop: threading.Event, *, wait: bool) -> bool:
    """Locks the table and its partitions against being altered, truncated or dropped, until the transaction ends.

    Without `wait`, False if somebody waits to do so: a second connection of ours must not queue behind them, as they
    wait for our first. Raises TransientError if the table is gone, TableError if it may not be read, Stopped.
    """
    only = sql.SQL("") if table.is_partitioned else sql.SQL("ONLY ")
    statement = sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE{}").format(
        only, _identifier(table.name), sql.SQL("" if wait else " NOWAIT")
    )
    result = run_command(conn, statement.as_bytes(conn), stop)
    state = result_sqlstate(result)
    if state == _UNDEFINED_TABLE:
        raise _changed(table, "it was renamed or dropped")
    if state == _LOCK_NOT_AVAILABLE and not wait:
        return False
    try:
        check_result(result)
    except SourceRefused as error:
        raise as_table_error(error, table.name) from None
    return True


def check_unchanged(conn: Connection, table: PublishedTable) -> None:
    """Raises TransientError unless the locked table is now what it was in the snapshot, and what `table` says."""
    ids = {"table_id": sql.Literal(int(table.schema.table_id)), "is_partitioned": sql.Literal(table.is_partitioned)}
    try:
        changed = conn.execute(sql.SQL(_CHANGED_FILES).format(**ids)).fetchone()
        rows = conn.execute(sql.SQL(_SNAPSHOT_COLUMNS).format(**ids)).fetchall()
        probe = sql.SQL("SELECT {} FROM {} WHERE false").format(column_list(table.schema), _identifier(table.name))
        now = conn.execute(probe).pgresult
    except psycopg.errors.UndefinedColumn:
        raise _changed(table, "a column is gone") from None
    except psycopg.Error as error:
        raise as_table_error(translate(error), table.name) from None
    if changed is None or changed[0] != 0:
        raise _changed(table, "it was rewritten, truncated, created anew, or its partitions changed")
    in_snapshot = {name: (attnum, type_oid, modifier) for name, attnum, type_oid, modifier in rows}
    if any(
        in_snapshot.get(column.name) != (column.attnum, column.type.oid, column.type_modifier)
        for column in table.schema.columns
    ):
        raise _changed(table, "its columns changed")
    if now is None or not _is_now(now, table.schema):
        raise _changed(table, "its columns changed, or another table has its name")


def plan_ranges(conn: Connection, table: PublishedTable, range_bytes: int = RANGE_BYTES) -> list[CtidRange]:
    """Cuts the locked table into ranges of `range_bytes` of its files, the largest relations first.

    The last range of a relation is open. A relation that is not a heap is one range. So is a whole partitioned table
    of which we may read the root but not every partition.
    """
    statement = sql.SQL(_FILES).format(
        table_id=sql.Literal(int(table.schema.table_id)), is_partitioned=sql.Literal(table.is_partitioned)
    )
    try:
        files = conn.execute(statement).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    if table.is_partitioned and not all(file[5] for file in files):
        return [CtidRange(table.name, None, None, sum(file[2] for file in files))]
    ranges: list[CtidRange] = []
    for namespace, name, size, block_size, is_heap, _ in sorted(files, key=lambda file: -file[2]):
        relation = TableName(namespace, name)
        step = max(1, range_bytes // block_size)
        blocks = -(-size // block_size) if is_heap else 0
        firsts = range(0, max(1, blocks), step)
        for first in firsts:
            is_last = first == firsts[-1]
            ranges.append(
                CtidRange(
                    relation,
                    first=first if is_heap else None,
                    end=None if is_last else first + step,
                    size=size - first * block_size if is_last else step * block_size,
                )
            )
    return ranges


def copy_statement(table: PublishedTable, part: CtidRange, *, encoding: str = "UTF8") -> sql.Composed:
    """The COPY of one range: the published columns by name, as partitions may have them in another order.

    `encoding` is that of what is sent: UTF8, or SQL_ASCII for the bytes as they are.
    """
    conditions: list[sql.Composable] = []
    if part.first is not None:
        conditions.append(sql.SQL("ctid >= {}::pg_catalog.tid").format(sql.Literal(f"({part.first},0)")))
    if part.end is not None:
        conditions.append(sql.SQL("ctid < {}::pg_catalog.tid").format(sql.Literal(f"({part.end},0)")))
    if table.row_filter is not None:
        # An expression that the server printed from its catalog.
        conditions.append(sql.SQL("({})").format(sql.SQL(table.row_filter)))
    is_root = table.is_partitioned and part.relation == table.name
    return sql.SQL("COPY (SELECT {} FROM {}{}{}) TO STDOUT (FORMAT csv, ENCODING {})").format(
        column_list(table.schema),
        sql.SQL("" if is_root else "ONLY "),
        _identifier(part.relation),
        sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL(""),
        sql.Literal(encoding),
    )


def rows_from(table: PublishedTable) -> sql.Composed:
    """FROM, and WHERE if there is a row filter, for all the rows that are published of the table."""
    return sql.SQL("FROM {}{}{}").format(
        sql.SQL("" if table.is_partitioned else "ONLY "),
        _identifier(table.name),
        # An expression that the server printed from its catalog.
        sql.SQL("") if table.row_filter is None else sql.SQL(" WHERE ({})").format(sql.SQL(table.row_filter)),
    )


def column_list(schema: TableSchema) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, schema.column_names))


def as_table_error(error: EtlError, table: TableName) -> EtlError:
    """A refusal that concerns one table, so that the others go on; other errors as they are."""
    if not isinstance(error, SourceRefused):
        return error
    return TableError(
        f"table {table} cannot be copied: {error}",
        table=str(table),
        hint=f"GRANT SELECT ON {table} TO the replication user" if error.hint == MISSING_RIGHT_HINT else error.hint,
    )


def _is_now(probe: pq.abc.PGresult, schema: TableSchema) -> bool:
    """Whether a query of table and columns by name, planned now, finds the table and attributes `schema` means."""
    found = [(probe.ftable(i), probe.ftablecol(i), probe.ftype(i)) for i in range(probe.nfields)]
    # The protocol describes a domain by its base type.
    return found == [(schema.table_id, column.attnum, base_type(column.type).oid) for column in schema.columns]


def _changed(table: PublishedTable, what: str) -> TransientError:
    return TransientError(
        f"table {table.name} changed while its copy was starting: {what}",
        hint="the copy starts again with a new snapshot",
    )


def _identifier(name: TableName) -> sql.Identifier:
    return sql.Identifier(name.namespace, name.name)
