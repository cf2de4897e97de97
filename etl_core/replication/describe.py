"""Relation messages to table schemas: what the WAL says a table was, completed by what the catalog knows.

A Relation message has names, types and key flags as of the WAL, but no attribute numbers, no missing values and
nothing about types that are not built in. The catalog has them as of today, which may be ahead; it is
asked again for every Relation message after the first, because the server sends one after each change. What it was when
the table was copied is in the table's fingerprint: by it a column that came since is told from one that was there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg

from etl_core.errors import SourceChanged, SourceLocked
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import Relation, RelationColumn
from etl_core.schema.fingerprint import Fingerprint
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind
from etl_core.source.catalog import PublishedTable, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.fill import FillKind, added_column_fill, dropped_attnums
from etl_core.source.server import current_lsn
from etl_core.source.sqlstate import translate


class Describer:
    """Describes relations on one connection, which it opens when first asked and closes with `close`.

    `applied` gives the schema a table has in the destination, None for a table that is not replicated; `remembered` its
    fingerprint, of a moment that the stream has passed.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        publication: str,
        applied: Callable[[TableId], TableSchema | None],
        remembered: Callable[[TableId], Fingerprint | None],
    ) -> None:
        self._connect = connect
        self._publication = publication
        self._applied = applied
        self._remembered = remembered
        self._connection: Connection | None = None
        self._first_look: dict[TableId, TableSchema] | None = None
        self._looked_at = ZERO

    def __call__(self, relation: Relation, commit_lsn: Lsn) -> TableSchema:
        """The schema of the rows that follow `relation`, in the transaction whose commit record is at `commit_lsn`."""
        catalog = self._catalog(relation.table_id, commit_lsn)
        applied = self._applied(relation.table_id)
        columns = tuple(_column(described, catalog, applied) for described in relation.columns)
        if applied is not None and any(column.attnum == 0 for column in columns):
            columns = self._with_old_numbers(relation.table_id, columns, applied)
        schema = TableSchema(
            relation.table_id,
            TableName(relation.namespace or "pg_catalog", relation.name),
            columns,
            _key(relation, catalog),
            relation.replica_identity,
            comment=None if catalog is None else catalog.comment,
        )
        return self._with_fills(schema, catalog)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            try:
                # It is asked by the thread that reads the stream, which must not wait for whoever alters a table.
                self._connection.execute("SET lock_timeout = '1s'")
            except psycopg.Error as error:
                raise translate(error) from None
        return self._connection

    def _catalog(self, table_id: TableId, commit_lsn: Lsn) -> TableSchema | None:
        """As of now, or at least as of `commit_lsn`: a catalog may be ahead of the WAL, never behind it."""
        if self._first_look is None:
            # One query for all tables: a stream begins with a Relation message for each.
            looked_at = current_lsn(self._open())
            self._first_look = {table.schema.table_id: table.schema for table in self._published()}
            self._looked_at = looked_at
        known = self._first_look.pop(table_id, None)
        if known is not None and commit_lsn < self._looked_at:
            return known
        return table_schema(self._open(), table_id)

    def _published(self) -> list[PublishedTable]:
        """None while somebody has locked one of them: each is looked at by itself then, which waits for nobody."""
        try:
            return published_tables(self._open(), self._publication)
        except SourceLocked:
            return []

    def _with_old_numbers(
        self, table_id: TableId, columns: tuple[Column, ...], applied: TableSchema
    ) -> tuple[Column, ...]:
        """Columns that the catalog no longer has under that name and type are those the destination has.

        Unless a column came and went since the copy: it may be that one.
        """
        remembered = self._remembered(table_id)
        if remembered is None or max(dropped_attnums(self._open(), table_id), default=0) > remembered.last_attnum:
            return columns
        known = {column.name: column for column in applied.columns}
        return tuple(
            replace(column, attnum=known[column.name].attnum)
            if column.attnum == 0 and column.name in known and _is_alike(known[column.name], column)
            else column
            for column in columns
        )

    def _with_fills(self, schema: TableSchema, catalog: TableSchema | None) -> TableSchema:
        applied = self._applied(schema.table_id)
        if applied is None:
            return schema
        known = {column.name: column for column in applied.columns}
        today = set() if catalog is None else set(catalog.column_names)
        columns: list[Column] = []
        before = 0
        for column in schema.columns:
            if column.attnum == 0 and column.name not in known and column.name in today:
                # Added, and of another type by now: what older rows held in it nobody can tell any more.
                columns.append(replace(column, fill_known=False))
            else:
                columns.append(self._with_fill(schema, column, known.get(column.name), before))
            # One that is not known any more has a number of its own, too.
            before = column.attnum or before + 1
        return replace(schema, columns=tuple(columns))

    def _with_fill(self, schema: TableSchema, column: Column, applied: Column | None, before: int) -> Column:
        if column.attnum == 0 or (applied is not None and applied.attnum == column.attnum):
            return column
        if applied is not None and applied.attnum and _is_alike(applied, column):
            # Dropped and added again, or another one renamed to it. The catalog is as of now, and a Relation message
            # does not tell whether the rows behind it are from before: what they hold would go to the wrong column.
            return replace(column, fill_known=False)
        return self._fill(schema, column, before)

    def _fill(self, schema: TableSchema, column: Column, before: int) -> Column:
        """`before` is the number of the column that comes before this one in the WAL, or a lower one."""
        remembered = self._remembered(schema.table_id)
        try:
            fill = added_column_fill(self._open(), schema.table_id, column.attnum, remembered)
        except SourceChanged:
            return column  # dropped since; a later Relation message says so
        if fill.kind is not FillKind.UNKNOWN and remembered is not None:
            # A column of this name and type may have come and gone before this one came, and be what the WAL means.
            at_least = max(before, remembered.last_attnum)
            dropped = dropped_attnums(self._open(), schema.table_id)
            if any(at_least < attnum < column.attnum for attnum in dropped):
                return replace(column, fill_known=False)
        return replace(column, missing_value=fill.text, fill_known=fill.kind is not FillKind.UNKNOWN)


def _is_alike(one: Column, other: Column) -> bool:
    return (one.type.oid, one.type_modifier) == (other.type.oid, other.type_modifier)


def _column(described: RelationColumn, catalog: TableSchema | None, applied: TableSchema | None) -> Column:
    for schema in (catalog, applied):
        for column in () if schema is None else schema.columns:
            if column.name == described.name and column.type.oid == described.type_oid:
                # Not in the catalog any more: the type is known, but not whether it is the same column.
                attnum = column.attnum if schema is catalog else 0
                return replace(column, type_modifier=described.type_modifier, attnum=attnum)
    pg_type = builtin(described.type_oid) or PgType(described.type_oid, str(described.type_oid), kind=TypeKind.PSEUDO)
    return Column(described.name, pg_type, described.type_modifier)


def _key(relation: Relation, catalog: TableSchema | None) -> tuple[str, ...]:
    names = {column.name for column in relation.columns}
    if relation.replica_identity in (ReplicaIdentity.DEFAULT, ReplicaIdentity.INDEX):
        return tuple(column.name for column in relation.columns if column.key)
    # FULL flags every column, NOTHING none: the primary key decides, if the catalog has one.
    if catalog is not None and catalog.key and names.issuperset(catalog.key):
        return tuple(column.name for column in relation.columns if column.name in catalog.key)
    return ()
