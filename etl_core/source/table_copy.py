"""The initial copy of one table to Arrow, over several connections that all see one snapshot.

Ranges wait in one queue, and each connection's thread takes the next one when it has finished its last. The first error
stops the others; all threads are joined and all connections closed before `copy_table` returns or raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from etl_core.errors import EtlError, SourceLocked, SourceUnavailable, Stopped, TableError
from etl_core.source.catalog import PublishedTable
from etl_core.source.connection import Connection, text_encoding
from etl_core.source.copy_blocks import BLOCK_BYTES, copy_blocks
from etl_core.source.copy_ranges import Plan, Ranges, RangeWork, Sink
from etl_core.source.ctid_range import CtidRange
from etl_core.source.snapshot import (
    RANGE_BYTES,
    as_table_error,
    check_unchanged,
    copy_statement,
    lock_table,
    plan_ranges,
)
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.values import read_csv

_LOOK_EVERY_S = 0.1
_LARGE_BLOCK = 8 * BLOCK_BYTES
_large_blocks = threading.Lock()
"""Held while a block with a row of many megabytes is parsed: one at a time in this process, not one per connection."""

OnProgress = Callable[[int, int, int], None]
Load = Callable[[bytes | bytearray], pa.RecordBatch]
"""From a block of what COPY sent to rows."""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """`bytes` is what COPY sent."""

    rows: int
    bytes: int


def copy_range(
    conn: Connection,
    table: PublishedTable,
    part: CtidRange,
    sink: Sink,
    stop: threading.Event,
    block_bytes: int = BLOCK_BYTES,
    load: Load | None = None,
) -> CopyResult:
    """Copies one range in the transaction `conn` is in, giving `sink` record batches of about `block_bytes` of CSV.

    They are in the Arrow schema of the table, or what `load` makes of a block.

    Raises Stopped, TableError, or what the server's error translates to; `conn` is closed then.
    """
    rows = size = 0
    statement = copy_statement(table, part, encoding=text_encoding(conn))
    with contextlib.closing(copy_blocks(conn, statement.as_bytes(conn), stop, block_bytes)) as blocks:
        for block in blocks:
            # A block is larger than that by the size of one row, which the parsed columns need a few times over.
            with _large_blocks if len(block) > _LARGE_BLOCK else contextlib.nullcontext():
                batch = read_csv(block, table.schema) if load is None else load(block)
                sink(batch)
                rows += batch.num_rows
                size += len(block)
                del batch
    return CopyResult(rows, size)


def copy_table(
    snapshot: SnapshotConnections,
    table: PublishedTable,
    connections: int,
    plan: Plan,
    on_progress: OnProgress,
    stop: threading.Event,
    *,
    range_bytes: int = RANGE_BYTES,
    block_bytes: int = BLOCK_BYTES,
    load: Load | None = None,
    waits: bool = True,
) -> CopyResult:
    """Copies the table as the snapshot sees it, on up to `connections` connections of `snapshot` at once.

    `plan` is given the ranges the table is cut into; the copy ends when it has none left for us. `on_progress(rows,
    size, total_size)`, never twice at once, says how many rows were copied so far and how many bytes of the table's
    files on the source are done, of how many. The result counts our ranges only. Each connection needs about ten times
    `block_bytes` of memory, more for rows that are larger than that. `load` is as for `copy_range`.

    Raises SourceLocked, unless it `waits`, if another session has locked the table, TransientError if the table changed
    between the snapshot and now (take a new snapshot, read the table again), Stopped when `stop` is set, TableError if
    this table cannot be copied, and what the plan's ranges raise. What was written before an error is of no use: a copy
    is whole or discarded.
    """
    if not table.schema.columns:
        raise TableError(
            f"table {table.name} has no published column, so there is nothing to copy",
            table=str(table.name),
            hint="take the table out of the publication",
        )
    with contextlib.ExitStack() as stack:
        if stop.is_set():
            raise _stopped(table)
        first = _take(snapshot, stack)
        if not lock_table(first, table, stop, wait=waits):
            raise SourceLocked(f"table {table.name} is locked by another session")
        check_unchanged(first, table)
        ranges = plan_ranges(first, table, range_bytes)
        opened = [first]
        with contextlib.suppress(SourceUnavailable):  # a server without room for more lets the first copy alone
            while len(opened) < min(connections, len(ranges)):
                another = _take(snapshot, stack)
                if not lock_table(another, table, stop, wait=False):
                    snapshot.give_back(another)
                    break
                opened.append(another)
        total_size = sum(part.size for part in ranges)
        return _Copy(snapshot, table, plan(ranges), total_size, on_progress, stop, block_bytes, load).run(opened)


def _take(snapshot: SnapshotConnections, stack: contextlib.ExitStack) -> Connection:
    conn = snapshot.take()
    stack.callback(snapshot.give_back, conn)
    return conn


def _stopped(table: PublishedTable) -> Stopped:
    return Stopped(f"the copy of table {table.name} was stopped")


class _Copy:
    """The threads of one copy and what they share, under one lock."""

    def __init__(
        self,
        snapshot: SnapshotConnections,
        table: PublishedTable,
        ranges: Ranges,
        total_size: int,
        on_progress: OnProgress,
        stop: threading.Event,
        block_bytes: int,
        load: Load | None,
    ) -> None:
        self._snapshot = snapshot
        self._table = table
        self._ranges = ranges
        self._total_size = total_size
        self._on_progress = on_progress
        self._stop = stop
        self._block_bytes = block_bytes
        self._load = load
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._rows = self._bytes = self._size = 0

    def run(self, connections: list[Connection]) -> CopyResult:
        threads = [
            threading.Thread(target=self._work, args=(conn,), name=f"copy-{self._table.schema.table_id}-{number}")
            for number, conn in enumerate(connections, 1)
        ]
        try:
            for thread in threads:
                thread.start()
            self._watch(threads)
        finally:
            # Also when Ctrl-C ended the watch: the threads use the connections and the sink.
            self._halt.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._error is not None:
            raise self._error
        return CopyResult(self._rows, self._bytes)

    def _watch(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK_EVERY_S)
                if self._stop.is_set():
                    return

    def _work(self, conn: Connection) -> None:
        try:
            while (work := self._next(conn)) is not None:
                self._copy(conn, work)
        except BaseException as error:
            with self._lock:
                # The others are stopped by the first error; what they say then is its consequence.
                self._error = self._error or _as_raised(error, self._table)
            self._halt.set()
        finally:
            # Not at the end of the copy: a REINDEX that waits for this transaction holds up the other connections.
            self._snapshot.give_back(conn)

    def _next(self, conn: Connection) -> RangeWork | None:
        work = self._ranges.take(conn)
        if work is not None and (self._halt.is_set() or self._stop.is_set()):
            work.give_up()
            raise _stopped(self._table)
        return work

    def _copy(self, conn: Connection, work: RangeWork) -> None:
        def write(batch: pa.RecordBatch) -> None:
            work.write(batch)
            self._progressed(CopyResult(batch.num_rows, 0), 0)

        try:
            result = copy_range(conn, self._table, work.part, write, self._halt, self._block_bytes, self._load)
            work.finish(result.rows)
        except BaseException:
            work.give_up()
            raise
        self._progressed(CopyResult(0, result.bytes), work.part.size)

    def _progressed(self, result: CopyResult, size: int) -> None:
        with self._lock:
            self._rows += result.rows
            self._bytes += result.bytes
            self._size += size
            rows, done = self._ranges.elsewhere()
            self._on_progress(self._rows + rows, self._size + done, self._total_size)


def _as_raised(error: BaseException, table: PublishedTable) -> BaseException:
    return as_table_error(error, table.name) if isinstance(error, EtlError) else error
