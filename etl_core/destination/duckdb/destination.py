"""DuckDB as a destination: the source's table `public.orders` is `public.orders` in one file, bookkeeping is in `_etl`.

**Exactly once.** Data, watermarks and the stream's position of a batch are one DuckDB transaction, made durable by its
COMMIT (WAL or table, fsynced). A process killed before leaves the state before; one killed after has committed, which
`positions` tells the next. The fence is that of `etl_core.destination.sql`.

**Sharing the file.** It is opened for each operation and closed; between two, other processes may read it. While `read`
is being consumed the file is open: other processes must wait, this one need not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_core.batch import TableChanges, WatermarkMove, WriteBatch
from etl_core.destination.doctor import check_writable
from etl_core.destination.duckdb.backup import back_up
from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.copy import DuckDBCopy
from etl_core.destination.duckdb.failures import DiskFull, explain_table, of_reader
from etl_core.destination.duckdb.location import STORAGE_VERSION
from etl_core.destination.duckdb.memory import MemoryRaised, is_raised
from etl_core.destination.duckdb.session import DuckDBDatabase, DuckDBSession, KeepingSession
from etl_core.destination.duckdb_sql.dialect import DIALECT
from etl_core.destination.duckdb_sql.session import database_of
from etl_core.destination.duckdb_sql.statements import table_identifier, text
from etl_core.destination.protocol import TableCopy, read_whole
from etl_core.destination.sql import statements
from etl_core.destination.sql.destination import SqlDestination
from etl_core.destination.sql.histories import Histories
from etl_core.errors import CopyNeeded, DestinationError, EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.change_log import current_view, history_view, rows_of, versions_of
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

# Merging writes rows again; done this seldom it costs little, and lost space stays small beside what the changes wrote.
_CHANGES_PER_MERGE = 2_000_000
_READ_ROWS = 2_048
"""What DuckDB works on at a time: larger batches would only need more memory."""
_READ_LARGE = 100
"""Where rows were too large for the usual memory."""
_EXAMINE_WAIT = 2.0
"""Seconds to wait for another process to let go of the file, where only its state is asked for."""


class DuckDBDestination(SqlDestination[DuckDBSession]):
    """See Destination. May be used from several threads; writers of one file take turns."""

    def __init__(
        self, path: Path, pipeline: str, *, storage_version: str = STORAGE_VERSION, wait_seconds: float = 60.0
    ) -> None:
        self._file = DatabaseFile(path, storage_version=storage_version, wait_seconds=wait_seconds)
        self._duckdb = DuckDBDatabase(self._file)
        staging = self._file.path.with_name(self._file.path.name + ".staging") / pipeline
        super().__init__(DIALECT, self._duckdb, pipeline, staging)
        self._changed = 0
        self._wrote = False

    def examine(self) -> str:
        """See ExaminableDestination."""
        path = self._file.path
        if path.parent.is_dir():
            try:
                check_writable(path.parent)
                is_writable = not path.exists() or os.access(path, os.W_OK)
            except OSError as error:
                raise DestinationError(
                    f"{path.parent} cannot be written: {error.strerror}", hint="give this user the right to write there"
                ) from None
            if not is_writable:
                raise DestinationError(f"{path} cannot be written", hint="give this user the right to write the file")
            if not path.exists():
                return f"{path} does not exist yet; it is created at the first start"
        with self._file.open(wait_seconds=_EXAMINE_WAIT):
            return f"{path} can be written"

    @contextmanager
    def session(self) -> Iterator[None]:
        """See SessionDestination. Other processes wait meanwhile, as for any open file."""
        with self._file.open():
            yield

    def stop_on(self, stop: threading.Event, on_waiting: Callable[[str], None]) -> None:
        """See WaitingDestination."""
        self._file.stop = stop
        self._file.on_waiting = on_waiting

    def publish_together(self, copies: Sequence[tuple[TableCopy, Lsn, int]]) -> list[int]:
        """See GroupDestination."""

        def publish() -> list[int]:
            with self._file.transaction(tables=len(copies)) as connection:
                session = KeepingSession(self._file, connection)
                book = self._book(session)
                book.keep_tables()  # who writes to the file in this process waits, and others have to
                histories = Histories(DIALECT, session, book)
                return [
                    copy.publish_in(session, book, histories, watermark, expected)
                    for copy, watermark, expected in copies
                    if isinstance(copy, DuckDBCopy)
                ]

        return read_whole(publish)

    def _begin_copy(self, schema: TableSchema, directory: Path, *, is_known: bool) -> DuckDBCopy:
        self._wrote = True
        return DuckDBCopy(self._duckdb, self._pipeline, schema, directory, is_known=is_known)

    def _write(self, batch: WriteBatch) -> int:
        if self._changed >= _CHANGES_PER_MERGE and self._file.merge():
            self._changed = 0
        try:
            changed = super()._write(replace(batch, parts=_releasing(batch.parts)))
        except DiskFull as error:
            raise DiskFull(f"{error}; {self._outcome(batch.watermarks)}", hint=error.hint) from None
        self._changed += changed
        self._wrote = True
        return changed

    def _outcome(self, moves: Mapping[TableId, WatermarkMove]) -> str:
        """What has become of a batch that failed: a checkpoint that fails comes after a durable commit."""
        try:
            found = self.positions().tables
        except EtlError:
            return "the next start reads from the file what was applied"
        moving = {table_id: move for table_id, move in moves.items() if move.new != move.expected}
        if moving and all(found.get(table_id) == move.new for table_id, move in moving.items()):
            return "the batch was applied"
        if moving and all(found.get(table_id) == move.expected for table_id, move in moving.items()):
            return "nothing of the batch was applied"
        return "the next start reads from the file what was applied"

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. The file stays open until the iterator is exhausted or closed."""
        return self._read_whole(schema, None)

    def read_current(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination. What does not fit into memory is sorted next to the file, in `<file>.tmp`."""
        return self._read_whole(rows_of(schema), current_view)

    def read_versions(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read_whole(versions_of(schema), history_view)

    def _read_whole(
        self, schema: TableSchema, view: Callable[[TableName], TableName] | None
    ) -> Iterator[pa.RecordBatch]:
        first: pa.RecordBatch | None = None
        while True:
            rows = self._read(schema, view)
            try:
                first = next(rows, None)
                break
            except MemoryRaised:  # a few times at most: it has all there is then
                continue
        if first is not None:
            yield first
        del first  # a batch of large rows is large
        yield from rows

    def _read(self, schema: TableSchema, view: Callable[[TableName], TableName] | None) -> Iterator[pa.RecordBatch]:
        target = arrow_schema(schema)
        with self._file.open() as connection:
            connection.execute("BEGIN TRANSACTION")  # the table stays where it is
            place = self._place(DuckDBSession(self._file, connection), schema)
            place = place if view is None else view(place)
            table = table_identifier(database_of(connection), place)
            if view is None:
                self._file.limit_reading(connection, len(schema.columns))
            try:
                rows = connection.sql(text(statements.select(DIALECT, table, schema.columns)))
                for batch in rows.to_arrow_reader(_READ_LARGE if is_raised(self._file.path) else _READ_ROWS):
                    yield batch.cast(target)
                    del batch  # not kept while the next one is made
            except (duckdb.Error, OSError) as failure:
                error = of_reader(failure) if isinstance(failure, OSError) else failure
                raise explain_table(error, schema.name, self._file.path) from None
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                raise CopyNeeded(
                    f"{schema.name} has a column of another type in DuckDB than is stored now",
                    table=str(schema.name),
                    hint=f"copy the table again: etl resync {schema.name}",
                ) from None

    def forget(self, table_id: TableId) -> None:
        if self._file.exists():
            super().forget(table_id)
            self._wrote = True

    def backup(self, target: Path) -> int:
        """See BackupDestination. The file is held meanwhile."""
        return back_up(self._file, target)

    def close(self) -> None:
        """Leaves one file, without a WAL and without the space of deleted rows, unless another process has it open."""
        if self._wrote and self._file.merge():
            self._wrote = False


def _releasing(parts: Iterable[TableChanges]) -> Iterator[TableChanges]:
    """Has Arrow give back what it keeps of the memory that it freed, before DuckDB takes some for a part or a commit.

    Decoding leaves 37 MB in a transaction of 1.5 M rows, 30 MB in a batch of 16 MiB, and a part as much as it had while
    DuckDB compresses the same rows.
    """
    for part in parts:
        pa.default_memory_pool().release_unused()
        yield part
        del part  # while the next one is decoded
    pa.default_memory_pool().release_unused()
