"""The initial copy of one table: staged in a directory, then loaded and published in one transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import pyarrow as pa

from etl_core.destination.change_log import emptied, stamped
from etl_core.destination.protocol import KeptRows, LoggedCopy, check_count, read_whole
from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import Additions, check_can_be_kept
from etl_core.destination.sql.bookkeeping import Bookkeeping
from etl_core.destination.sql.deleted_rows import RowsToKeep
from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.histories import Histories
from etl_core.destination.sql.names import check_columns, check_name
from etl_core.destination.sql.renames import Renames
from etl_core.destination.sql.session import Database, Session
from etl_core.destination.sql.staging import Staging
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.lsn import Lsn
from etl_core.schema.change_log import has_log
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

SessionT = TypeVar("SessionT", bound=Session)


class StagedCopy(Generic[SessionT]):
    """See TableCopy. Raises TableError at once for a table that this database cannot hold.

    `is_known` says that the database may have the table already: to look may cost as much as to open it.
    """

    def __init__(
        self,
        dialect: Dialect,
        database: Database[SessionT],
        pipeline: str,
        schema: TableSchema,
        directory: Path,
        *,
        is_known: bool,
    ) -> None:
        check_columns(dialect, schema)
        self._dialect = dialect
        self._database = database
        self._pipeline = pipeline
        self._schema = schema
        if is_known or schema.history:
            self._check_before()
        self._staging = Staging(directory, arrow_schema(schema))

    @property
    def address(self) -> str:
        return self._staging.address

    def write(self, rows: pa.RecordBatch) -> None:
        self._staging.write(rows)

    def include(self, receipt: str) -> None:
        self._staging.include(receipt)

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        return read_whole(lambda: self._publish(watermark, expected, None))

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        """See KeepingCopy."""
        return read_whole(lambda: self._publish(watermark, expected, kept))

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        """See AppendingCopy."""
        return read_whole(lambda: self._publish(watermark, expected, logged))

    def _publish(self, watermark: Lsn, expected: int | None, kept: KeptRows | LoggedCopy | None) -> int:
        with self._database.transaction() as session:
            book = Bookkeeping(self._dialect, session, self._pipeline)
            return self.publish_in(session, book, Histories(self._dialect, session, book), watermark, expected, kept)

    def publish_in(
        self,
        session: SessionT,
        book: Bookkeeping,
        histories: Histories,
        watermark: Lsn,
        expected: int | None,
        kept: KeptRows | LoggedCopy | None = None,
    ) -> int:
        """Publishes in a transaction that others may be published in, too; its end makes it durable."""
        name = self._schema.name
        with session.table_errors(name):
            loaded = self._load(session, book, histories, watermark, kept)
            session.check_deferred(name)
        check_count(name, loaded, expected)  # in the transaction, which leaves the old table then
        return loaded

    def _check_before(self) -> None:
        """Raises now what `publish` would raise after all rows were read."""
        if not self._database.exists():
            return
        with self._database.reading() as session:
            book = Bookkeeping(self._dialect, session, self._pipeline)
            if not book.exists():
                return
            histories = Histories(self._dialect, session, book)
            if self._schema.history:
                histories.check_views(self._schema, self._schema.name)
            before, name = book.tables().get(self._schema.table_id), self._schema.name
            if before is not None and before.name != name:
                self._check_name(session, book, histories, self._schema)
                self._additions(session, book, histories, replace(self._schema, name=before.name))
            elif before is None and any(other.name == name and other.lsn for other in book.tables().values()):
                self._check_name(session, book, histories, self._schema)  # that table is put aside
            else:
                self._additions(session, book, histories, self._schema)

    def _check_name(
        self, session: SessionT, book: Bookkeeping, histories: Histories, schema: TableSchema
    ) -> Collection[str]:
        histories.check_table(schema)
        present, called = session.relations_called(self._dialect, schema.name), book.called(schema.name)
        return check_name(self._dialect, schema, self._pipeline, called, present, session.is_left)

    def _additions(self, session: SessionT, book: Bookkeeping, histories: Histories, schema: TableSchema) -> Additions:
        """What people have added to the table that is there. Raises TableError if it must not be replaced."""
        dialect = self._dialect
        ours = self._check_name(session, book, histories, schema)
        if not ours:
            return Additions()
        additions = session.additions(schema.name, ours)
        types: dict[str, str] = {}
        if additions.columns:  # so the table is there
            types = {column.name: column.type for column in session.columns(schema.name)}
        check_can_be_kept(dialect, schema, additions, ours, types)
        return additions

    def _load(
        self,
        session: SessionT,
        book: Bookkeeping,
        histories: Histories,
        watermark: Lsn,
        keep: KeptRows | LoggedCopy | None,
    ) -> int:
        dialect = self._dialect
        book.hold(self._schema)
        # First: the rows of before, which may be kept, are found under the name of now; those of another table stay.
        schema = replace(self._schema, name=Renames(dialect, session, book, histories).brought(self._schema, watermark))
        additions = self._additions(session, book, histories, schema)
        session.create_namespace(schema.name.namespace)
        kept = dialect.temporary("etl$kept")
        if additions.columns:
            there = session.identifier(schema.name.namespace, schema.name.name)
            names = [*schema.key, *(column.name for column in additions.columns)]
            session.put_aside(kept, statements.keep(there, [(name, name) for name in names]))
        stays = None if keep is None else self._before(session, book, schema, keep)
        before, is_ordered = None, True
        if stays is not None and keep is not None:
            if isinstance(keep, LoggedCopy) and stays.lsn is None:
                is_ordered = histories.is_ordered(stays.name, watermark)
            before = RowsToKeep(dialect, session, stays, schema, keep, additions.columns, self._staging.read, watermark)
        arrow = arrow_schema(schema)
        staged = self._staging.read(arrow)
        if isinstance(keep, LoggedCopy):
            staged = (stamped(batch, watermark, keep.taken_at) for batch in staged)
        handed_over = (dialect.arrow_batch(batch, schema.columns, schema.name) for batch in staged)
        rows = pa.RecordBatchReader.from_batches(dialect.arrow_schema(schema.columns), handed_over)
        with session.made_anew(schema, additions) as table:
            if additions.columns:
                key = [schema.column(name) for name in schema.key]
                query = statements.insert_carrying(dialect, table, schema.columns, key, additions.columns, kept)
                loaded = session.execute_with(query, rows)
            else:
                loaded = session.insert(dialect, table, schema.columns, rows)
            if isinstance(keep, LoggedCopy) and not loaded:
                empty = dialect.arrow_batch(emptied(arrow, watermark, keep.taken_at), schema.columns, schema.name)
                session.insert(dialect, table, schema.columns, pa.Table.from_batches([empty]))
            if before is not None:
                before.insert_into(table)
        if additions.columns:
            session.drop_temporary(kept)
        book.put_table(schema, watermark)
        has_keys = before is not None and before.has_keys
        histories.copied(schema, stays, watermark, is_ordered=is_ordered, has_keys=has_keys)
        histories.bring(schema, schema.name)
        return loaded

    def _before(
        self, session: SessionT, book: Bookkeeping, schema: TableSchema, keep: KeptRows | LoggedCopy
    ) -> StoredTable | None:
        """The table whose rows stay; None where none do."""
        before, dialect = book.tables().get(schema.table_id), self._dialect
        if before is None or before.name != schema.name:
            return None
        if has_log(before.attnums) is not isinstance(keep, LoggedCopy):
            return None  # it had another write mode
        there = {(dialect.fold(namespace), dialect.fold(name)) for namespace, name in session.relations(views=False)}
        if (dialect.fold(schema.name.namespace), dialect.fold(schema.name.name)) not in there:
            return None
        return before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staging.discard()
