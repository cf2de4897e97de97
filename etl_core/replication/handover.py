"""Hand-over: from a table's initial copy to the main stream, without the other tables waiting.

A table whose snapshot the main stream has not passed is simply taken in: its watermark skips what it has. So is one of
which the main stream has seen no change since the snapshot: a thousand quiet tables need no catch-up. Otherwise its
catch-up runs until it has passed the main stream's position, and the table is taken in there. Because a change
is applied if and only if it is beyond the table's watermark, it does not matter how far beyond the catch-up got.

Every state this module stores is stored under the claim of its stream: one that was replaced decides nothing any more.
If it is not known whether a state was stored, the stream ends, and begins again from what is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import replace

from etl_core.batch import StreamPosition, WriteBatch
from etl_core.destination.protocol import Destination
from etl_core.errors import (
    COPIED_AGAIN,
    ClaimLost,
    CopiedAgain,
    CopyNeeded,
    EtlError,
    OutcomeUnknown,
    SlotInUse,
    StateConflict,
    StateStoreUnavailable,
    TableError,
    TransientError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.catch_ups import CatchUps, failure_of
from etl_core.replication.catchup import CatchUp
from etl_core.replication.copied_before import check_not_another, copied_tables, is_there
from etl_core.replication.failpoints import READY_STORED, SYNC_DONE_STORED, TABLE_STOPPED, reach
from etl_core.replication.group_copy import changed_in_group
from etl_core.replication.observer import Observer
from etl_core.replication.stopped_tables import StoppedTables
from etl_core.replication.stream_fence import StreamFence
from etl_core.replication.sync_slots import SyncSlots
from etl_core.schema.table import TableSchema
from etl_core.source.slot import SlotStatus
from etl_core.state.store import Hold, StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import COPIED, TableState

_CONFLICT_TRIES = 3


class Handover:
    """Keeps the main stream's active tables in step with the table states. Implements `stream.Boundary`.

    `start`, `look_around`, `passed`, `held_at`, `is_settled` and `close` are the conducting thread's; `reload` and
    `table_failed` are called from the writing one.
    """

    def __init__(
        self,
        store: StateStore,
        destination: Destination,
        active: ActiveTables,
        slots: SyncSlots,
        begin_catch_up: Callable[[TableStatus, Lsn, SlotStatus], CatchUp | None],
        observer: Observer,
        stopped: StoppedTables,
        fence: StreamFence,
        *,
        hold: Callable[[], Hold | None],
        stop: threading.Event,
        claim: str | None,
        pipeline: str,
        write_lock: threading.Lock,
        check_copied: Callable[[TableSchema, str | None], None] = lambda _schema, _shape: None,
        put_aside: Callable[[Set[TableId]], None] = lambda _: None,
        name_taken: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin_catch_up` gives None if the slot has passed what the destination has. `claim` is the stream's.

        `hold` gives the hold in force, of a session that lives; see `hold.py`. `check_copied` raises CopiedAgain for a
        table that was copied by other settings, as another process may have others; it is given those that are stored,
        or None to read them. `put_aside` is told what the destination has under no name of its own when the stream
        begins; `name_taken` is called when a table is taken in that was copied, or renamed while it caught up, under a
        name that another one may have had: the destination has put that one aside.
        """
        self._stopped = stopped
        self._fence = fence
        self._claim = claim
        self._pipeline = pipeline
        self._write_lock = write_lock
        self._store = store
        self._destination = destination
        self._active = active
        self._slots = slots
        self._begin_catch_up = begin_catch_up
        self._observer = observer
        self._catch_ups = CatchUps()
        self._find_hold = hold
        self._stop = stop
        self._check_copied = check_copied
        self._put_aside = put_aside
        self._name_taken = name_taken
        self._hold: Lsn | None = None
        self._start = ZERO
        self._passed: dict[TableId, Lsn] = {}

    def start(self, position: Lsn) -> None:
        """Takes in every table that is ready at `position`. After START_REPLICATION has succeeded, see `copy.py`."""
        self._start = position
        copied = copied_tables(self._store)
        positions = self._destination.positions()
        check_not_another(copied, positions, self._pipeline)
        self._put_aside(positions.aside)  # first: what is found behind a hand-over is newer
        is_ours = positions.stream is None or not self._fence.is_of_another_source(positions.stream)
        kept = []
        for status in copied:
            if status.state not in (TableState.FINISHED_COPY, TableState.ERRORED):
                continue
            if is_ours and is_there(status, positions):
                kept.append(status)  # its own slot has what it misses, whatever else the destination lacks
            else:
                self._fail_wanting(status, positions.tables.get(status.table_id))
        if self._fence.is_older(positions.stream):
            self._refuse_older(positions.stream, kept)
        else:
            self._fence.expect(positions.stream)
        marks = positions.tables
        statuses = self._store.tables()
        schemas, shapes = self._store.schemas(), self._store.shapes()  # at once: a query for each table costs 2 ms
        for status in statuses:
            try:
                match status.state:
                    case TableState.READY:
                        schema = schemas.get(status.table_id)
                        self._take_in_ready(status, marks, schema, shapes.get(status.table_id))
                    case TableState.SYNC_DONE:
                        self._resume_sync_done(status, marks, position)
                    case _:
                        pass
            except StateConflict:
                continue  # someone moves it at this moment; the next look sees it
            except TableError as error:
                self._fail(status, error)
        self._hand_over(position, lambda: False)

    def look_around(self, position: Lsn, busy_wait: Callable[[], bool]) -> Lsn | None:
        """See `stream.Boundary`. While store, source or destination are away nothing changes; the stream goes on."""
        try:
            self._hand_over(position, busy_wait)
            hold = self._find_hold()
        except (OutcomeUnknown, SlotInUse):
            raise
        except TransientError as error:
            self._observer.on_retry(error, 0.0)
            return self._hold
        self._hold = None if hold is None else position if hold.lsn is None else hold.lsn
        return self._hold

    def passed(self, tables: Collection[TableId], end_lsn: Lsn) -> None:
        self._passed.update(dict.fromkeys(tables, end_lsn))

    def held_at(self, lsn: Lsn) -> None:
        try:
            hold = self._store.hold()
            if hold is not None and hold.reached != lsn and (hold.lsn is None or hold.lsn <= lsn):
                self._store.answer_hold(hold.owner, lsn)
        except TransientError as error:
            self._observer.on_retry(error, 0.0)  # answered at the next look

    def is_settled(self) -> bool:
        return all(status.state is not TableState.FINISHED_COPY for status in self._store.tables())

    def leave(self) -> None:
        """Lets go of the server, which shuts down, before anything that is being written is waited for."""
        self._catch_ups.leave()

    def close(self) -> None:
        """Stops what catches up; it goes on at the next start."""
        self._catch_ups.close()

    # --- taking tables in -------------------------------------------------------------------------------------

    def _refuse_older(self, found: StreamPosition | None, kept: Sequence[TableStatus] = ()) -> None:
        """The changes in between are gone from the slot, so that every table needs a new copy, but those of `kept`.

        The stream's position in the destination is the evidence. It is moved only when every table says it for itself.
        """
        what = self._fence.told(found)
        while statuses := [s for s in self._store.tables() if s.state in COPIED and s not in kept]:
            for status in statuses:  # until none is left: one that somebody moves meanwhile is looked at again
                self._fail_replaced(status, what)
                self._deactivate(status.table_id)
        self._destination.prepare()  # it may be an empty one
        for _ in range(_CONFLICT_TRIES):
            self._fence.expect(self._destination.positions().stream)
            move = self._fence.move(self._start)
            with contextlib.suppress(WatermarkConflict), self._write_lock:
                self._destination.write(WriteBatch((), {}, move))
                self._fence.moved(move)
                return
        raise OutcomeUnknown("the destination was replaced again and again", hint="end what else writes to it")

    def _fail_replaced(self, status: TableStatus, what: str, watermark: Lsn | None = ZERO) -> None:
        if watermark is None and self._is_name_taken(status.table_id):
            what = f"{status.name} is copied again: a table that has its former name now has taken its place"
            self._fail(status, CopiedAgain(what, table=str(status.name), hint=COPIED_AGAIN))
            return
        self._fail(
            status,
            CopyNeeded(
                f"{status.name}: {what}",
                table=str(status.name),
                hint=f"was the destination restored or replaced? etl resync {status.name}, or etl sync --all",
            ),
        )

    def _fail_wanting(self, status: TableStatus, watermark: Lsn | None) -> None:
        what = f"it was complete as of {status.snapshot_lsn}, but the destination has it as of {watermark}"
        self._fail_replaced(status, what, watermark)

    def _is_name_taken(self, table_id: TableId) -> bool:
        """Whether another table of the pipeline was copied under the name that this one has in the destination."""
        stored = self._store.schema(table_id)
        others = (self._store.schema(status.table_id) for status in self._store.tables() if status.table_id != table_id)
        return stored is not None and any(other is not None and other[1].name == stored[1].name for other in others)

    def _take_in_ready(
        self, status: TableStatus, marks: Mapping[TableId, Lsn], schema: TableSchema | None, shape: str | None
    ) -> None:
        watermark = marks.get(status.table_id)
        if watermark is None or watermark < (status.snapshot_lsn or ZERO):
            self._fail_wanting(status, watermark)
            return
        self._activate(status, watermark, self._checked(status, schema, shape))

    def _activate(self, status: TableStatus, watermark: Lsn, schema: TableSchema) -> None:
        self._active.activate(status.table_id, watermark, schema)
        self._observer.on_activated(status.name, watermark)

    def _deactivate(self, table_id: TableId) -> None:
        schema = self._active.schema(table_id)
        self._active.deactivate(table_id)
        if schema is not None:
            self._observer.on_deactivated(schema.name)

    def _schema(self, status: TableStatus) -> TableSchema:
        stored = self._store.schema(status.table_id)
        return self._checked(status, None if stored is None else stored[1], None)

    def _checked(self, status: TableStatus, schema: TableSchema | None, shape: str | None) -> TableSchema:
        if schema is None:
            raise CopyNeeded(
                f"the state store has no schema for {status.name}",
                table=str(status.name),
                hint=f"etl resync {status.name}",
            )
        self._check_copied(schema, shape)
        return schema

    def _resume_sync_done(self, status: TableStatus, marks: Mapping[TableId, Lsn], position: Lsn) -> None:
        """The process ended after the catch-up was complete: its watermark is beyond where the stream begins again."""
        watermark = marks.get(status.table_id)
        if watermark is None or watermark < position:
            self._move(status, TableState.INIT)
            return
        self._take_in(status, watermark)

    def _take_in(self, status: TableStatus, watermark: Lsn) -> None:
        """READY first, then active: `reload` in the writing thread drops active tables that are not READY.

        Nothing between the two can fail: a table that is READY and not active would lose what the stream passes.
        The slot goes last: a stream that was replaced is told so by its claim, and the slot is its successor's.
        """
        schema = self._schema(status)
        ready = self._move(
            status, TableState.READY, TableUpdate(snapshot_lsn=watermark, rows_copied=status.rows_copied)
        )
        self._activate(ready, watermark, schema)
        if self._may_have_taken_a_name(schema):
            self._name_taken()
        reach(READY_STORED)
        self._slots.drop(status)

    def _may_have_taken_a_name(self, schema: TableSchema) -> bool:
        """Whether another table was, or may have been, put aside for this one since the stream began."""
        versions = self._store.schema_versions(schema.table_id)
        return self._active.shares_name(schema) or any(one.schema.name != schema.name for one in versions)

    def _hand_over(self, position: Lsn, busy_wait: Callable[[], bool]) -> None:
        by_id = {status.table_id: status for status in self._store.tables()}
        for table_id in self._active.watermarks():
            status = by_id.get(table_id)
            if status is None or status.state not in (TableState.READY, TableState.SYNC_DONE):
                self._deactivate(table_id)
        for table_id in self._catch_ups:
            status = by_id.get(table_id)
            if status is None or status.state is not TableState.FINISHED_COPY:
                self._catch_ups.stop(table_id)
                self._slots.give_up(table_id)
        began = time.monotonic()
        for status in by_id.values():
            if self._stop.is_set():
                return  # the next start goes on here
            try:
                if status.state is TableState.FINISHED_COPY:
                    self._hand_over_one(status, position, began, busy_wait)
                elif status.state is TableState.SYNC_DONE or self._is_left_out(status):
                    # Something was away in the middle of a hand-over, and the stream has gone on without the table.
                    self._move(status, TableState.INIT)
            except StateConflict:
                continue  # someone moved the table meanwhile; the next look sees it
            except TableError as error:
                self._fail(status, error)

        self._slots.drop_left(by_id)
        self._try_stopped_again(list(by_id.values()))

    def _try_stopped_again(self, statuses: Sequence[TableStatus]) -> None:
        for status, to, update in self._stopped.due(statuses):
            with contextlib.suppress(StateConflict):
                self._move(status, to, update)

    def _is_left_out(self, status: TableStatus) -> bool:
        return status.state is TableState.READY and status.table_id not in self._active

    def _hand_over_one(self, status: TableStatus, position: Lsn, began: float, busy_wait: Callable[[], bool]) -> None:
        catch_up = self._catch_ups.running(status.table_id)
        if catch_up is not None:
            self._finish_catch_up(status, catch_up, position, began, busy_wait)
            return
        snapshot_lsn = status.snapshot_lsn or ZERO
        if snapshot_lsn >= position or self._start <= snapshot_lsn >= self._passed.get(status.table_id, ZERO):
            self._take_in(status, snapshot_lsn)
        elif self._catch_ups.may_begin(status.table_id):
            slot = self._slots.kept(status)
            catch_up = None if slot is None else self._begin_catch_up(status, snapshot_lsn, slot)
            if catch_up is None:
                # The stream has passed the snapshot and nothing kept the changes in between: only a new copy has them.
                self._copy_again(status)
            else:
                self._catch_ups.add(catch_up)

    def _copy_again(self, status: TableStatus) -> None:
        self._move(status, TableState.INIT, changed_in_group(status) if status.sync_slot is None else None)
        self._slots.drop(status)

    def _finish_catch_up(
        self, status: TableStatus, catch_up: CatchUp, position: Lsn, began: float, busy_wait: Callable[[], bool]
    ) -> None:
        if catch_up.error is not None:
            self._catch_ups.stop(status.table_id)
            self._catch_up_failed(status, catch_up, catch_up.error)
            return
        if not self._catch_ups.comes_through(catch_up, position, began, busy_wait):
            return
        try:
            through = self._catch_ups.finish(catch_up, busy_wait)
        except EtlError as error:
            self._catch_up_failed(status, catch_up, error)
            return
        status = self._move(
            status,
            TableState.SYNC_DONE,
            TableUpdate(snapshot_lsn=status.snapshot_lsn, sync_slot=status.sync_slot, rows_copied=status.rows_copied),
        )
        reach(SYNC_DONE_STORED)
        self._take_in(status, through)

    def _catch_up_failed(self, status: TableStatus, catch_up: CatchUp, error: BaseException) -> None:
        failure = failure_of(status.name, error)
        is_passing = isinstance(failure, (TransientError, WatermarkConflict))
        wait = self._catch_ups.next_try(catch_up) if is_passing else None
        if wait is not None:
            self._observer.on_retry(failure, wait)
        elif self._slots.kept(status) is None:
            self._observer.on_retry(failure, 0.0)
            self._copy_again(status)
        else:
            self._fail(status, failure)

    # --- what the writing thread finds out --------------------------------------------------------------------

    def table_failed(self, table_id: TableId, error: EtlError) -> None:
        """Stores why a table stopped. One that is not READY any more was moved by another process, which decides."""
        status = self._store.table(table_id)
        if status is not None and status.state is TableState.READY:
            self._fail(status, error)

    def reload(self) -> None:
        """A position in the destination was not the expected one: someone else wrote, or an answer was lost."""
        active = self._active.watermarks()  # first: what is taken in meanwhile is left alone
        positions = self._destination.positions()
        if self._fence.is_older(positions.stream):
            self._refuse_older(positions.stream)
            return
        self._fence.expect(positions.stream)
        marks = positions.tables
        states = {status.table_id: status for status in self._store.tables()}
        for table_id, ours in active.items():
            status = states.get(table_id)
            theirs = marks.get(table_id)
            if status is None or status.state is not TableState.READY:
                self._deactivate(table_id)
            elif theirs is not None and theirs > ours:
                try:
                    self._activate(status, theirs, self._schema(status))
                except TableError as error:
                    self._fail(status, error)
                    self._active.deactivate(table_id)
            elif theirs != ours:
                self._fail_replaced(status, f"the destination's watermark went back from {ours} to {theirs}", theirs)
                self._active.deactivate(table_id)

    # --- states -----------------------------------------------------------------------------------------------

    def _fail(self, status: TableStatus, error: EtlError) -> None:
        if isinstance(error, CopiedAgain):
            # Nothing a person could add: the table is copied again, and says why until that begins.
            with contextlib.suppress(StateConflict):  # someone moved it on; their decision stands
                self._move(status, TableState.INIT, TableUpdate(error=str(error), hint=error.hint))
                self._slots.drop(status)
                self._observer.on_table_error(status.name, error)
            return
        update = self._stopped.stop(status, error)
        try:
            self._move(status, TableState.ERRORED, update)
        except (StateConflict, SlotInUse) as conflict:
            # Someone moved it on, or this stream was replaced; their decision stands.
            if update.sync_slot != status.sync_slot:
                self._slots.drop(replace(status, sync_slot=update.sync_slot))
            if isinstance(conflict, SlotInUse):
                raise
            return
        reach(TABLE_STOPPED)
        self._stopped.complete(status.table_id)
        if status.sync_slot != update.sync_slot:
            self._slots.drop(status)  # only a new copy brings the table back: the slot would hold WAL for nothing
        self._observer.on_table_error(status.name, error)

    def _move(self, status: TableStatus, to: TableState, update: TableUpdate | None = None) -> TableStatus:
        try:
            moved = self._store.transition(status, to, update, claim=self._claim)
        except ClaimLost:
            raise SlotInUse(
                "another process streams the same pipeline since this one lost its connection",
                hint="nothing was lost: what it has not stored is read again",
            ) from None
        except StateStoreUnavailable as error:
            raise OutcomeUnknown(
                f"{error}; whether {status.name} moved to {to.name} is not known, so the stream starts again from "
                "what is stored",
                hint=error.hint,
            ) from error
        self._observer.on_state(status.name, to)
        return moved
