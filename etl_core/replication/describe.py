"""Relation messages to table schemas: what the WAL says a table was, completed by what the catalog knows.

A Relation message has names, types and key flags as of the WAL, but no attribute numbers, no missing values and
nothing about types that are not built in. The catalog has them as of today, which may be ahead; it is
asked again for every Relation message after the first, because the server sends one after each change. What it was when
the table was copied is in the table's fingerprint: by it a column that came since is told from one that was there, and
a type that PostgreSQL changed by writing every row anew from one that it changed in the catalog alone.
Which column is which is told by `relation_columns`, which asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg

from etl_core.errors import SourceChanged, SourceLocked
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import LogicalDecodingMessage, Relation
from etl_core.replication.relation_columns import Identified, Known, as_known, identify, is_alike, numbered
from etl_core.replication.told_tables import ToldTables, as_sent
from etl_core.schema.alterations import cannot_be_told
from etl_core.schema.fingerprint import Fingerprint
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.source.catalog import PublishedTable, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.ddl_trigger import trigger_state
from etl_core.source.fill import FillKind, added_column_fill, attributes_now, has_files
from etl_core.source.server import current_lsn
from etl_core.source.sqlstate import translate
from etl_core.state.store import Remembered


class Describer:
    """Describes relations on one connection, which it opens when first asked and closes with `close`.

    `applied` gives the schema a table has in the destination and `watermark` its watermark there, None for a table that
    is not replicated; `remembered` its fingerprint, of a moment that the stream has passed. Messages come in order.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        publication: str,
        applied: Callable[[TableId], TableSchema | None],
        watermark: Callable[[TableId], Lsn | None],
        remembered: Callable[[TableId], Remembered | None],
    ) -> None:
        self._connect = connect
        self._publication = publication
        self._applied = applied
        self._watermark = watermark
        self._last: dict[TableId, tuple[Lsn, TableSchema]] = {}
        self._remembered = remembered
        self._told = ToldTables(lambda: trigger_state(self._open()))
        self._connection: Connection | None = None
        self._first_look: dict[TableId, TableSchema] | None = None
        self._looked_at = ZERO

    def announced(self, message: LogicalDecodingMessage, commit_lsn: Lsn) -> Iterator[Relation]:
        """The replicated tables that a message of the event trigger says to be altered, as the next row's message will.

        The trigger is used where it is installed; nothing depends on it.
        """
        for told in self._told.note(message):
            base, mark = self._base(told.table_id, commit_lsn), self._watermark(told.table_id)
            seen = self._seen(told.table_id)
            # Which columns a list lets through is not told.
            if base is None or mark is None or mark > commit_lsn or seen is None or _has_list(seen):
                continue
            relation = as_sent(told, base)
            if relation is not None:
                yield relation

    def __call__(self, relation: Relation, commit_lsn: Lsn) -> TableSchema:
        """The schema of the rows that follow `relation`, in the transaction whose commit record is at `commit_lsn`."""
        catalog = self._catalog(relation.table_id, commit_lsn)
        base = self._base(relation.table_id, commit_lsn)
        identified = self._identify(relation, commit_lsn, catalog, base)
        schema = TableSchema(
            relation.table_id,
            TableName(relation.namespace or "pg_catalog", relation.name),
            identified.columns,
            _key(relation, identified.columns, catalog),
            _identity(relation, catalog),
            comment=None if catalog is None else catalog.comment,
            described_at=commit_lsn,
        )
        if base is None or not identified.is_proven:
            return cannot_be_told(schema)
        schema = self._with_fills(schema, base)
        mark = self._watermark(relation.table_id)
        if mark is not None and mark <= commit_lsn:
            # Older messages are of rows that the destination has, and say what it was before.
            self._last[relation.table_id] = commit_lsn, schema
        return schema

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

    def _identify(
        self, relation: Relation, commit_lsn: Lsn, catalog: TableSchema | None, base: TableSchema | None
    ) -> Identified:
        known = Known(base, catalog)
        identified = as_known(relation.columns, known)
        if identified is not None or base is None:
            return identified or identify(relation.columns, known)
        numbers = self._told.numbers(relation)
        if numbers is not None:
            return numbered(relation.columns, numbers, known)
        remembered = self._remembered(relation.table_id)
        # A look ahead of the stream says nothing of the time between: what was altered in it cannot be told.
        if remembered is not None and remembered.lsn <= commit_lsn:
            known = self._with_facts(known, base, remembered.fingerprint)
        return identify(relation.columns, known)

    def _with_facts(self, known: Known, base: TableSchema, seen: Fingerprint) -> Known:
        """What has become of the columns since the table was as in `seen`."""
        now = attributes_now(self._open(), base.table_id)
        before = {each.attnum: each.xmin for each in seen.attributes if each.name}
        unaltered = {attnum for attnum, xmin in now.items() if xmin and before.get(attnum) == xmin}
        others = _not_sent(seen) - {column.attnum for column in base.columns}
        return replace(
            known,
            dropped={attnum for attnum, xmin in now.items() if xmin is None},
            # What was not sent then may have been sent after somebody altered it.
            last_attnum=seen.last_attnum if others <= unaltered else None,
            unaltered=unaltered,
            has_files=has_files(self._open(), base.table_id, seen),
        )

    def _base(self, table_id: TableId, commit_lsn: Lsn) -> TableSchema | None:
        """The table at the latest moment before the message of which that is known.

        What the stream itself described last, unless the destination has been brought further by a new copy since.
        """
        last = self._last.get(table_id)
        mark = self._watermark(table_id)
        if last is None or mark is None or not mark <= last[0] <= commit_lsn:
            return self._applied(table_id)
        return last[1]

    def _with_fills(self, schema: TableSchema, base: TableSchema) -> TableSchema:
        """`schema` with what is known of the rows that are older than a column or its type."""
        held = {column.attnum: column for column in base.columns}
        return replace(
            schema,
            columns=tuple(
                self._with_type(schema.table_id, column, held[column.attnum])
                if column.attnum in held
                else self._with_fill(schema.table_id, column)
                for column in schema.columns
            ),
        )

    def _with_type(self, table_id: TableId, column: Column, applied: Column) -> Column:
        """A column that was there. One whose type changed holds what it held if no row was written anew since."""
        if is_alike(applied, column):
            return column
        return replace(column, fill_known=has_files(self._open(), table_id, self._seen(table_id)))

    def _seen(self, table_id: TableId) -> Fingerprint | None:
        remembered = self._remembered(table_id)
        return None if remembered is None else remembered.fingerprint

    def _with_fill(self, table_id: TableId, column: Column) -> Column:
        try:
            fill = added_column_fill(self._open(), table_id, column.attnum, self._seen(table_id))
        except SourceChanged:
            return column  # dropped since; a later Relation message says so
        return replace(column, missing_value=fill.text, fill_known=fill.kind is not FillKind.UNKNOWN)


def _not_sent(seen: Fingerprint) -> set[int]:
    """Columns that were there and not sent: generated ones, and all that a column list may leave out."""
    has_list = _has_list(seen)
    return {each.attnum for each in seen.attributes if each.name and (each.generated or has_list)}


def _has_list(seen: Fingerprint) -> bool:
    return seen.publishing is not None and any(way.columns is not None for way in seen.publishing.ways)


def _identity(relation: Relation, catalog: TableSchema | None) -> ReplicaIdentity:
    """The message's; or NOTHING if the catalog says that of a FULL one, which may be a partition's: see TableSchema."""
    found = relation.replica_identity
    if found is ReplicaIdentity.FULL and catalog is not None and catalog.replica_identity is ReplicaIdentity.NOTHING:
        return ReplicaIdentity.NOTHING
    return found


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
