"""The initial copy of a table: one Arrow file, staged beside the data until it is published.

The copy holds a lock on its file. So a copy that runs, maybe in another process, is told from what a crash left behind.
"""

from __future__ import annotations

import fcntl
import secrets
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pyarrow as pa
import pyarrow.ipc

from etl_core.destination.protocol import check_count
from etl_core.errors import DestinationUnavailable, TableError
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema
from etl_mine.commit import Commit, StoredFile, Watermark, explained, locked, read_commit, replace_commit, sync


class ArrowCopy:
    """See TableCopy."""

    def __init__(self, folder: Path, pipeline: str, schema: TableSchema, file_format: pa.ipc.IpcWriteOptions) -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._schema = schema
        self._format = file_format
        self._staged = _staging(folder, pipeline) / f"{schema.table_id}.arrow"
        self._guard = threading.Lock()
        self._lock = ExitStack()
        self._writing = ExitStack()
        self._rows = 0

    def __enter__(self) -> Self:
        with explained():
            self._staged.parent.mkdir(parents=True, exist_ok=True)
            lock = _try_lock(self._staged.with_suffix(".lock"))
            if lock is None:
                raise DestinationUnavailable(
                    f"another copy of {self._schema.name} is running", hint="wait for it, or end its process"
                )
            self._lock.enter_context(lock)
            file = self._writing.enter_context(pa.OSFile(str(self._staged), "wb"))
            writer = pa.ipc.new_file(file, arrow_schema(self._schema), options=self._format)
            self._writer = self._writing.enter_context(writer)
        return self

    def write(self, rows: pa.RecordBatch) -> None:
        with self._guard, explained():
            self._writer.write_batch(rows)
            self._rows += rows.num_rows

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        name, key = self._schema.name, (self._pipeline, self._schema.table_id)
        check_count(name, self._rows, expected)
        with explained():
            self._writing.close()
            sync(self._staged)
            with locked(self._folder):
                before = read_commit(self._folder)
                same_name = [known for known, mark in before.watermarks.items() if mark.name == name and known != key]
                for owner, _ in same_name:
                    if owner != self._pipeline:
                        raise TableError(f"{name} is already replicated here by pipeline {owner}", table=str(name))
                # This pipeline's, under another id: the table was dropped and created again at the source.
                kept = {known: mark for known, mark in before.watermarks.items() if known not in same_name}
                file = self._staged.rename(self._folder / "data" / f"{secrets.token_hex(8)}.arrow")
                commit = Commit(
                    {**before.tables, name: StoredFile(file.name, self._rows, self._schema)},
                    {**kept, key: Watermark(name, watermark)},
                    before.streams,
                )
                replace_commit(self._folder, commit)
        return self._rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock, explained():
            self._writing.close()
            self._staged.unlink(missing_ok=True)


def discard_abandoned(folder: Path, pipeline: str) -> None:
    """Removes what copies that were killed have staged."""
    for staged in _staging(folder, pipeline).glob("*.arrow"):
        lock = _try_lock(staged.with_suffix(".lock"))
        if lock is not None:
            with lock:
                staged.unlink(missing_ok=True)


def _staging(folder: Path, pipeline: str) -> Path:
    return folder / "staging" / pipeline


def _try_lock(path: Path) -> IO[bytes] | None:
    """The open file at `path`, locked until it is closed; None while another holds it."""
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
