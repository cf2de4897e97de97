"""Relation messages to table schemas: what the WAL says a table was, completed by what the catalog knows.

A Relation message has names, types and key flags as of the WAL, but no attribute numbers, no missing values and
nothing about types that are not built in. The catalog has them as of today, which may be ahead; it is
asked again for every Relation message after the first, because the server sends one after each change. What it was when
the table was copied is in the table's fingerprint: by it a column that came since is told from one that was there, and
a type that PostgreSQL changed by writing every row anew from one that it changed in the catalog alone.
Which column is which is told by `relation_columns`, which asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg

from etl_core.errors import SourceChanged, SourceLocked
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import Relation
from etl_core.replication.relation_columns import Identified, Known, as_applied, identify, is_alike
from etl_core.schema.fingerprint import Fingerprint
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.source.catalog import PublishedTable, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.fill import FillKind, added_column_fill, dropped_attnums, has_files
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
        identified = self._identify(relation, catalog)
        schema = TableSchema(
            relation.table_id,
            TableName(relation.namespace or "pg_catalog", relation.name),
            identified.columns,
            _key(relation, identified.columns, catalog),
            relation.replica_identity,
            comment=None if catalog is None else catalog.comment,
        )
        return self._with_fills(schema, catalog, identified.is_proven)

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

    def _identify(self, relation: Relation, catalog: TableSchema | None) -> Identified:
        table_id = relation.table_id
        known = Known(self._applied(table_id), catalog)
        identified = as_applied(relation.columns, known)
        if identified is not None:
            return identified
        if known.applied is not None:
            remembered = self._remembered(table_id)
            last_attnum = None if remembered is None else remembered.last_attnum
            known = replace(known, dropped=dropped_attnums(self._open(), table_id), last_attnum=last_attnum)
        return identify(relation.columns, known)

    def _with_fills(self, schema: TableSchema, catalog: TableSchema | None, is_proven: bool) -> TableSchema:
        """`schema` with what is known of the rows that are older than a column or its type."""
        applied = self._applied(schema.table_id)
        if applied is None:
            return schema
        known = {column.name: column for column in applied.columns}
        held = {column.attnum: column for column in applied.columns if column.attnum}
        today = set() if catalog is None else set(catalog.column_names)
        columns: list[Column] = []
        before = 0
        for column in schema.columns:
            if column.attnum == 0 and column.name not in known and column.name in today:
                # Added, and of another type by now: what older rows held in it nobody can tell any more.
                columns.append(replace(column, fill_known=False))
            elif column.attnum in held:
                columns.append(self._with_type(schema.table_id, column, held[column.attnum]))
            elif is_proven:
                columns.append(self._fill(schema, column))
            else:
                columns.append(self._with_fill(schema, column, known.get(column.name), before))
            # One that is not known any more has a number of its own, too.
            before = column.attnum or before + 1
        return replace(schema, columns=tuple(columns))

    def _with_type(self, table_id: TableId, column: Column, applied: Column) -> Column:
        """A column that was there. One whose type changed holds what it held if no row was written anew since."""
        if is_alike(applied, column) or not column.fill_known:
            return column
        return replace(column, fill_known=has_files(self._open(), table_id, self._remembered(table_id)))

    def _with_fill(self, schema: TableSchema, column: Column, applied: Column | None, before: int) -> Column:
        """A column that was told by its name alone; `before` is the number of the one that comes before it, or less."""
        if column.attnum == 0:
            return column
        if applied is not None and applied.attnum and is_alike(applied, column):
            # Dropped and added again, or another one renamed to it. The catalog is as of now, and a Relation message
            # does not tell whether the rows behind it are from before: what they hold would go to the wrong column.
            return replace(column, fill_known=False)
        remembered = self._remembered(schema.table_id)
        if remembered is not None:
            # A column of this name and type may have come and gone before this one came, and be what the WAL means.
            at_least = max(before, remembered.last_attnum)
            dropped = dropped_attnums(self._open(), schema.table_id)
            if any(at_least < attnum < column.attnum for attnum in dropped):
                return replace(column, fill_known=False)
        return self._fill(schema, column)

    def _fill(self, schema: TableSchema, column: Column) -> Column:
        remembered = self._remembered(schema.table_id)
        try:
            fill = added_column_fill(self._open(), schema.table_id, column.attnum, remembered)
        except SourceChanged:
            return column  # dropped since; a later Relation message says so
        return replace(column, missing_value=fill.text, fill_known=fill.kind is not FillKind.UNKNOWN)


def _key(relation: Relation, columns: tuple[Column, ...], catalog: TableSchema | None) -> tuple[str, ...]:
    if relation.replica_identity in (ReplicaIdentity.DEFAULT, ReplicaIdentity.INDEX):
        return tuple(column.name for column in relation.columns if column.key)
    # FULL flags every column, NOTHING none: the primary key decides, if the catalog has one.
    keys = [] if catalog is None else [catalog.column(name) for name in catalog.key]
    named = {column.attnum or column.name for column in columns}
    if not all(key.attnum in named or key.name in named for key in keys):
        return ()
    wanted = {key.attnum for key in keys} | {key.name for key in keys if key.attnum not in named}
    return tuple(column.name for column in columns if (column.attnum or column.name) in wanted)
