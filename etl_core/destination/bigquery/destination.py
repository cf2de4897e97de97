"""BigQuery as a destination: `public.orders` is `orders` in the dataset that the options name for `public`.

**Exactly once.** A batch is staged, then one script in one multi-statement transaction compares the watermarks and the
stream's position with those expected, merges every table's rows and moves both. BigQuery runs it whole or not at all,
and aborts one of two that touch the same table. A job's id is chosen before it is sent, so that a job whose answer was
lost is found again; what a process that died has sent may still commit, and then the next one's expectation fails. A
copy has an argument of its own: see `copy`.

Tables whose changes are streamed have no such transaction; `cdc`, `change_streams` and `redo_log` have their argument.
A batch of more than 99 tables is written in several transactions: see `transactions`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from etl_core.batch import WriteBatch
from etl_core.destination.bigquery import statements
from etl_core.destination.bigquery.alterations import add_columns, drop_columns
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, StoredTable
from etl_core.destination.bigquery.change_streams import ChangeStreams
from etl_core.destination.bigquery.changes import Stager
from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.copy import BigQueryCopy, BigQueryPart, give_up
from etl_core.destination.bigquery.failures import ORIGIN, REMOVAL, QuotaUsedUp, translated
from etl_core.destination.bigquery.method import is_streamed
from etl_core.destination.bigquery.names import Place, check_dataset, place_of
from etl_core.destination.bigquery.options import BigQueryOptions, parse_options
from etl_core.destination.bigquery.pace import Pace
from etl_core.destination.bigquery.reading import read_columns
from etl_core.destination.bigquery.redo_log import RedoLog
from etl_core.destination.bigquery.transactions import Transaction, transactions
from etl_core.destination.bigquery.types import from_bigquery
from etl_core.destination.protocol import Job, Positions
from etl_core.errors import (
    COPIED_AGAIN,
    CopiedAgain,
    CopyNeeded,
    DestinationError,
    EtlError,
    TableError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

_log = logging.getLogger(__name__)


class BigQueryDestination:
    """See Destination and SharingDestination. May be used from several threads and processes."""

    def __init__(self, options: BigQueryOptions, pipeline: str) -> None:
        self._dataset = check_dataset(options.dataset)
        self._pipeline = pipeline
        self._layout = options.layout
        self._clients = Clients(options)
        self._book = Bookkeeping(self._clients, pipeline, options.location)
        self._streams = ChangeStreams(self._clients, self._book)
        self._redo = RedoLog(self._clients, self._book)
        self._left: set[TableId] = set()
        """Tables of a batch that may be committed and not streamed: nobody writes it again."""
        self._pace = Pace()

    def prepare(self) -> None:
        self._book.create()
        try:
            self._redo.finish(self._book.tables().values())
        except TableError as error:
            _log.warning("%s; its next batch says so again", error)

    def discard_staging(self) -> None:
        """See StagingDestination."""
        for prefix in ("copy", "part", "fill", "redo"):
            for place in self._book.staged(prefix):
                self._book.drop(place)

    def positions(self) -> Positions:
        """See Destination. A batch that is where it was to go counts as applied, so it is streamed to the end first."""
        self._finish_left()
        return self._book.positions()

    def refuses_removals(self, schema: TableSchema) -> None:
        """See RemovingDestination: none is refused."""

    def copy(self, schema: TableSchema) -> BigQueryCopy:
        return BigQueryCopy(self._clients, self._book, self._pipeline, schema, self.place(schema), self._layout)

    def join_copy(self, schema: TableSchema, address: str) -> BigQueryPart:
        """See SharingDestination."""
        return BigQueryPart(self._clients, Place(self._clients.project, self._book.dataset, address), schema)

    def write(self, batch: WriteBatch) -> list[Job]:
        self._pace.wait()
        try:
            jobs = self._write(batch)
        except QuotaUsedUp:
            self._pace.refused()
            raise
        self._pace.accepted()
        return jobs

    def _finish_left(self) -> None:
        """Streams what a batch that failed may have left. A table that cannot have it says so at its next batch.

        Raises DestinationUnavailable: the batch then counts as not applied, and is asked for again.
        """
        left = set(self._left)
        if not left:
            return
        tables = self._book.tables()
        try:
            self._redo.finish([tables[table_id] for table_id in left if table_id in tables])
        except (DestinationError, TableError) as error:
            _log.warning("%s; its next batch says so again", error)
        self._left -= left

    def _write(self, batch: WriteBatch) -> list[Job]:
        self._finish_left()
        tables = self._book.fenced_tables(batch)
        unfinished = [tables[table_id] for table_id in batch.watermarks if tables[table_id].redo]
        if unfinished:
            self._redo.finish(unfinished)
            tables = self._book.tables()
        if self._drop_leftovers(tables, batch):
            tables = self._book.tables()
        attempt = self._streams.begin_batch([tables[table_id] for table_id in batch.watermarks])
        if any(tables[table_id].claim != claim for table_id, claim in attempt.claims.items()):
            tables = self._book.fenced_tables(batch)  # a claim comes before the look at the positions
        stager = Stager(self._clients, self._book, tables, batch.watermarks, attempt)
        try:
            for part in batch.parts:
                stager.stage(part)
            stager.finish()
            return self._apply(batch, stager)
        except BaseException:
            attempt.failed()
            self._left.update(stager.redo)
            raise
        finally:
            stager.drop()

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. The rows are those of the moment of the call, however long they are read."""
        columns = self._columns_in_bigquery(schema)
        place = self._settled(schema, columns)
        with translated("reading", schema.name):
            batches = read_columns(self._clients, place, columns, schema.name)
        return (self._read_batch(batch, schema) for batch in batches)

    def _read_batch(self, batch: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
        try:
            return from_bigquery(batch, schema.columns).cast(arrow_schema(schema))
        except DestinationError as error:
            hint = f"copy the table again: etl resync {schema.name}"
            raise CopyNeeded(f"{schema.name}: {error}", table=str(schema.name), hint=hint) from None

    def _settled(self, schema: TableSchema, columns: list[str]) -> Place:
        """The table, or of one whose changes are streamed the result of a query, which has all changes in it."""
        stored = self._book.tables().get(schema.table_id)
        place = self.place(schema)
        if stored is None or not is_streamed(stored.method):
            return place
        self._redo.finish([stored])
        job = self._clients.run(statements.select(place, columns), "reading", table=schema.name)
        return Place(job.destination.project, job.destination.dataset_id, job.destination.table_id)

    def _columns_in_bigquery(self, schema: TableSchema) -> list[str]:
        stored = self._book.tables().get(schema.table_id)
        names = {} if stored is None else {column.name: column.column for column in stored.columns}
        return [names.get(column.name, column.column) for column in stored_columns(schema)]

    def forget(self, table_id: TableId) -> None:
        stored = self._book.tables().get(table_id)
        if stored is None:
            return
        try:
            self._redo.finish([stored])  # the rows stay, and are to be those of the watermark
        except (DestinationError, TableError) as error:
            _log.warning("%s; it is given up without its last batch", error)
        self._book.forget(table_id)
        give_up(self._clients, stored)

    def close(self) -> None:
        self._streams.close()
        self._clients.close()

    def place(self, schema: TableSchema) -> Place:
        """Where the table is replicated to."""
        return place_of(self._clients.project, self._dataset, schema.name)

    def _apply(self, batch: WriteBatch, stager: Stager) -> list[Job]:
        for table_id in stager.moves.changed():
            add_columns(self._clients, self._book, stager.moves, table_id, batch.watermarks[table_id])
        stager.complete(self._redo)
        jobs = []
        try:
            for transaction in transactions(self._book, batch, stager):
                jobs.append(self._run(transaction, stager))
                stager.keep_logged()
        except (WatermarkConflict, TableError):
            raise  # what was to be committed last is not
        except BaseException:
            stager.keep_logged()  # it may be committed
            raise
        if stager.redo:
            written = self._book.tables()
            self._redo.finish([written[table_id] for table_id in stager.redo if table_id in written])
        for table_id in stager.moves.changed():
            names = stager.moves.dropped(table_id)
            if names:
                drop_columns(self._clients, self._book, stager.moves.table(table_id), names)
        return jobs

    def _drop_leftovers(self, tables: Mapping[TableId, StoredTable], batch: WriteBatch) -> bool:
        """Drops columns of the batch's tables that a crash has left; says whether there were any."""
        left = [tables[table_id] for table_id in batch.watermarks if tables[table_id].dropped]
        for table in left:
            drop_columns(self._clients, self._book, table, table.dropped)
        return bool(left)

    def _run(self, transaction: Transaction, stager: Stager) -> Job:
        job = self._clients.run(
            transaction.sql,
            "writing a batch",
            transaction.parameters,
            job_prefix=f"etl_{self._pipeline}",
            explain=lambda message: _missing_rows(message, stager) or _missing_table(message, stager),
        )
        _log.info("job %s wrote a batch, %s bytes processed", job.job_id, job.total_bytes_processed)
        url = f"https://console.cloud.google.com/bigquery?project={job.project}&j=bq:{job.location}:{job.job_id}&page=queryresults"
        return Job(job.job_id, url, job.total_bytes_processed or 0)


def _missing_rows(message: str, stager: Stager) -> EtlError | None:
    """The error of the table whose rows are not there, if that is what the script's end was about."""
    found = re.search(rf"({ORIGIN}|{REMOVAL}):(\d+)", message)
    if found is None:
        return None
    name = stager.parts[int(found.group(2))].schema.name
    if found.group(1) == REMOVAL:
        return CopiedAgain(
            f"{name}: rows to remove are not there, so the table was changed from outside",
            table=str(name),
            hint=COPIED_AGAIN,
        )
    return TableError(
        f"{name}: rows whose unchanged values are needed are not there",
        table=str(name),
        hint=f"the table was changed from outside; copy it again: etl resync {name}",
    )


def _missing_table(message: str, stager: Stager) -> EtlError | None:
    """The error of a table that somebody has dropped."""
    if not re.search("not found|does not exist", message, re.IGNORECASE):
        return None
    for part in stager.parts:
        if re.search(rf"\b{part.place.dataset}\W{part.place.table}\b", message):
            return TableError(
                f"{part.schema.name}: {part.place} is not there",
                table=str(part.schema.name),
                hint=f"somebody has dropped it; copy it again: etl resync {part.schema.name}",
            )
    return None


def from_options(options: Mapping[str, object], pipeline: str) -> BigQueryDestination:
    """Builds the destination `{type: bigquery, project: …}`."""
    return BigQueryDestination(parse_options(options), pipeline)
