"""The initial copy of one table: staged beside the bookkeeping, then put in place of the table by one statement.

**Why a crash cannot double or lose rows.** The streams are committed together to a staging table of this copy alone.
`publish` then removes the table's watermark, replaces the table (CREATE OR REPLACE TABLE … AS SELECT, one atomic
statement, so that a reader sees the old rows or the new ones), and stores the new watermark. A transaction cannot hold
all three, as BigQuery has none around DDL. A crash between leaves a table without a watermark: nobody writes to it, and
it is copied again. A stream's transaction that was under way when the watermark was removed changes the same row of the
bookkeeping: BigQuery aborts one of the two.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from etl_core.destination.bigquery import statements
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, StoredTable
from etl_core.destination.bigquery.change_log import LogToKeep, add_emptied, copied_values, count_copied
from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.connection import CALL_SECONDS, RETRY, Clients
from etl_core.destination.bigquery.deleted_rows import RowsToKeep, count_living, present_columns
from etl_core.destination.bigquery.failures import translated
from etl_core.destination.bigquery.layout import OWNER, Layout
from etl_core.destination.bigquery.method import AUTO, choose, is_streamed
from etl_core.destination.bigquery.names import Place
from etl_core.destination.bigquery.staging import PendingStream, commit
from etl_core.destination.bigquery.statements import Descriptions
from etl_core.destination.bigquery.types import to_bigquery
from etl_core.destination.protocol import KeptRows, LoggedCopy, check_count
from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.change_log import has_log
from etl_core.schema.table import TableSchema

_log = logging.getLogger(__name__)

_running: set[Place] = set()
_lock = threading.Lock()


class BigQueryCopy:
    """See SharedCopy. Its address is the staging table's name, a receipt the name of a finished write stream."""

    def __init__(
        self, clients: Clients, book: Bookkeeping, pipeline: str, schema: TableSchema, place: Place, layout: Layout
    ) -> None:
        self._clients = clients
        self._book = book
        self._schema = schema
        self._place = place
        present = check_owner(clients, book, pipeline, schema, place)
        # What people have written about a table stays where the source and the configuration say nothing.
        self._labels = {**(present.labels if present else {}), **layout.labels, OWNER: pipeline}
        self._descriptions = Descriptions.of(present)
        self._present = present
        self._partition = layout.partition(schema)
        self._method, reason = choose(schema, layout.method, may_be_stale=bool(layout.max_staleness))
        self._max_staleness = layout.max_staleness if is_streamed(self._method) else None
        if layout.method == AUTO:
            _log.info("changes of %s go by %s, because %s", schema.name, self._method, reason)
        self._guard = threading.Lock()
        self._streams: dict[int, PendingStream] = {}
        self._included: list[str] = []
        with _lock:
            if place in _running:
                raise DestinationUnavailable(
                    f"another copy into {place} is running", hint="wait for it, or end the process that runs it"
                )
            _running.add(place)
        try:
            prefix = f"copy_{schema.table_id}"
            for left in book.staged(prefix):
                book.drop(left)
            book.create_dataset(place.dataset)
            self._staging = book.staging_place(prefix)
            book.create_staging(self._staging, statements.fields(stored_columns(schema), schema))
        except BaseException:
            self._release()
            raise

    @property
    def address(self) -> str:
        return self._staging.table

    def write(self, rows: pa.RecordBatch) -> None:
        thread = threading.get_ident()
        with self._guard:
            stream = self._streams.get(thread)
        if stream is None:
            stream = PendingStream(self._clients, self._staging, self._schema.name)
            with self._guard:
                self._streams[thread] = stream
        stream.append(as_stored(rows, self._schema))

    def include(self, receipt: str) -> None:
        if not receipt.startswith(f"{self._staging.path}/streams/"):
            raise DestinationError(f"rows of a shared copy were staged for another copy of {self._schema.name}")
        self._included.append(receipt)

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        return self._publish(watermark, expected, None)

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        """See KeepingCopy. Neither does a crash lose rows: the table, old or new, has them until the next copy.

        So the bookkeeping keeps the table's row, without a watermark, until it is changed.
        """
        return self._publish(watermark, expected, kept)

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        """See AppendingCopy. No crash loses rows, as none does in `publish_keeping`."""
        return self._publish(watermark, expected, logged)

    def _publish(self, watermark: Lsn, expected: int | None, kept: KeptRows | LoggedCopy | None) -> int:
        for stream in self._streams.values():
            stream.finish()
        names = [*(stream.name for stream in self._streams.values()), *self._included]
        if names:
            commit(self._clients, self._staging, names, self._schema.name)
        staged = self._fetch_count(statements.count(self._staging))
        check_count(self._schema.name, staged, expected)  # before anything is replaced
        before = self._book.tables()
        keep = None if kept is None else self._rows_to_keep(before, kept, watermark)
        if keep is None:
            self._book.remove(self._schema, self._place)
        else:
            self._book.forget(self._schema.table_id)  # first: what a stream writes from now on would be lost
            self._book.remove_others(self._schema, self._place)
            self._clients.run(keep.add_to(self._staging, self._schema), "keeping rows", table=self._schema.name)
        if isinstance(kept, LoggedCopy) and not staged:
            query = add_emptied(self._staging, watermark, kept.taken_at)
            self._clients.run(query, "noting an empty table", table=self._schema.name)
        sql = statements.replace_table(
            self._place,
            self._staging,
            self._schema,
            self._labels,
            self._partition,
            self._max_staleness,
            self._descriptions,
            copied_values(watermark, kept.taken_at) if isinstance(kept, LoggedCopy) else None,
        )
        self._clients.run(sql, "publishing a copy", table=self._schema.name, explain=self._partitioned_otherwise)
        if keep is None:
            self._book.put_table(self._schema, self._place, watermark, self._method)
        else:
            self._book.change_table(self._schema, self._place, watermark, self._method)
        old = before.pop(self._schema.table_id, None)
        if old is not None and old.place not in {self._place, *(other.place for other in before.values())}:
            give_up(self._clients, old)  # it was renamed; its rows stay for readers, and others may replace them
        if isinstance(kept, LoggedCopy):
            return self._fetch_count(count_copied(self._place, watermark))
        return self._fetch_count(statements.count(self._place) if kept is None else count_living(self._place))

    def _rows_to_keep(
        self, before: Mapping[TableId, StoredTable], kept: KeptRows | LoggedCopy, watermark: Lsn
    ) -> RowsToKeep | LogToKeep | None:
        """Of the table as the bookkeeping has it: one that is not in it may be another that had the name before."""
        known = before.get(self._schema.table_id)
        is_log = isinstance(kept, LoggedCopy)
        if known is None or has_log({column.name: column.attnum for column in known.columns}) is not is_log:
            return None  # it is new, or had another write mode
        table = self._present if known.place == self._place else look_at(self._clients, known.place)
        if table is None:
            return None
        there = {field.name: _sql_type(field) for field in table.schema}
        columns = present_columns(known.columns, there)
        if isinstance(kept, LoggedCopy):
            return LogToKeep(known.place, columns, kept.changed, watermark, known.watermark is not None)
        return RowsToKeep(known.place, columns, kept)

    def _fetch_count(self, query: str) -> int:
        counted = self._clients.run(query, "counting rows", table=self._schema.name)
        return next(int(row[0]) for row in counted.result())

    def _partitioned_otherwise(self, message: str) -> TableError | None:
        if "partitioning spec" not in message:
            return None
        return TableError(
            f"{self._place} is partitioned otherwise than destination.partition_by says",
            table=str(self._schema.name),
            hint="BigQuery does not change how a table is partitioned: drop the table there, then copy it again",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        with suppress(EtlError):  # it goes by itself
            self._book.drop(self._staging)

    def _release(self) -> None:
        with _lock:
            _running.discard(self._place)


class BigQueryPart:
    """See CopyPart."""

    def __init__(self, clients: Clients, staging: Place, schema: TableSchema) -> None:
        with translated("joining a copy"):
            try:
                clients.rest().get_table(str(staging), retry=RETRY, timeout=CALL_SECONDS)
            except exceptions.NotFound:
                raise DestinationUnavailable(f"the copy of {schema.name} to be helped with is over") from None
        self._schema = schema
        self._stream = PendingStream(clients, staging, schema.name)

    def write(self, rows: pa.RecordBatch) -> None:
        self._stream.append(as_stored(rows, self._schema))

    def finish(self) -> str:
        self._stream.finish()
        return self._stream.name

    def discard(self) -> None:
        """A stream that nobody commits is nothing; BigQuery removes it."""


def give_up(clients: Clients, table: StoredTable) -> None:
    """Says in the table's labels that no pipeline keeps it any more."""
    client = clients.rest()
    with translated("giving a table up", table.name), suppress(exceptions.NotFound):
        found = client.get_table(str(table.place), retry=RETRY, timeout=CALL_SECONDS)
        given_up = bigquery.Table(found.reference)  # without the etag, with which it could be sent once only
        given_up.labels = {**found.labels, OWNER: ""}
        client.update_table(given_up, ["labels"], retry=RETRY, timeout=CALL_SECONDS)


def as_stored(rows: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """Rows under the names and in the types that BigQuery has for them."""
    converted = to_bigquery(pa.Table.from_batches([rows]), schema.columns, schema.name)
    named = converted.rename_columns([column.column for column in stored_columns(schema)])
    return named.combine_chunks().to_batches()[0] if rows.num_rows else rows.slice(0, 0)


_API_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "RECORD": "STRUCT"}


def _sql_type(field: bigquery.SchemaField) -> str:
    """A column's type as SQL has it, without what is in it."""
    return _API_NAMES.get(field.field_type, field.field_type)


def look_at(clients: Clients, place: Place) -> bigquery.Table | None:
    """The table that is there, if any."""
    with translated("looking at the table"):
        try:
            table: bigquery.Table = clients.rest().get_table(str(place), retry=RETRY, timeout=CALL_SECONDS)
        except exceptions.NotFound:
            return None
    return table


def check_owner(
    clients: Clients, book: Bookkeeping, pipeline: str, schema: TableSchema, place: Place
) -> bigquery.Table | None:
    """The table that is there. Raises TableError if it is not this pipeline's to replace, or has a person's columns."""
    stored = list(book.tables().values())
    for other in stored:
        is_another = other.table_id != schema.table_id and other.name != schema.name
        if other.place == place and is_another and other.watermark is not None:
            raise TableError(
                f"{schema.name} and {other.name} would both be {place}",
                table=str(schema.name),
                hint="write destination.dataset with {namespace} in it, or rename one of them",
            )
        is_log = has_log({column.name: column.attnum for column in other.columns})
        if other.place == place and other.table_id != schema.table_id and other.watermark is not None and is_log:
            raise TableError(
                f"{place} has the log of the table that was called {schema.name} before, and no other place has it yet",
                table=str(schema.name),
                hint="that table is copied to the place of its new name first, and this one is tried again by itself;"
                " if the two have swapped their names, neither can go first: rename one of them to a third name",
            )
    table = look_at(clients, place)
    if table is None:
        return None
    owner = table.labels.get(OWNER)
    if owner is None:
        raise TableError(
            f"{place} exists and was not made by a pipeline",
            table=str(schema.name),
            hint="rename or drop it: the copy would replace it",
        )
    if owner not in ("", pipeline):
        raise TableError(
            f"{place} is already replicated by pipeline {owner}",
            table=str(schema.name),
            hint="give each pipeline a dataset of its own",
        )
    for known in stored:
        if known.place == place:
            _check_columns(table, known, schema)
    return table


def _check_columns(table: bigquery.Table, known: StoredTable, schema: TableSchema) -> None:
    """Raises TableError for a column that is neither in the bookkeeping nor at the source: a swap would lose it."""
    ours = [column.column for column in (*known.columns, *stored_columns(schema))]
    ours += [*known.dropped, *(name for name, _ in known.added)]
    folded = {name.lower() for name in ours}
    foreign = [field.name for field in table.schema if field.name.lower() not in folded]
    if foreign:
        raise TableError(
            f"a new copy of {schema.name} would lose what {known.place} has in {', '.join(foreign)}, which this "
            "pipeline did not create",
            table=str(schema.name),
            hint="save it in a table of your own, drop the columns with ALTER TABLE … DROP COLUMN, "
            f"then: etl resync {schema.name}",
        )
