"""A destination that keeps watermarks and no rows: what remains is the cost of everything before it.

The fence and the positions hold as in any other destination, in memory only; `read` yields nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pyarrow as pa

from etl_core.batch import StreamPosition, WriteBatch
from etl_core.destination.declaration import DestinationType
from etl_core.destination.protocol import KeptRows, Positions, check_stream
from etl_core.errors import WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.write_mode import WriteMode


class NullDestination:
    """Counts rows where it must and forgets them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[TableId, Lsn] = {}
        self._stream: StreamPosition | None = None

    def prepare(self) -> None:
        """Nothing to create."""

    def positions(self) -> Positions:
        with self._lock:
            return Positions(dict(self._tables), self._stream)

    def refuses_removals(self, schema: TableSchema) -> None:
        """See RemovingDestination: there are no rows."""

    def copy(self, schema: TableSchema) -> NullCopy:
        return NullCopy(self, schema.table_id)

    def write(self, batch: WriteBatch) -> None:
        """Consumes every part, as a destination that stores them would."""
        self._check(batch)
        for _ in batch.parts:
            pass
        with self._lock:
            self._tables.update({table_id: move.new for table_id, move in batch.watermarks.items()})
            if batch.stream is not None:
                self._stream = batch.stream.new

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 the same for every table
        return iter(())

    def forget(self, table_id: TableId) -> None:
        with self._lock:
            self._tables.pop(table_id, None)

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, batch: WriteBatch) -> None:
        with self._lock:
            for table_id, move in batch.watermarks.items():
                if self._tables.get(table_id) != move.expected:
                    raise WatermarkConflict(f"table {table_id} does not have the watermark {move.expected}")
            check_stream(self._stream, batch.stream)

    def _publish(self, table_id: TableId, watermark: Lsn) -> None:
        with self._lock:
            self._tables[table_id] = watermark


class NullCopy:
    """A copy of which only the number of rows is kept."""

    def __init__(self, destination: NullDestination, table_id: TableId) -> None:
        self._destination = destination
        self._table_id = table_id
        self._lock = threading.Lock()
        self._rows = 0

    def write(self, rows: pa.RecordBatch) -> None:
        with self._lock:
            self._rows += rows.num_rows

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:  # noqa: ARG002
        self._destination._publish(self._table_id, watermark)
        return self._rows

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:  # noqa: ARG002
        """See KeepingCopy."""
        return self.publish(watermark, expected)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is staged."""


NULL = DestinationType(
    options=(),
    build=lambda options, pipeline: NullDestination(),  # noqa: ARG005 one per process
    refuses=lambda mode, options: "it has no views" if mode is WriteMode.HISTORY else None,  # noqa: ARG005
)
