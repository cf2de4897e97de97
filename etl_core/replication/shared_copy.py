"""One table's initial copy shared by several processes: who copies offers its ranges, others take some of them.

The copying process keeps the snapshot alive, copies like any other copy, and alone publishes; without anybody's help
it does everything itself, so that nothing waits for a process that never comes. A helper is known by its session on the
source: when that is gone, the range it had is free again. Its rows count only by its receipt, so a helper that was
taken for dead by mistake can do no harm.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from etl_core.destination.protocol import CopyPart, SharedCopy, SharingDestination
from etl_core.errors import StateConflict, Stopped, TransientError
from etl_core.identifiers import TableId, TableName
from etl_core.replication.failpoints import RANGE_STAGED, reach
from etl_core.replication.source import Source
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.source.catalog import PublishedTable, published_table
from etl_core.source.connection import Connection
from etl_core.source.copy_ranges import Plan, Ranges, RangeWork
from etl_core.source.ctid_range import CtidRange
from etl_core.source.server import session_pids
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import CopyResult, OnProgress, copy_table
from etl_core.state.schema_json import schema_to_json
from etl_core.state.shared_copy import CopyOffer, OfferedRange, SharedCopyStore

_OURS = 0
"""The taker of the ranges that the offering process copies itself; no session has this process id."""
_LOOK_EVERY = 0.5


def layout_of(table: PublishedTable, shapes: Shapes) -> str:
    """Two processes that read the same of the table agree on this. It ends with the digits that were counted."""
    described = (
        f"{schema_to_json(table.schema)}\n{table.is_partitioned}\n{table.row_filter}\n{shapes.stored(table.schema)}"
    )
    digits = [column.fraction_digits for column in _all_columns(table.schema)]
    return f"{hashlib.sha256(described.encode()).hexdigest()} {json.dumps(digits)}"


def _with_digits_of(schema: TableSchema, layout: str | None) -> TableSchema:
    """The schema with the digits that the offering process counted, where it has as many columns there."""
    digits = json.loads((layout or "").partition(" ")[2] or "[]")
    if len(digits) != len(_all_columns(schema)):
        return schema
    counted = [
        replace(column, fraction_digits=count) for column, count in zip(_all_columns(schema), digits, strict=True)
    ]
    columns, kept = counted[: len(schema.columns)], counted[len(schema.columns) :]
    return replace(schema, columns=tuple(columns), kept=None if schema.kept is None else tuple(kept))


def _all_columns(schema: TableSchema) -> Sequence[Column]:
    """Those of the source, then those that the destination keeps."""
    return (*schema.columns, *(schema.kept or ()))


class SharedRanges:
    """The ranges of a copy that this process offers; a Plan and the Ranges it makes."""

    def __init__(self, store: SharedCopyStore, offer: CopyOffer, staging: SharedCopy, on_progress: OnProgress) -> None:
        self._store = store
        self._offer = offer
        self._staging = staging
        self._on_progress = on_progress
        self._is_offered = False
        self._taken: set[int] = set()  # by us, since `copy_table` was called last
        self._elsewhere = (0, 0)

    def __call__(self, ranges: Sequence[CtidRange]) -> Ranges:
        if not self._is_offered:  # the table is locked and proven unchanged only now
            self._store.offer(self._offer, ranges)
            self._is_offered = True
        return self

    def take(self, conn: Connection) -> RangeWork | None:  # noqa: ARG002 - ours are known by `_OURS`
        held = self._store.take(self._offer, _OURS)
        self._look()
        if held is None:
            return None
        self._taken.add(held.number)
        return _OwnWork(self._store, self._offer, held, self._staging)

    def elsewhere(self) -> tuple[int, int]:
        return self._elsewhere

    def copy(self, copy: Callable[[Plan], CopyResult], helpers: Callable[[], set[int]], stop: threading.Event) -> int:
        """Copies until every range has been, by us or by others, and includes what others staged; returns the rows.

        `helpers` gives the process ids of the helpers' sessions that live.
        """
        copy(self)
        while unfinished := [held for held in self._look() if not held.is_finished]:
            if any(held.taker is None for held in unfinished):
                self._taken.clear()
                copy(self)
            elif not self._free_dead(unfinished, helpers()) and stop.wait(_LOOK_EVERY):
                raise Stopped("stopped while other processes copied their share of a table")
            self._tell()
        ranges = self._look()
        for held in ranges:
            if held.receipt:
                self._staging.include(held.receipt)
        return _done(ranges)[0]

    def _free_dead(self, taken: Sequence[OfferedRange], helpers: set[int]) -> bool:
        dead = [held for held in taken if held.taker not in helpers]
        for held in dead:
            self._store.give_back(self._offer, held)
        return bool(dead)

    def _look(self) -> Sequence[OfferedRange]:
        ranges = self._store.ranges(self._offer)
        self._elsewhere = _done(held for held in ranges if held.number not in self._taken)
        return ranges

    def _tell(self) -> None:
        ranges = self._look()
        self._on_progress(*_done(ranges), sum(held.part.size for held in ranges))


def _done(ranges: Iterable[OfferedRange]) -> tuple[int, int]:
    """The rows and bytes of those that are finished."""
    done = [held for held in ranges if held.is_finished]
    return sum(held.rows or 0 for held in done), sum(held.part.size for held in done)


@dataclass(frozen=True, slots=True)
class _OwnWork:
    store: SharedCopyStore
    offer: CopyOffer
    held: OfferedRange
    staging: SharedCopy

    @property
    def part(self) -> CtidRange:
        return self.held.part

    def write(self, rows: pa.RecordBatch) -> None:
        self.staging.write(rows)

    def finish(self, rows: int) -> None:
        self.store.finish(self.offer, self.held, rows, "")

    def give_up(self) -> None:
        """The copy ends with it."""


def help_copy(
    source: Source,
    store: SharedCopyStore,
    destination: SharingDestination,
    name: TableName,
    offer: CopyOffer,
    shapes: Shapes,
    kept: Callable[[TableSchema], TableSchema],
    connections: int,
    on_progress: OnProgress,
    stop: threading.Event,
) -> CopyResult:
    """Copies ranges of an offered copy until none is free. Returns what was copied here.

    `kept` gives the table as it is copied (`Permission.kept`).

    Raises TransientError if that copy is over or the table has changed since it began, and what `copy_table` raises.
    What was not finished goes back to the process that offers it.
    """
    with source.connect("catalog") as connection:
        table = published_table(connection, offer.table_id, source.publication)
    if table is not None:
        table = replace(table, schema=_with_digits_of(kept(table.schema), offer.layout))
    if table is None or layout_of(table, shapes) != offer.layout or offer.snapshot_name is None:
        raise TransientError(f"{name} has changed since the copy to be helped with began, or that copy is over")
    shape = shapes.of(table.schema)
    return copy_table(
        SnapshotConnections(lambda: source.connect(helper_role(offer.table_id)), offer.snapshot_name),
        replace(table, schema=shape.asked),
        connections,
        lambda _: _HelpedRanges(store, offer, destination, shape),
        on_progress,
        stop,
        load=shape.load,
    )


def helper_role(table_id: TableId) -> str:
    return f"help_{table_id}"


def live_helpers(source: Source, table_id: TableId) -> set[int]:
    """The process ids of the sessions on the source that help to copy the table."""
    with source.connect("slots") as connection:
        return session_pids(connection, f"etl_{source.pipeline}_{helper_role(table_id)}")


class _HelpedRanges:
    def __init__(self, store: SharedCopyStore, offer: CopyOffer, destination: SharingDestination, shape: Shape) -> None:
        self._store = store
        self._offer = offer
        self._destination = destination
        self._target = shape.target

    def take(self, conn: Connection) -> RangeWork | None:
        try:
            held = self._store.take(self._offer, conn.info.backend_pid)
        except StateConflict:
            return None
        if held is None:
            return None
        try:
            part = self._destination.join_copy(self._target, self._offer.address or "")
        except BaseException:
            self._store.give_back(self._offer, held)
            raise
        return _HelpedWork(self._store, self._offer, held, part)

    def elsewhere(self) -> tuple[int, int]:
        return 0, 0


@dataclass(slots=True)
class _HelpedWork:
    store: SharedCopyStore
    offer: CopyOffer
    held: OfferedRange
    staged: CopyPart
    is_staged: bool = False

    @property
    def part(self) -> CtidRange:
        return self.held.part

    def write(self, rows: pa.RecordBatch) -> None:
        self.staged.write(rows)

    def finish(self, rows: int) -> None:
        receipt = self.staged.finish()
        self.is_staged = True
        reach(RANGE_STAGED)
        self.store.finish(self.offer, self.held, rows, receipt)

    def give_up(self) -> None:
        if not self.is_staged:  # else its receipt may be stored, though the answer was lost
            self.staged.discard()
        try:
            self.store.give_back(self.offer, self.held)
        except (StateConflict, TransientError):
            return  # it is nobody's business any more, or found out by our session's end
