"""The tables whose changes are streamed: a writer for each, and the numbers of the tries to write.

What makes this exact is in `cdc`, if of two tries that begin at one watermark the later has the larger number, and if
the earlier cannot move the watermark once the later has begun: the later's rows, which may end before the earlier's,
would outrank them for good. A number is that of the table's claim and a count of this process's own tries. Claims are
in the bookkeeping. A process claims a table when it finds another claim there than its own, and also after a try that
failed, whose transaction may be on its way still; only then it looks at the watermark. The transaction that moves the
watermark compares the claim's token. Its number would not do: a copy begins the numbers again.

A process that stood still after it had looked at the watermark, and was succeeded, may still send rows. Their numbers
are smaller than those of the rows that its successor sent of the same keys, so BigQuery ignores them. Not so if the
table was copied again meanwhile: the copy has no numbers. BigQuery's requests have no condition that would refuse them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from etl_core.batch import TableChanges
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, Claim, StoredTable
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.columns import StoredColumn
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.method import STREAMED
from etl_core.destination.bigquery.names import Place
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

_TRIES_BITS = 32


@dataclass(slots=True)
class _Open:
    writer: CdcWriter
    place: Place
    schema: TableSchema
    names: tuple[str, ...]


class Attempt:
    """One try to write a batch. It has its numbers for itself: other threads write other tables meanwhile."""

    def __init__(self, streams: ChangeStreams, number: int, claims: Mapping[TableId, Claim]) -> None:
        self._streams = streams
        self._number = number
        self._parts = 0
        self.claims = claims
        """Of those of its tables whose changes are streamed."""

    def send(self, changes: TableChanges, place: Place, columns: Sequence[StoredColumn], watermark: Lsn) -> None:
        """The next part of the batch, which begins at `watermark` for its table; on return BigQuery has it.

        Raises what `CdcWriter.write` raises.
        """
        number = (self.claims[changes.schema.table_id].number << _TRIES_BITS) + self._number
        part, self._parts = self._parts, self._parts + 1
        self._streams.writer(changes.schema, place, columns).write(changes, watermark, number, part)

    def failed(self) -> None:
        """What of it is on its way may arrive, but no longer moves a watermark once the next try has begun."""
        self._streams.give_up(self.claims)


class ChangeStreams:
    """Of one destination. Used by several threads, but for one table by one at a time."""

    def __init__(self, clients: Clients, book: Bookkeeping) -> None:
        self._clients = clients
        self._book = book
        self._lock = threading.Lock()
        self._open: dict[TableId, _Open] = {}
        self._claims: dict[TableId, Claim] = {}
        self._tries = 0

    def begin_batch(self, tables: Collection[StoredTable]) -> Attempt:
        """The next try to write a batch of `tables`, the same batch or another.

        If it has other claims than `tables`, these are to be read again. Raises WatermarkConflict if a table is being
        copied again.
        """
        streamed = [table for table in tables if table.method == STREAMED]
        with self._lock:
            self._tries += 1
            number = self._tries
            claims = {table.table_id: self._claims.get(table.table_id) for table in streamed}
        lost = [table.table_id for table in streamed if table.claim is None or table.claim != claims[table.table_id]]
        if lost:
            self.give_up(lost)
            claimed = self._book.claim(lost)
            with self._lock:
                self._claims |= claimed
            claims |= claimed
        return Attempt(self, number, {table_id: claim for table_id, claim in claims.items() if claim is not None})

    def give_up(self, table_ids: Collection[TableId]) -> None:
        """Of tables that are to be claimed again; a connection may be to the table that a copy has replaced."""
        with self._lock:
            given = [self._open.pop(table_id) for table_id in table_ids if table_id in self._open]
            for table_id in table_ids:
                self._claims.pop(table_id, None)
        for opened in given:
            opened.writer.close()

    def close(self) -> None:
        """Ends the connections. Idempotent; later sends open new ones."""
        with self._lock:
            given = list(self._open.values())
            self._open.clear()
        for opened in given:
            opened.writer.close()

    def writer(self, schema: TableSchema, place: Place, columns: Sequence[StoredColumn]) -> CdcWriter:
        """The table's, under this schema."""
        names = tuple(column.column for column in columns)
        with self._lock:
            opened = self._open.get(schema.table_id)
            if opened is not None and (opened.place, opened.schema, opened.names) == (place, schema, names):
                return opened.writer
            new = _Open(CdcWriter(self._clients.write(), place.path, schema, names), place, schema, names)
            self._open[schema.table_id] = new
        if opened is not None:
            opened.writer.close()
        return new.writer
