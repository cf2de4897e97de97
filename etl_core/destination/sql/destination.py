"""A destination in a SQL database with transactions: all of it that is not one product's.

**Exactly once.** Data, watermarks and the stream's position of a batch are one transaction. Its first statements move
the positions and are counted (`bookkeeping`), so a batch whose positions are not the expected ones writes no row, and a
second writer waits for them or is refused.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Generic

from etl_core.batch import TableChanges, WriteBatch
from etl_core.destination.aside import is_aside
from etl_core.destination.protocol import Positions
from etl_core.destination.sql import statements
from etl_core.destination.sql.bookkeeping import Bookkeeping
from etl_core.destination.sql.copy import SessionT, StagedCopy
from etl_core.destination.sql.deleted_rows import count_living
from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.histories import Histories
from etl_core.destination.sql.removals import refuses_removals
from etl_core.destination.sql.renames import Renames
from etl_core.destination.sql.session import Database, Session
from etl_core.destination.sql.staging import StagedPart, discard_abandoned
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.destination.sql.writer import TableWriter
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.change_log import has_log
from etl_core.schema.deleted_rows import has_deleted
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema


class SqlDestination(ABC, Generic[SessionT]):
    """See Destination, of which a product adds `read` and `close`. May be used from several threads.

    `staging` is the directory in which this pipeline's copies wait. Processes that share a copy must all see it.
    """

    def __init__(self, dialect: Dialect, database: Database[SessionT], pipeline: str, staging: Path) -> None:
        self._dialect = dialect
        self._database = database
        self._pipeline = pipeline
        self._staging = staging
        self._known: set[TableName] = set()
        """Tables that the database may have."""

    def discard_staging(self) -> None:
        """See StagingDestination. A copy that runs keeps its own."""
        discard_abandoned(self._staging)

    def prepare(self) -> None:
        self.discard_staging()
        with self._database.transaction() as session:
            book = self._book(session)
            book.create()
            self._known |= {stored.name for stored in book.all_tables()}

    def positions(self) -> Positions:
        return self.glance(None)

    def glance(self, wait_seconds: float | None) -> Positions:
        """See WaitingDestination. None waits as long as everything else."""
        if not self._database.exists():
            return Positions({}, None)
        with self._database.reading(wait_seconds=wait_seconds) as session:
            return self._book(session).positions()

    def count(self, tables: Mapping[TableId, TableName], wait_seconds: float) -> Mapping[TableId, tuple[Lsn, int]]:
        """See CountingDestination."""
        if not self._database.exists():
            return {}
        fold = self._dialect.fold
        with self._database.reading(wait_seconds=wait_seconds) as session:
            book = self._book(session)
            marks, stored = book.positions().tables, book.tables()
            # Asked first: an error would end the transaction, and no other table would be counted.
            there = {(fold(namespace), fold(name)) for namespace, name in session.relations(views=False)}
            places = {table_id: stored[table_id].name for table_id in tables if table_id in marks}
            return {
                table_id: (marks[table_id], _count_rows(session, name, stored[table_id]))
                for table_id, name in places.items()
                if (fold(name.namespace), fold(name.name)) in there
            }

    def refuses_removals(self, schema: TableSchema) -> str | None:
        """See RemovingDestination."""
        return refuses_removals(self._dialect, schema)

    def copy(self, schema: TableSchema) -> StagedCopy[SessionT]:
        copy = self._begin_copy(schema, self._directory(schema), is_known=schema.name in self._known)
        self._known.add(schema.name)
        return copy

    def _begin_copy(self, schema: TableSchema, directory: Path, *, is_known: bool) -> StagedCopy[SessionT]:
        return StagedCopy(self._dialect, self._database, self._pipeline, schema, directory, is_known=is_known)

    def join_copy(self, schema: TableSchema, address: str) -> StagedPart:
        """See SharingDestination. From another machine, too, if the directory is on a disk both see."""
        return StagedPart(self._directory(schema), address, arrow_schema(schema))

    def write(self, batch: WriteBatch) -> None:
        self._write(batch)

    def _write(self, batch: WriteBatch) -> int:
        """Returns the number of rows deleted and inserted."""
        with self._database.transaction(tables=len(batch.watermarks)) as session:
            book = self._book(session)
            stored = book.fence(batch)
            return self._apply(session, book, stored, batch.parts)

    def forget(self, table_id: TableId) -> None:
        if not self._database.exists():
            return  # to open it might make it
        with self._database.transaction() as session:
            book = self._book(session)
            if not book.exists():
                return
            before = book.tables().get(table_id)
            if before is None or not is_aside(before.name) or has_log(before.attnums) or has_deleted(before.attnums):
                book.forget(table_id)  # what a table keeps of its past is nowhere else
            else:
                self._drop_aside(session, book, before)

    def _drop_aside(self, session: SessionT, book: Bookkeeping, stored: StoredTable) -> None:
        """Nobody has read it, and nobody would find it."""
        book.forget(stored.table_id)
        book.free_name(stored.name)
        if (stored.name.namespace, stored.name.name) in session.relations(views=False):
            session.drop_table(stored.name)

    def _apply(
        self,
        session: SessionT,
        book: Bookkeeping,
        stored: Mapping[TableId, StoredTable],
        parts: Iterable[TableChanges],
    ) -> int:
        writers: dict[TableId, TableWriter] = {}
        histories = Histories(self._dialect, session, book)
        renames = Renames(self._dialect, session, book, histories)
        changed = 0
        for part in parts:
            table_id = part.schema.table_id
            if table_id not in writers:
                before = stored[table_id]
                place = renames.moved.get(table_id, before.name)
                writers[table_id] = TableWriter(self._dialect, session, place, before.attnums)
            with session.table_errors(part.schema.name):
                self._bring_to_name(renames, part.schema, stored, writers)
                changed += writers[table_id].apply(part)
            del part  # while the next one is decoded
        for table_id, writer in writers.items():
            if writer.attnums != stored[table_id].attnums:
                book.put_attnums(table_id, writer.attnums)
            schema = writer.schema
            if schema is not None and schema.history:
                with session.table_errors(schema.name):
                    histories.bring(schema, writer.name)
        for writer in writers.values():
            with session.table_errors(writer.name):
                session.check_deferred(writer.name)
        return changed

    def _place(self, session: SessionT, schema: TableSchema) -> TableName:
        """Where the table is: it may have been renamed at the source."""
        book = self._book(session)
        stored = book.tables().get(schema.table_id) if book.exists() else None
        return schema.name if stored is None else stored.name

    def _bring_to_name(
        self,
        renames: Renames,
        schema: TableSchema,
        stored: Mapping[TableId, StoredTable],
        writers: Mapping[TableId, TableWriter],
    ) -> None:
        writer, lsn = writers[schema.table_id], stored[schema.table_id].lsn
        if writer.name == schema.name or lsn is None:
            return
        renames.brought(schema, lsn)
        for table_id, place in renames.moved.items():
            if table_id in writers and writers[table_id].name != place:
                writers[table_id].move(place, is_written_anew=table_id in renames.written_anew)

    def _book(self, session: SessionT) -> Bookkeeping:
        return Bookkeeping(self._dialect, session, self._pipeline)

    def _directory(self, schema: TableSchema) -> Path:
        return self._staging / str(schema.table_id)


def _count_rows(session: Session, name: TableName, stored: StoredTable) -> int:
    """How many rows the table has that live."""
    table = session.identifier(name.namespace, name.name)
    query = count_living(table) if has_deleted(stored.attnums) else statements.count_rows(table)
    return int(session.fetch(query)[0][0])
