"""The destination: Arrow files, changed by writing new ones and committing to them.

**Exactly once.** `write` compares the watermarks and the stream's position in the lock in which it replaces
`commit.json`, which has them beside the names of the files: see `etl_mine.commit`.

A table that changes is written whole. That is for small tables: what this package is for is to show how a destination
is made.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.ipc

from etl_core.batch import WriteBatch
from etl_core.destination.memory import StoredTable, apply_changes
from etl_core.destination.protocol import Positions, check_stream
from etl_core.errors import CopiedAgain, TableError, WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema
from etl_mine.commit import (
    Commit,
    StoredFile,
    Watermark,
    explained,
    locked,
    read_commit,
    remove_others,
    replace_commit,
    sync,
)
from etl_mine.copy import ArrowCopy, discard_abandoned

Compression: TypeAlias = Literal["none", "lz4", "zstd"]


class ArrowFiles:
    """See Destination, and of its abilities CountingDestination and StagingDestination. May be used from threads."""

    def __init__(self, folder: Path, pipeline: str, compression: Compression = "none") -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._format = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)

    def prepare(self) -> None:
        with explained():
            (self._folder / "data").mkdir(parents=True, exist_ok=True)
            with locked(self._folder):
                remove_others(self._folder, read_commit(self._folder))  # what a process that was killed has left
        self.discard_staging()

    def discard_staging(self) -> None:
        """See StagingDestination. A copy that runs keeps its own."""
        with explained():
            discard_abandoned(self._folder, self._pipeline)

    def positions(self) -> Positions:
        with explained():
            commit = read_commit(self._folder)
        marks = commit.watermarks_of(self._pipeline)
        return Positions({table_id: mark.lsn for table_id, mark in marks.items()}, commit.streams.get(self._pipeline))

    def count(self, tables: Mapping[TableId, TableName], wait_seconds: float) -> Mapping[TableId, tuple[Lsn, int]]:  # noqa: ARG002 - nothing is waited for
        """See CountingDestination."""
        with explained():
            commit = read_commit(self._folder)
        marks = commit.watermarks_of(self._pipeline)
        return {
            table_id: (mark.lsn, commit.tables[mark.name].rows)
            for table_id, mark in marks.items()
            if table_id in tables and mark.name in commit.tables
        }

    def copy(self, schema: TableSchema) -> ArrowCopy:
        return ArrowCopy(self._folder, self._pipeline, schema, self._format)

    def write(self, batch: WriteBatch) -> None:
        with explained(), locked(self._folder):
            before = read_commit(self._folder)
            marks = self._check_fence(before, batch)
            changed: dict[TableName, StoredTable] = {}
            for changes in batch.parts:
                schema = changes.schema
                found = marks[schema.table_id].name
                if found != schema.name:
                    raise CopiedAgain(f"{found} was renamed to {schema.name}", table=str(schema.name))
                stored = changed.get(schema.name) or self._load(before, schema.name)
                changed[schema.name] = apply_changes(stored, changes)
            written = {name: self._save(stored) for name, stored in changed.items()}
            moved = {
                (self._pipeline, table_id): replace(marks[table_id], lsn=move.new)
                for table_id, move in batch.watermarks.items()
            }
            streams = {} if batch.stream is None else {self._pipeline: batch.stream.new}
            commit = Commit({**before.tables, **written}, {**before.watermarks, **moved}, {**before.streams, **streams})
            replace_commit(self._folder, commit)

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        with explained(), locked(self._folder):  # until the file is open: the next commit may remove its name
            rows = self._load(read_commit(self._folder), schema.name).rows
        return iter(rows.select(list(schema.column_names)).cast(arrow_schema(schema)).to_batches())

    def forget(self, table_id: TableId) -> None:
        with explained(), locked(self._folder):
            before = read_commit(self._folder)
            kept = {key: mark for key, mark in before.watermarks.items() if key != (self._pipeline, table_id)}
            replace_commit(self._folder, replace(before, watermarks=kept))

    def close(self) -> None:
        """Nothing is held."""

    def _check_fence(self, commit: Commit, batch: WriteBatch) -> dict[TableId, Watermark]:
        """The pipeline's watermarks. Raises WatermarkConflict if one that the batch moves is not the expected one."""
        marks = commit.watermarks_of(self._pipeline)
        for table_id, move in batch.watermarks.items():
            stored = marks[table_id].lsn if table_id in marks else None
            if stored != move.expected:
                raise WatermarkConflict(f"table {table_id} has the watermark {stored}, not {move.expected}")
        check_stream(commit.streams.get(self._pipeline), batch.stream)
        return marks

    def _load(self, commit: Commit, name: TableName) -> StoredTable:
        stored = commit.tables.get(name)
        if stored is None:
            raise TableError(f"{name} is not in the destination", table=str(name))
        with pa.memory_map(str(self._folder / "data" / stored.file)) as file:
            return StoredTable(stored.schema, pa.ipc.open_file(file).read_all())

    def _save(self, stored: StoredTable) -> StoredFile:
        file = self._folder / "data" / f"{secrets.token_hex(8)}.arrow"
        with (
            pa.OSFile(str(file), "wb") as sink,
            pa.ipc.new_file(sink, stored.rows.schema, options=self._format) as writer,
        ):
            writer.write_table(stored.rows)
        sync(file)
        return StoredFile(file.name, stored.rows.num_rows, stored.schema)
