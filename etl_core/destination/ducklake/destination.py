"""DuckLake as a destination: the source's table `public.orders` is `public.orders` in the lake, bookkeeping is `_etl`.

**Exactly once.** Data, watermarks and the stream's position of a batch are one transaction of DuckLake over all its
tables: one snapshot, which one transaction of the catalog's database makes visible. Data files that a killed process
left are in no snapshot. The fence is that of `etl_core.destination.sql`, and see `connection`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_core.batch import WriteBatch
from etl_core.destination.compaction import Compacted
from etl_core.destination.doctor import check_writable
from etl_core.destination.duckdb_sql.statements import text
from etl_core.destination.ducklake.catalog import Catalog, Storage
from etl_core.destination.ducklake.compaction import Cadence, Compaction
from etl_core.destination.ducklake.connection import Lake
from etl_core.destination.ducklake.dialect import DIALECT
from etl_core.destination.ducklake.failures import explain_table
from etl_core.destination.ducklake.session import LakeDatabase, LakeSession
from etl_core.destination.sql import statements
from etl_core.destination.sql.destination import SqlDestination
from etl_core.errors import CopyNeeded, DestinationError
from etl_core.identifiers import TableName
from etl_core.schema.change_log import current_view, history_view, rows_of, versions_of
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

_READ_ROWS = 2_048
"""What DuckDB works on at a time: larger batches would only need more memory."""
_EXAMINE_WAIT = 2.0
"""Seconds to wait for another process to let go of the catalog, where only its state is asked for."""


class DuckLakeDestination(SqlDestination[LakeSession]):
    """See Destination. May be used from several threads; writers of one lake take turns.

    `staging` is a directory of this machine, in which the rows of a copy wait until it is published.
    """

    def __init__(
        self,
        catalog: Catalog,
        storage: Storage,
        pipeline: str,
        staging: Path,
        cadence: Cadence,
        *,
        wait_seconds: float = 60.0,
    ) -> None:
        place = staging.absolute() / hashlib.sha256(str(catalog).encode()).hexdigest()[:12]
        self._lake = Lake(catalog, storage, pipeline, place / "tmp", wait_seconds=wait_seconds)
        super().__init__(DIALECT, LakeDatabase(self._lake), pipeline, place / pipeline)
        self._compaction = Compaction(self._lake, cadence)

    def examine(self) -> str:
        """See ExaminableDestination."""
        for path in (self._lake.catalog.path, self._lake.storage.directory):
            folder = None if path is None else next(each for each in (path, *path.parents) if each.is_dir())
            try:
                if folder is not None:
                    check_writable(folder)
            except OSError as error:
                raise DestinationError(
                    f"{folder} cannot be written: {error.strerror}", hint="give this user the right to write there"
                ) from None
        if not self._lake.exists():
            return f"there is no lake in {self._lake.catalog} yet; it is made at the first start"
        with self._lake.open(wait_seconds=_EXAMINE_WAIT):
            return f"the lake in {self._lake.catalog} can be read"

    def stop_on(self, stop: threading.Event, on_waiting: Callable[[str], None]) -> None:
        """See WaitingDestination."""
        self._lake.stop = stop
        self._lake.on_waiting = on_waiting

    def prepare(self) -> None:
        super().prepare()
        self._lake.keep_rows_in_files()

    def compact(self, tables: Sequence[TableName] | None) -> Iterator[Compacted]:
        """See CompactingDestination. All are those of every pipeline of the lake, as their snapshots are."""
        return self._compaction.run(None if tables is None else [(name.namespace, name.name) for name in tables])

    def _write(self, batch: WriteBatch) -> int:
        self._compaction.step()
        return super()._write(batch)

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. A catalog in a DuckDB file is held until the iterator is exhausted or closed."""
        return self._read(schema, None)

    def read_current(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read(rows_of(schema), current_view)

    def read_versions(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read(versions_of(schema), history_view)

    def _read(self, schema: TableSchema, view: Callable[[TableName], TableName] | None) -> Iterator[pa.RecordBatch]:
        target = arrow_schema(schema)
        with self._lake.open() as connection:
            connection.execute("BEGIN TRANSACTION")  # one snapshot
            session = LakeSession(self._lake, connection)
            place = self._place(session, schema)
            place = place if view is None else view(place)
            table = session.identifier(place.namespace, place.name)
            try:
                rows = connection.sql(text(statements.select(DIALECT, table, schema.columns)))
                for batch in rows.to_arrow_reader(_READ_ROWS):
                    yield batch.cast(target)
                    del batch  # not kept while the next one is made
            except (duckdb.Error, OSError) as failure:
                # A reader of rows that fails in the middle leaves an OSError with the text of DuckDB's error.
                error = failure if isinstance(failure, duckdb.Error) else duckdb.IOException(str(failure))
                raise explain_table(error, schema.name, self._lake.catalog, self._lake.storage.path) from None
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                raise CopyNeeded(
                    f"{schema.name} has a column of another type in DuckLake than is stored now",
                    table=str(schema.name),
                    hint=f"copy the table again: etl resync {schema.name}",
                ) from None

    def close(self) -> None:
        self._lake.close()
