"""Iceberg tables of a REST catalog: the source's table `public.orders` is `public.orders` in the catalog.

**Exactly once.** Data, watermarks and the stream's position of a batch are one request to the catalog, which commits
the tables of it or none, each only if it is in the state that the transaction has read. Every batch changes the
bookkeeping, so of two that expect the same positions one is refused. What became of a request whose answer was lost is
read from the catalog (`relay`).

Deletes are merge-on-read: files of positions. `compaction` makes few files of many, between two batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_core.batch import TableChanges, WriteBatch
from etl_core.destination.compaction import Compacted
from etl_core.destination.duckdb_sql.statements import text
from etl_core.destination.iceberg.catalog import Access, Catalog
from etl_core.destination.iceberg.compaction import NEVER, Cadence, Compaction
from etl_core.destination.iceberg.dialect import IcebergDialect
from etl_core.destination.iceberg.failures import explain_table
from etl_core.destination.iceberg.session import IcebergSession
from etl_core.destination.sql import statements
from etl_core.destination.sql.destination import SqlDestination
from etl_core.errors import CopyNeeded, DestinationUnavailable, TryAgain
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

_READ_ROWS = 2_048
_TRIES = 20
_KEPT_BYTES = 32 << 20
"""About twice what a batch of the stream has."""


class IcebergDestination(SqlDestination[IcebergSession]):
    """See Destination. May be used from several threads; writers of one catalog take turns.

    `staging` is a directory of this machine, in which the rows of a copy wait until it is published.
    """

    def __init__(self, access: Access, pipeline: str, staging: Path, cadence: Cadence = NEVER) -> None:
        self._iceberg = IcebergDialect()
        self._catalog = Catalog(access, self._iceberg)
        place = hashlib.sha256(repr((access.uri, access.warehouse)).encode()).hexdigest()[:12]
        super().__init__(self._iceberg, self._catalog, pipeline, staging / place / pipeline)
        self._compaction = Compaction(self._catalog, access, cadence)
        self._watermarks = TableName(self._iceberg.namespace, "watermarks")

    def examine(self) -> str:
        """See ExaminableDestination."""
        with self._catalog.reading() as session:
            session.relations(views=False)
        return f"the Iceberg catalog {self._catalog.uri} can be reached"

    def prepare(self) -> None:
        with self._catalog.reading() as session:
            book = self._book(session)
            missing = [] if book.exists() else book.creation()
        self._catalog.run_alone(missing)
        super().prepare()

    def _write(self, batch: WriteBatch) -> int:
        self._compaction.step(self._tables, self._watermarks)
        parts = _KeptParts(batch.parts)
        for _ in range(_TRIES):
            with suppress(TryAgain):
                return super()._write(replace(batch, parts=parts))
            if parts.is_cut:
                raise DestinationUnavailable("a table was made, or changed by somebody else, while a batch was written")
        return super()._write(replace(batch, parts=parts))

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination."""
        for _ in range(_TRIES):
            rows = self._read(schema)
            with suppress(TryAgain):  # another process has changed the table since this transaction began
                first = next(rows, None)
                break
        else:
            rows = self._read(schema)
            first = next(rows, None)
        if first is not None:
            yield first
        del first
        yield from rows

    def _read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        target = arrow_schema(schema)
        with self._catalog.reading_beside() as session:
            place = self._place(session, schema)
            table = session.identifier(place.namespace, place.name)
            query = text(statements.select(self._iceberg, table, schema.columns))
            try:
                for batch in session.read(query, _READ_ROWS):
                    yield batch.cast(target)
            except (duckdb.Error, OSError) as failure:
                error = failure if isinstance(failure, duckdb.Error) else duckdb.IOException(str(failure))
                raise explain_table(error, schema.name, self._catalog.uri) from None
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                raise CopyNeeded(
                    f"{schema.name} has a column of another type in Iceberg than is stored now",
                    table=str(schema.name),
                    hint=f"copy the table again: etl resync {schema.name}",
                ) from None

    def compact(self, tables: Sequence[TableName] | None) -> Iterator[Compacted]:
        """See CompactingDestination."""
        return self._compaction.run([*self._tables(), self._watermarks] if tables is None else tables)

    def _tables(self) -> Sequence[TableName]:
        """This pipeline's, and that of its stream's position."""
        with self._catalog.reading() as session:
            book = self._book(session)
            ours = book.tables().values() if book.exists() else []
        return [*(each.name for each in ours if each.lsn is not None), TableName(self._iceberg.namespace, "streams")]

    def close(self) -> None:
        self._catalog.close()


class _KeptParts:
    """The parts of a batch, which can be read but once, for a second try; those of a large one are not kept."""

    def __init__(self, parts: Iterable[TableChanges]) -> None:
        self._rest = iter(parts)
        self._read: list[TableChanges] = []
        self._bytes = 0
        self.is_cut = False

    def __iter__(self) -> Iterator[TableChanges]:
        yield from self._read
        for part in self._rest:
            self._bytes += part.inserts.nbytes + part.upserts.nbytes + part.deletes.nbytes
            self._bytes += 0 if part.removals is None else part.removals.nbytes
            self.is_cut = self.is_cut or self._bytes > _KEPT_BYTES
            if self.is_cut:
                self._read.clear()
            else:
                self._read.append(part)
            yield part
            del part
