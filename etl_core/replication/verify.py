"""Proof that the destination equals the source, at one LSN.

A temporary slot is created for its exported snapshot, which holds exactly the transactions that end at or before the
slot's consistent point. The stream is brought to that very position and kept there while both sides are read: a hold in
the state store asks for it, whoever streams. If nobody does, we stream there ourselves.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from etl_core.destination.protocol import Destination, HistoryDestination, read_whole
from etl_core.errors import SlotInUse, SourceUnavailable, Stopped, TableError, TransientError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.compare import Comparison, Scan, Sink, compare, scan_of
from etl_core.replication.hold import holding, place_hold
from etl_core.replication.log_state import state_of
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.replication.stream import Ended, Streamed
from etl_core.schema.change_log import row_columns
from etl_core.schema.pg_types import format_type, forms
from etl_core.schema.table import TableSchema
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.source.catalog import PublishedTable, published_tables
from etl_core.source.copy_ranges import all_into
from etl_core.source.plan import TablePlan, is_known_empty, read_plan, rows_left_out
from etl_core.source.slot import Blocker
from etl_core.source.snapshot import import_snapshot
from etl_core.source.table_copy import copy_table
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import TableState

_POLL = 0.2
_HOLD_PATIENCE = 120.0
"""Seconds to wait for a running stream to reach the position: it may be far behind."""
_SNAPSHOTS = 3
"""How many are taken at most: a table that was beyond the first goes with the stream when the next is taken."""
_CATCHING_UP = (TableState.FINISHED_COPY, TableState.SYNC_DONE)
"""Tables in these states may be ahead of the stream."""
_BLOCK_BYTES = 2 << 20
"""In all that all connections read at a time: nothing is gained by larger blocks, which only need more memory."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The states of all tables, and how far the destination has each."""

    statuses: Mapping[TableId, TableStatus]
    watermarks: Mapping[TableId, Lsn]

    def of(self, table: TableStatus) -> tuple[int, Lsn | None] | None:
        """What changes when the table is written; None if it is gone."""
        status = self.statuses.get(table.table_id)
        return None if status is None else (status.version, self.watermarks.get(table.table_id))


class Verifier:
    """Compares tables of one pipeline. `stream_to` streams until exactly the given position, when nobody else does."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        shapes: Shapes,
        *,
        stream_to: Callable[[Lsn], Streamed],
        current_lsn: Callable[[], Lsn],
        connections: int,
        stop: threading.Event,
    ) -> None:
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._shapes = shapes
        self._stream_to = stream_to
        self._current_lsn = current_lsn
        self._connections = connections
        self._stop = stop

    def verify(self, tables: Sequence[TableStatus]) -> list[Comparison]:
        """One comparison a table, all at one LSN; a table that is not streaming is reported with that problem.

        Raises StateConflict while another process compares, Stopped if it was stopped before everything was compared.
        """
        try:
            return self._verify(tables)
        except Stopped:
            raise Stopped("stopped before every table was compared; nothing was changed") from None

    def _verify(self, tables: Sequence[TableStatus]) -> list[Comparison]:
        with self._held() as bring_to:
            waiting = any(status.state in _CATCHING_UP for status in self._store.tables())
            if waiting or self._is_streamed():
                # Nothing passes the position to compare at: what catches up goes with the stream, which waits.
                bring_to(self._current_lsn())
            tries = 0
            while True:
                with self._source.exported_snapshot("verify", on_wait=self._on_wait, stop=self._stop) as snapshot:
                    if snapshot.snapshot_name is None:
                        raise SourceUnavailable("the server exported no snapshot to compare with")
                    lsn = snapshot.consistent_point
                    bring_to(lsn)
                    tries += 1
                    found = self._look()
                    if tries == _SNAPSHOTS or not self._is_passed(tables, found.watermarks, lsn):
                        return self._compare_all(tables, found, snapshot.snapshot_name, lsn)

    def _is_passed(self, tables: Sequence[TableStatus], watermarks: Mapping[TableId, Lsn], lsn: Lsn) -> bool:
        """Whether a table has passed `lsn`: one that caught up until now, and goes with the stream from here on."""
        return any(watermarks.get(table.table_id, ZERO) > lsn for table in tables)

    def _on_wait(self, blockers: Sequence[Blocker]) -> None:
        self._observer.on_waiting(f"the snapshot waits for {'; '.join(map(str, blockers))}")

    def _compare_all(self, tables: Sequence[TableStatus], found: _Found, snapshot: str, lsn: Lsn) -> list[Comparison]:
        with self._source.connect("catalog") as connection:
            published = {t.schema.table_id: t for t in published_tables(connection, self._source.publication)}
        comparisons = {
            table.table_id: self._compare(
                found.statuses.get(table.table_id, table),
                published.get(table.table_id),
                found.watermarks.get(table.table_id),
                snapshot,
                lsn,
            )
            for table in tables
        }
        # A copy began meanwhile, or the hold ended because its session was lost: what was read is of several moments.
        after = self._look()
        for table in tables:
            if found.of(table) is None or found.of(table) != after.of(table):
                comparisons[table.table_id] = not_compared(table, lsn, "it was written meanwhile: try again")
        return [comparisons[table.table_id] for table in tables]

    def _look(self) -> _Found:
        """States and watermarks, the states first: a table that is copied again has another version afterwards."""
        statuses = {status.table_id: status for status in self._store.tables()}
        return _Found(statuses, self._destination.positions().tables)

    def _compare(
        self, status: TableStatus, table: PublishedTable | None, watermark: Lsn | None, snapshot: str, lsn: Lsn
    ) -> Comparison:
        if status.state is not TableState.READY:
            return not_compared(status, lsn, _why_not(status))
        if watermark is None or watermark > lsn:
            return not_compared(status, lsn, f"the destination has it as of {watermark}: try again")
        try:
            return replace(self._compare_ready(status, table, snapshot, lsn), lsn=lsn)
        except TableError as error:
            return not_compared(status, lsn, f"{error}; {error.hint}" if error.hint else str(error))

    def _compare_ready(self, status: TableStatus, table: PublishedTable | None, snapshot: str, lsn: Lsn) -> Comparison:
        stored = self._store.schema(status.table_id)
        if table is None or stored is None or table.schema.column_names != stored[1].column_names:
            return not_compared(status, lsn, "the source's columns have changed since the last row change")
        for before, column in zip(stored[1].columns, table.schema.columns, strict=True):
            if forms(before.type) != forms(column.type):
                older = f"the rows have column {column.name} ({format_type(column)}) in an older form"
                return not_compared(status, lsn, f"{older}; copy the table again: etl resync {status.name}")
        left_out = self._rows_left_out(table, snapshot)
        compared = read_whole(lambda: self._compare_rows(status.name, table, stored[1], snapshot))
        if not left_out:
            return compared
        # What is replicated may be equal; what a person's SELECT at the source gives is not in the destination.
        problem = "; ".join(filter(None, [compared.problem, *left_out]))
        return replace(compared, is_equal=False, is_incomplete=compared.is_equal, problem=problem)

    def _compare_rows(self, name: TableName, table: PublishedTable, stored: TableSchema, snapshot: str) -> Comparison:
        """`stored` has the table's name in the destination, and for its settings, and the columns that are kept there.

        A column that was dropped at the source, which was ignored, is left out on both sides.
        """
        started = time.monotonic()
        progress = _Progress(functools.partial(self._observer.on_compare_progress, name))

        def begin(is_again: bool) -> None:
            progress.begin()
            self._observer.on_comparing(name, is_again=is_again)

        described = replace(table.schema, name=stored.name, kept=stored.kept)
        shape = self._shapes.of(self._shapes.carried(described, stored))
        source = self._scan_source(table, shape, snapshot, progress)
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
        for batch in self._read(shape.compared):
            progress.destination(batch.num_rows)
            yield shape.living(batch)
            del batch  # not kept while the next one is made

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

    def _rows_left_out(self, table: PublishedTable, snapshot: str) -> list[str]:
        """Which rows of SELECT on the table are not replicated with it; nothing where its children hold none."""
        with self._source.connect("verify") as connection:
            import_snapshot(connection, snapshot)
            sentences = []
            for plan in read_plan(connection, [table.name]):
                with_rows = [
                    one for one in plan.relations if not one.is_child or not is_known_empty(connection, one.name)
                ]
                sentences += rows_left_out(TablePlan(tuple(with_rows)))
            return sentences

    def _scan_source(self, table: PublishedTable, shape: Shape, snapshot: str, progress: _Progress) -> Scan:
        def scan(sink: Sink) -> None:
            copy_table(
                lambda: self._source.connect("verify"),
                snapshot,
                replace(table, schema=replace(shape.asked, name=table.name)),
                self._connections,
                all_into(sink),
                progress.source,
                self._stop,
                block_bytes=_BLOCK_BYTES // self._connections,
                load=lambda block: shape.load(block).select(list(shape.compared.column_names)),
            )

        return scan

    # --- holding the stream -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _held(self) -> Iterator[Callable[[Lsn], None]]:
        """Gives a call that brings the stream to an LSN and holds it there, and any that begins after that."""
        with holding(self._source, self._store) as owner:

            def bring_to(lsn: Lsn) -> None:
                place_hold(self._store, owner, lsn)
                self._wait_reached(owner, lsn)

            yield bring_to

    def _is_streamed(self) -> bool:
        main = self._source.slot_status(self._source.main_slot)
        return main is not None and main.active

    def _wait_reached(self, owner: str, lsn: Lsn) -> None:
        """Waits for the running stream to come to `lsn` and stand there; if none runs, streams up to it."""
        deadline = time.monotonic() + _HOLD_PATIENCE
        while time.monotonic() < deadline:
            hold = self._store.hold()
            if hold is not None and hold.owner == owner and hold.reached is not None and hold.reached >= lsn:
                return
            if not self._is_streamed():
                with contextlib.suppress(SlotInUse):  # a stream has just begun; it is held
                    if self._stream_to(lsn).ended is not Ended.REACHED:
                        raise Stopped("stopped on the way to the position to compare at")
                    return
            if self._stop.wait(_POLL):
                raise Stopped("stopped while waiting for the running stream")
        raise TransientError(
            "the running stream did not come to the position to compare at within two minutes",
            hint="etl status shows how far it is behind; try again when it has caught up",
        )


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
