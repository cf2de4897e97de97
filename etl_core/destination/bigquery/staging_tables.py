"""The staging tables of one batch: created, filled and dropped several at a time.

Each costs three requests that take a few tenths of a second and hardly any work: a batch of fifty tables would spend a
minute on them one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

import pyarrow as pa
from google.cloud import bigquery

from etl_core.destination.bigquery.bookkeeping import Bookkeeping
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.names import Place
from etl_core.destination.bigquery.staging import append_all
from etl_core.errors import EtlError
from etl_core.identifiers import TableName

_AT_ONCE = 8
"""Below the ten connections that Google's REST client keeps."""
_BYTES_ON_THEIR_WAY = 64_000_000
"""Of rows; a part of a large transaction may have that alone."""


class StagingTables:
    """Used by one thread. `drop` ends it, whatever happened before."""

    def __init__(self, clients: Clients, book: Bookkeeping) -> None:
        self._clients = clients
        self._book = book
        self._threads = ThreadPoolExecutor(_AT_ONCE, "bigquery-staging")
        self._places: list[Place] = []
        self._on_their_way: deque[tuple[Future[None], int]] = deque()

    def put(self, prefix: str, fields: Sequence[bigquery.SchemaField], rows: pa.Table, table: TableName) -> Place:
        """A table of its own for `rows` of `table`; they are there after `finish`.

        Waits while too much is on its way, and raises what went wrong with it.
        """
        while self._on_their_way and sum(size for _, size in self._on_their_way) + rows.nbytes > _BYTES_ON_THEIR_WAY:
            self._finish_first()
        place = self._book.staging_place(prefix)
        self._places.append(place)
        self._on_their_way.append((self._threads.submit(self._fill, place, fields, rows, table), rows.nbytes))
        return place

    def create(self, prefix: str, fields: Sequence[bigquery.SchemaField]) -> Place:
        """An empty table of its own."""
        place = self._book.staging_place(prefix)
        self._places.append(place)
        self._book.create_staging(place, fields)
        return place

    def finish(self) -> None:
        """Waits until all rows are there. Raises the first thing that went wrong."""
        while self._on_their_way:
            self._finish_first()

    def keep(self, places: Collection[Place]) -> None:
        """Leaves tables to others."""
        self._places = [place for place in self._places if place not in places]

    def drop(self) -> None:
        """Drops the tables; one that cannot be dropped now goes by itself."""
        wait(future for future, _ in self._on_their_way)
        list(self._threads.map(self._drop, self._places))
        self._threads.shutdown()

    def _finish_first(self) -> None:
        future, _ = self._on_their_way.popleft()
        future.result()

    def _fill(self, place: Place, fields: Sequence[bigquery.SchemaField], rows: pa.Table, table: TableName) -> None:
        self._book.create_staging(place, fields)
        append_all(self._clients, place, rows, table)

    def _drop(self, place: Place) -> None:
        with suppress(EtlError):
            self._book.drop(place)
