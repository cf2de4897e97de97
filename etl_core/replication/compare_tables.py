"""One table of a comparison: which rows of both sides are compared, and how they are read.

Small tables are compared in bundles: what the destination has of all of them is read in one session with it, and the
source by connections that are kept. Opening a DuckDB file costs 30 ms of CPU, a connection 4 and as much on the server.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from etl_core.destination.protocol import Destination, HistoryDestination, SessionDestination, read_whole
from etl_core.errors import EtlError, Stopped, TableError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.compare import Comparison, Scan, Sink, compare, scan_of
from etl_core.replication.log_state import state_of
from etl_core.replication.observer import Observer
from etl_core.schema.change_log import row_columns
from etl_core.schema.pg_types import format_type, forms
from etl_core.schema.table import TableSchema
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.source.catalog import PublishedTable
from etl_core.source.copy_ranges import all_into
from etl_core.source.plan import TablePlan, is_known_empty, read_plan, rows_left_out
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import copy_table
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import TableState

_BLOCK_BYTES = 2 << 20
"""In all that all connections read at a time: nothing is gained by larger blocks, which only need more memory."""
_BUNDLE = 64
"""Tables. What a destination has of them is read in one session with it, in which a DuckDB file is held: 0.2 s."""
_SMALL_BYTES = 256 << 10
"""What a table of a bundle may have in the destination, in Arrow: 16 MB for a bundle at the most."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A table that can be compared: `stored` is what the destination has of it, and under which name."""

    status: TableStatus
    table: PublishedTable
    stored: TableSchema
    shape: Shape

    @property
    def is_read_as_it_is(self) -> bool:
        """Whether the destination's rows themselves are compared, not what follows from a log."""
        return not (self.shape.target.history or self.shape.keeps_log)


class TableComparer:
    """Compares tables as one exported snapshot of the source has them."""

    def __init__(
        self,
        snapshot: SnapshotConnections,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        shapes: Shapes,
        *,
        connections: int,
        stop: threading.Event,
    ) -> None:
        self._snapshot = snapshot
        self._store = store
        self._destination = destination
        self._observer = observer
        self._shapes = shapes
        self._connections = connections
        self._stop = stop
        self._ahead: dict[TableId, list[pa.RecordBatch]] = {}

    def compare_all(
        self,
        tables: Sequence[TableStatus],
        published: Mapping[TableId, PublishedTable],
        watermarks: Mapping[TableId, Lsn],
        lsn: Lsn,
    ) -> dict[TableId, Comparison]:
        """One comparison a table; a table that cannot be compared is reported with that problem."""
        comparisons: dict[TableId, Comparison] = {}
        for first in range(0, len(tables), _BUNDLE):
            pairs = []
            for status in tables[first : first + _BUNDLE]:
                table, watermark = published.get(status.table_id), watermarks.get(status.table_id)
                found = self._pair(status, table, watermark, lsn)
                if isinstance(found, Comparison):
                    comparisons[status.table_id] = found
                else:
                    pairs.append(found)
            plans = self._plans(pairs)
            self._read_ahead(pairs)
            for pair in pairs:
                compared = self._compare(pair, plans.get(pair.table.name), lsn)
                comparisons[pair.status.table_id] = replace(compared, lsn=lsn)
                self._ahead.pop(pair.status.table_id, None)
        return comparisons

    def _pair(
        self, status: TableStatus, table: PublishedTable | None, watermark: Lsn | None, lsn: Lsn
    ) -> Pair | Comparison:
        if status.state is not TableState.READY:
            return not_compared(status, lsn, _why_not(status))
        if watermark is None or watermark > lsn:
            return not_compared(status, lsn, f"the destination has it as of {watermark}: try again")
        stored = self._store.schema(status.table_id)
        if table is None or stored is None or table.schema.column_names != stored[1].column_names:
            return not_compared(status, lsn, "the source's columns have changed since the last row change")
        for before, column in zip(stored[1].columns, table.schema.columns, strict=True):
            if forms(before.type) != forms(column.type):
                older = f"the rows have column {column.name} ({format_type(column)}) in an older form"
                return not_compared(status, lsn, f"{older}; copy the table again: etl resync {status.name}")
        described = replace(table.schema, name=stored[1].name, kept=stored[1].kept)
        try:
            shape = self._shapes.of(self._shapes.carried(described, stored[1]))
        except TableError as error:
            return _failed(status, lsn, error)
        return Pair(status, table, stored[1], shape)

    def _compare(self, pair: Pair, plan: TablePlan | None, lsn: Lsn) -> Comparison:
        try:
            left_out = [] if plan is None else self._rows_left_out(plan)
            compared = read_whole(lambda: self._compare_rows(pair))
        except TableError as error:
            return _failed(pair.status, lsn, error)
        if not left_out:
            return compared
        # What is replicated may be equal; what a person's SELECT at the source gives is not in the destination.
        problem = "; ".join(filter(None, [compared.problem, *left_out]))
        return replace(compared, is_equal=False, is_incomplete=compared.is_equal, problem=problem)

    def _read_ahead(self, pairs: Sequence[Pair]) -> None:
        """Reads what the destination has of small tables, where each opening of it costs more than their rows do."""
        small = [pair for pair in pairs if pair.is_read_as_it_is and pair.table.estimated_bytes <= _SMALL_BYTES]
        self._ahead = {}
        if len(small) < 2 or not isinstance(self._destination, SessionDestination):
            return
        with self._destination.session():
            for pair in small:
                try:
                    rows = read_whole(functools.partial(self._few_rows, pair.shape.compared))
                except Stopped:
                    raise
                except EtlError:
                    continue  # which is told when it is compared
                if rows is not None:
                    self._ahead[pair.status.table_id] = rows

    def _few_rows(self, schema: TableSchema) -> list[pa.RecordBatch] | None:
        """All rows of a table, None if they are not few: statistics of the source may be old."""
        found, size = [], 0
        reading = self._read(schema)
        try:
            for batch in reading:
                size += batch.nbytes
                if size > _SMALL_BYTES:
                    return None
                found.append(batch)
        finally:
            if isinstance(reading, Generator):
                reading.close()
        return found

    def _compare_rows(self, pair: Pair) -> Comparison:
        """What is read of the destination is under its name there, and for its settings, with the columns kept there.

        A column that was dropped at the source, which was ignored, is left out on both sides.
        """
        name, shape = pair.status.name, pair.shape
        started = time.monotonic()
        progress = _Progress(functools.partial(self._observer.on_compare_progress, name))

        def begin(is_again: bool) -> None:
            progress.begin()
            self._observer.on_comparing(name, is_again=is_again)

        source = self._scan_source(pair.table, shape, progress)
        if shape.target.history and isinstance(self._destination, HistoryDestination):
            comparison = self._compare_current(name, shape, self._destination, source, progress, begin)
        elif shape.keeps_log:
            comparison = self._compare_log(name, shape, source, progress, begin)
        else:
            destination = scan_of(lambda: self._read_living(shape, progress))
            comparison = compare(name, shape.target.key, source, destination, begin)
        self._observer.on_compared(name, comparison.source_rows, time.monotonic() - started)
        return replace(
            comparison, is_of_living=shape.keeps_deleted, is_of_log=shape.keeps_log, is_of_view=shape.target.history
        )

    def _compare_current(
        self,
        name: TableName,
        shape: Shape,
        destination: HistoryDestination,
        source: Scan,
        progress: _Progress,
        begin: Callable[[bool], None],
    ) -> Comparison:
        """With the rows that the view of now has, unchanged values included."""
        names = [column.name for column in row_columns(shape.compared)]

        def chosen(sink: Sink) -> None:
            source(lambda rows: sink(rows.select(names)))

        def read() -> Iterator[pa.RecordBatch]:
            for batch in self._stoppable(shape.compared, destination.read_current):
                progress.destination(batch.num_rows)
                yield batch
                del batch  # not kept while the next one is made

        return compare(name, shape.row_key, chosen, scan_of(read), begin)

    def _compare_log(
        self, name: TableName, shape: Shape, source: Scan, progress: _Progress, begin: Callable[[bool], None]
    ) -> Comparison:
        """With the rows that the log gives; their values are compared that are in the last row of each key."""
        state = state_of(shape, self._read)

        def hidden(sink: Sink) -> None:
            source(lambda rows: sink(state.hide(rows)))

        def chosen() -> Iterator[pa.RecordBatch]:
            choose = state.choose()
            for batch in self._read(shape.target):
                rows = choose(batch)
                progress.destination(rows.num_rows)
                yield rows

        comparison = compare(name, shape.row_key, hidden, scan_of(chosen), begin)
        return replace(comparison, uncompared=state.unchanged)

    def _read_living(self, shape: Shape, progress: _Progress) -> Iterator[pa.RecordBatch]:
        """Of a table that keeps its deleted rows those that live."""
        for batch in self._rows_of(shape.compared):
            progress.destination(batch.num_rows)
            yield shape.living(batch)
            del batch  # not kept while the next one is made

    def _rows_of(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """What was read ahead, or else is read now."""
        ahead = self._ahead.get(schema.table_id)
        return iter(ahead) if ahead is not None else self._read(schema)

    def _read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        return self._stoppable(schema, self._destination.read)

    def _stoppable(
        self, schema: TableSchema, read: Callable[[TableSchema], Iterator[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        rows = read(schema)
        try:
            for batch in rows:
                if self._stop.is_set():
                    raise Stopped(f"the comparison of {schema.name} was stopped")
                yield batch
                del batch  # not kept while the next one is made
        finally:
            if isinstance(rows, Generator):
                rows.close()

    def _plans(self, pairs: Sequence[Pair]) -> dict[TableName, TablePlan]:
        connection = self._snapshot.take()
        try:
            return {plan.name: plan for plan in read_plan(connection, [pair.table.name for pair in pairs])}
        finally:
            self._snapshot.give_back(connection)

    def _rows_left_out(self, plan: TablePlan) -> list[str]:
        """Which rows of SELECT on the table are not replicated with it; nothing where its children hold none."""
        if len(plan.relations) == 1:
            return []
        connection = self._snapshot.take()
        try:
            with_rows = [one for one in plan.relations if not one.is_child or not is_known_empty(connection, one.name)]
            return rows_left_out(TablePlan(tuple(with_rows)))
        finally:
            self._snapshot.give_back(connection)

    def _scan_source(self, table: PublishedTable, shape: Shape, progress: _Progress) -> Scan:
        def scan(sink: Sink) -> None:
            copy_table(
                self._snapshot,
                replace(table, schema=replace(shape.asked, name=table.name)),
                self._connections,
                all_into(sink),
                progress.source,
                self._stop,
                block_bytes=_BLOCK_BYTES // self._connections,
                load=lambda block: shape.load(block).select(list(shape.compared.column_names)),
            )

        return scan


class _Progress:
    """How far both sides of one table are. A row of the destination counts as much as one of the source does.

    `tell` is given rows, bytes and all bytes, as `Observer.on_compare_progress` is, by one thread at a time.
    """

    def __init__(self, tell: Callable[[int, int, int], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        with self._lock:
            self._rows = self._size = self._total_size = self._destination_rows = 0

    def source(self, rows: int, size: int, total_size: int) -> None:
        with self._lock:
            self._rows, self._size, self._total_size = rows, size, total_size
            self._say()

    def destination(self, rows: int) -> None:
        with self._lock:
            self._destination_rows += rows
            self._say()

    def _say(self) -> None:
        # While nobody knows how many rows there will be, those of the source are as large as they were so far.
        theirs = min(self._total_size, self._size * self._destination_rows // max(1, self._rows))
        self._tell(min(self._rows, self._destination_rows), self._size + theirs, 2 * self._total_size)


def _why_not(status: TableStatus) -> str:
    """Why a table that does not stream cannot be compared."""
    match status.state:
        case TableState.PAUSED:
            return "it is paused"
        case TableState.ERRORED:
            return f"it is stopped: {status.error}"
        case TableState.INIT:
            return "it has yet to be copied"
        case TableState.DATA_SYNC:
            return "it is being copied"
        case _:
            return "it is copied, and the stream has not taken it in yet: try again"


def not_compared(status: TableStatus, lsn: Lsn, problem: str) -> Comparison:
    """The outcome for a table that could not be compared."""
    return Comparison(status.name, 0, 0, "", is_equal=False, problem=f"not compared: {problem}", lsn=lsn)


def _failed(status: TableStatus, lsn: Lsn, error: TableError) -> Comparison:
    return not_compared(status, lsn, f"{error}; {error.hint}" if error.hint else str(error))
