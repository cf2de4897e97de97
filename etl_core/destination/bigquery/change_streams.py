"""The tables whose changes are streamed: a writer for each, and the numbers of the tries to write.

What makes this exact is in `cdc`, if of two tries that begin at one watermark the later has the larger number. A number
is the table's epoch and a count of this process's own tries. The epoch is in the bookkeeping. A process claims the next
one when it finds another there than its own, and then only looks at the watermark; and the transaction that moves the
watermark compares the epoch too. So of two processes that both saw one watermark, the one with the smaller epoch cannot
move it any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from etl_core.batch import TableChanges
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, StoredTable
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.columns import StoredColumn
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.method import STREAMED
from etl_core.destination.bigquery.names import Place
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

_TRIES_BITS = 32
_NONE = -1


@dataclass(slots=True)
class _Open:
    writer: CdcWriter
    place: Place
    schema: TableSchema
    names: tuple[str, ...]


class ChangeStreams:
    """Of one destination; used by the thread that writes batches."""

    def __init__(self, clients: Clients, book: Bookkeeping) -> None:
        self._clients = clients
        self._book = book
        self._open: dict[TableId, _Open] = {}
        self._epochs: dict[TableId, int] = {}
        self._tries = 0
        self._part = 0

    def begin_batch(self, tables: Collection[StoredTable]) -> dict[TableId, int]:
        """The next try to write a batch, the same or another; returns the epochs of those tables that are streamed.

        Some of them may have been claimed: what is known of the bookkeeping is to be read again.
        """
        self._tries += 1
        self._part = 0
        streamed = [table for table in tables if table.method == STREAMED]
        lost = [table.table_id for table in streamed if table.epoch != self._epochs.get(table.table_id, _NONE)]
        if lost:
            self._epochs |= self._book.claim(lost)
        return {table.table_id: self._epochs[table.table_id] for table in streamed}

    def send(self, changes: TableChanges, place: Place, columns: Sequence[StoredColumn], watermark: Lsn) -> None:
        """The next part of the batch, which begins at `watermark` for its table; on return BigQuery has it.

        Raises what `CdcWriter.write` raises.
        """
        attempt = (self._epochs[changes.schema.table_id] << _TRIES_BITS) + self._tries
        self._writer(changes.schema, place, columns).write(changes, watermark, attempt, self._part)
        self._part += 1

    def close(self) -> None:
        """Ends the connections. Idempotent; later sends open new ones."""
        for opened in self._open.values():
            opened.writer.close()
        self._open.clear()

    def _writer(self, schema: TableSchema, place: Place, columns: Sequence[StoredColumn]) -> CdcWriter:
        names = tuple(column.column for column in columns)
        opened = self._open.get(schema.table_id)
        if opened is None or (opened.place, opened.schema, opened.names) != (place, schema, names):
            if opened is not None:
                opened.writer.close()
            opened = _Open(CdcWriter(self._clients.write(), place.path, schema, names), place, schema, names)
            self._open[schema.table_id] = opened
        return opened.writer
