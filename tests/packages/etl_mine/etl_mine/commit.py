"""What a folder holds: `commit.json` names every file that counts. It is replaced as a whole, by a rename.

That rename is the transaction. Whatever was written before it is a file that nobody is told of; after it, data,
watermarks and the stream's position are there together.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from etl_core.batch import StreamPosition
from etl_core.errors import DestinationError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.state.schema_json import schema_from_json, schema_to_json


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A table: its file in `data/`, how many rows that has, and the schema they have."""

    file: str
    rows: int
    schema: TableSchema


@dataclass(frozen=True, slots=True)
class Watermark:
    """Which table a pipeline keeps under an id, and up to where."""

    name: TableName
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Commit:
    """All that is committed, of all pipelines."""

    tables: Mapping[TableName, StoredFile] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, TableId], Watermark] = field(default_factory=dict)
    streams: Mapping[str, StreamPosition] = field(default_factory=dict)

    def watermarks_of(self, pipeline: str) -> dict[TableId, Watermark]:
        return {table_id: mark for (owner, table_id), mark in self.watermarks.items() if owner == pipeline}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block nobody else, of this process or another, commits to the folder."""
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def explained() -> Iterator[None]:
    """What the operating system refuses, as an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DestinationError(
            f"{error.filename}: {error.strerror}", hint="check the folder of destination.path, its rights and its disk"
        ) from None


def read_commit(folder: Path) -> Commit:
    """What counts now. It needs no lock: a rename is seen whole or not at all."""
    try:
        stored = json.loads((folder / "commit.json").read_text())
    except FileNotFoundError:
        return Commit()
    schemas = [(file, rows, schema_from_json(schema)) for file, rows, schema in stored["tables"]]
    return Commit(
        {schema.name: StoredFile(file, rows, schema) for file, rows, schema in schemas},
        {
            (pipeline, TableId(table_id)): Watermark(TableName(*name), Lsn(lsn))
            for pipeline, table_id, name, lsn in stored["watermarks"]
        },
        {pipeline: StreamPosition(Lsn(lsn), incarnation) for pipeline, (lsn, incarnation) in stored["streams"].items()},
    )


def replace_commit(folder: Path, commit: Commit) -> None:
    """Makes `commit` what counts, durably; within `locked`."""
    stored = {
        "tables": [[table.file, table.rows, schema_to_json(table.schema)] for table in commit.tables.values()],
        "watermarks": [
            [pipeline, table_id, [mark.name.namespace, mark.name.name], mark.lsn]
            for (pipeline, table_id), mark in commit.watermarks.items()
        ],
        "streams": {pipeline: [at.lsn, at.incarnation] for pipeline, at in commit.streams.items()},
    }
    sync(folder / "data")
    fresh = folder / "commit.json.new"
    fresh.write_text(json.dumps(stored))
    sync(fresh)
    fresh.replace(folder / "commit.json")
    sync(folder)
    remove_others(folder, commit)


def remove_others(folder: Path, commit: Commit) -> None:
    """Removes the files that `commit`, which counts, does not name; within `locked`."""
    named = {table.file for table in commit.tables.values()}
    for file in (folder / "data").iterdir():
        if file.name not in named:
            file.unlink()


def sync(path: Path) -> None:
    """Has the file, or the names in the folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
