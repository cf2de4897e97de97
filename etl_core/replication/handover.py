"""Hand-over: from a table's initial copy to the main stream, without the other tables waiting.

A table whose snapshot the main stream has not passed is simply taken in: its watermark skips what it has. So is one of
which the main stream has seen no change since the snapshot: a thousand quiet tables need no catch-up. Otherwise its
catch-up runs until it has passed the main stream's position, and the table is taken in there. Because a change
is applied if and only if it is beyond the table's watermark, it does not matter how far beyond the catch-up got.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from etl_core.batch import WriteBatch
from etl_core.destination.protocol import Destination
from etl_core.errors import (
    CopiedAgain,
    EtlError,
    SlotInUse,
    StateConflict,
    TableError,
    TransientError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.catchup import CatchUp
from etl_core.replication.failpoints import SYNC_DONE_STORED, SYNC_SLOT_DROPPED, reach
from etl_core.replication.observer import Observer
from etl_core.schema.table import TableSchema
from etl_core.state.store import StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_CATCH_UPS = 4
"""How many run at a time; each holds a walsender."""
_SHORT_STEP = 16 << 20
"""Bytes of WAL behind the main stream from which on the main stream waits for the last step; or twice what the catch-up
comes on by a batch: behind a slow destination it never comes closer."""
_SHORT_STEP_SECONDS = 2.0
"""How long the main stream waits for last steps, all tables together, before it goes on and tries again later; or three
times what the destination takes for a batch: one is under way, and the last one comes after it."""
_READER_SECONDS = 10.0
"""How long the reader of a slot, which has just left, is waited for."""
_WITHOUT_SLOT = frozenset({TableState.READY, TableState.ERRORED, TableState.PAUSED})
_COPIED_AGAIN = frozenset({TableState.INIT, TableState.DATA_SYNC})
RETRY_AFTER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class SyncSlots:
    """What the hand-over does with sync slots, on connections of its own."""

    names: Callable[[], Sequence[str]]
    """Of those that exist on the source."""
    drop: Callable[[str, float], object]
    """Drops a slot this pipeline owns, and forgets it; nothing if it is gone. Waits so many seconds for its reader."""


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
        begin_catch_up: Callable[[TableStatus, Lsn], CatchUp],
        observer: Observer,
    ) -> None:
        self._store = store
        self._destination = destination
        self._active = active
        self._slots = slots
        self._begin_catch_up = begin_catch_up
        self._observer = observer
        self._catch_ups: dict[TableId, CatchUp] = {}
        self._undropped: dict[str, TableId] = {}
        self._hold: Lsn | None = None
        self._start = ZERO
        self._passed: dict[TableId, Lsn] = {}

    def start(self, position: Lsn, written: Lsn | None) -> None:
        """Takes in every table that is ready at `position`. After START_REPLICATION has succeeded, see `copy.py`.

        `written` is where the last batch ended that the destination is known to have.
        """
        self._start = position
        positions = self._destination.positions()
        if written is not None and (positions.stream is None or positions.stream < written):
            self._refuse_older(positions.stream, position, written)
        marks = positions.tables
        for status in self._store.tables():
            with contextlib.suppress(StateConflict):  # someone moves it at this moment; the next look sees it
                match status.state:
                    case TableState.READY:
                        self._take_in_ready(status, marks)
                    case TableState.SYNC_DONE:
                        self._resume_sync_done(status, marks, position)
                    case _:
                        pass
        self._hand_over(position, lambda: None)

    def look_around(self, position: Lsn, busy_wait: Callable[[], None]) -> Lsn | None:
        """See `stream.Boundary`. While store, source or destination are away nothing changes; the stream goes on."""
        try:
            self._hand_over(position, busy_wait)
            hold = self._store.hold()
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

    def close(self) -> None:
        """Stops what catches up; it goes on at the next start."""
        for catch_up in self._catch_ups.values():
            catch_up.stop()
        self._catch_ups.clear()

    # --- taking tables in -------------------------------------------------------------------------------------

    def _refuse_older(self, found: Lsn | None, position: Lsn, written: Lsn) -> None:
        """The changes in between are gone from the slot, so that every table needs a new copy."""
        for status in self._store.tables():
            if status.state in (TableState.READY, TableState.SYNC_DONE, TableState.FINISHED_COPY):
                self._fail_replaced(status, f"the stream was written up to {written}, but the destination has {found}")
        # The tables say it from now on; copied again, they must not be found wanting at the next start.
        self._destination.write(WriteBatch((), {}, position))

    def _fail_replaced(self, status: TableStatus, what: str) -> None:
        self._fail(
            status,
            TableError(
                f"{status.name}: {what}",
                table=str(status.name),
                hint=f"was the destination restored or replaced? etl resync {status.name}",
            ),
        )

    def _take_in_ready(self, status: TableStatus, marks: Mapping[TableId, Lsn]) -> None:
        watermark = marks.get(status.table_id)
        if watermark is None or watermark < (status.snapshot_lsn or ZERO):
            self._fail_replaced(
                status, f"it was complete as of {status.snapshot_lsn}, but the destination has it as of {watermark}"
            )
            return
        self._activate(status, watermark, self._schema(status))

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
        if stored is None:
            raise TableError(
                f"the state store has no schema for {status.name}",
                table=str(status.name),
                hint=f"etl resync {status.name}",
            )
        return stored[1]

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
        The slot goes before both: whoever sees READY may copy the table again, with a slot of the same name.
        """
        schema = self._schema(status)
        if status.sync_slot is not None:
            self._drop(status.sync_slot, status.table_id)
        reach(SYNC_SLOT_DROPPED)
        status = self._move(
            status, TableState.READY, TableUpdate(snapshot_lsn=watermark, rows_copied=status.rows_copied)
        )
        self._activate(status, watermark, schema)

    def _drop(self, slot: str, table_id: TableId) -> None:
        try:
            self._slots.drop(slot, _READER_SECONDS)
        except TransientError as error:
            self._observer.on_retry(error, 0.0)
            self._undropped[slot] = table_id

    def _hand_over(self, position: Lsn, busy_wait: Callable[[], None]) -> None:
        by_id = {status.table_id: status for status in self._store.tables()}
        for table_id in self._active.watermarks():
            status = by_id.get(table_id)
            if status is None or status.state not in (TableState.READY, TableState.SYNC_DONE):
                self._deactivate(table_id)
        for table_id in list(self._catch_ups):
            status = by_id.get(table_id)
            if status is None or status.state is not TableState.FINISHED_COPY:
                self._catch_ups.pop(table_id).stop()
        began = time.monotonic()
        for status in by_id.values():
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

        self._drop_slots_left({status.table_id: status.state for status in by_id.values()})

    def _drop_slots_left(self, states: Mapping[TableId, TableState]) -> None:
        """Those of paused tables, which are copied anew when they are resumed, and those that could not be dropped."""
        if TableState.PAUSED in states.values():
            owned = {slot.name: slot.table_id for slot in self._store.owned_slots() if slot.table_id is not None}
            self._undropped |= {name: of for name, of in owned.items() if states.get(of) is TableState.PAUSED}
        for name, table_id in list(self._undropped.items()):
            state = states.get(table_id)
            if state in _COPIED_AGAIN:
                del self._undropped[name]  # there may be a new one of the same name
            elif state in _WITHOUT_SLOT:
                with contextlib.suppress(SlotInUse):  # a copy that was paused waits for old transactions with it
                    self._slots.drop(name, 0.0)
                    del self._undropped[name]

    def _is_left_out(self, status: TableStatus) -> bool:
        return status.state is TableState.READY and status.table_id not in self._active

    def _hand_over_one(self, status: TableStatus, position: Lsn, began: float, busy_wait: Callable[[], None]) -> None:
        catch_up = self._catch_ups.get(status.table_id)
        if catch_up is not None:
            self._finish_catch_up(status, catch_up, position, began, busy_wait)
            return
        snapshot_lsn = status.snapshot_lsn or ZERO
        if snapshot_lsn >= position or self._start <= snapshot_lsn >= self._passed.get(status.table_id, ZERO):
            self._take_in(status, snapshot_lsn)
        elif len(self._catch_ups) >= _CATCH_UPS:
            return
        elif status.sync_slot is None or status.sync_slot not in self._slots.names():
            # The stream has passed the snapshot and nothing kept the changes in between: only a new copy has them.
            self._move(status, TableState.INIT)
        else:
            self._catch_ups[status.table_id] = self._begin_catch_up(status, snapshot_lsn)

    def _finish_catch_up(
        self, status: TableStatus, catch_up: CatchUp, position: Lsn, began: float, busy_wait: Callable[[], None]
    ) -> None:
        if catch_up.error is not None:
            self._catch_ups.pop(status.table_id).stop()
            self._catch_up_failed(status, catch_up.error)
            return
        last = catch_up.last_write
        if position - min(position, catch_up.through) > max(_SHORT_STEP, 2 * last.step):
            return
        deadline = began + max(_SHORT_STEP_SECONDS, 3 * last.seconds)
        while not catch_up.wait_through(position, 0.1):
            busy_wait()
            if catch_up.error is not None or time.monotonic() > deadline:
                return
        del self._catch_ups[status.table_id]
        try:
            through = catch_up.finish(busy_wait)
        except EtlError as error:
            self._catch_up_failed(status, error)
            return
        status = self._move(
            status,
            TableState.SYNC_DONE,
            TableUpdate(snapshot_lsn=status.snapshot_lsn, sync_slot=status.sync_slot, rows_copied=status.rows_copied),
        )
        reach(SYNC_DONE_STORED)
        self._take_in(status, through)

    def _catch_up_failed(self, status: TableStatus, error: BaseException) -> None:
        if isinstance(error, (TransientError, WatermarkConflict)):
            self._observer.on_retry(error, 0.0)  # begun again at the next look
        elif isinstance(error, EtlError):
            self._fail(status, error)
        else:
            raise error

    # --- what the writing thread finds out --------------------------------------------------------------------

    def table_failed(self, table_id: TableId, error: EtlError) -> None:
        """Stores why a table stopped."""
        status = self._store.table(table_id)
        if status is not None:
            self._fail(status, error)

    def reload(self) -> None:
        """A watermark in the destination was not the expected one: someone else wrote, or an answer was lost."""
        active = self._active.watermarks()  # first: what is taken in meanwhile is left alone
        marks = self._destination.positions().tables
        states = {status.table_id: status for status in self._store.tables()}
        for table_id, ours in active.items():
            status = states.get(table_id)
            theirs = marks.get(table_id)
            if status is None or status.state is not TableState.READY:
                self._deactivate(table_id)
            elif theirs is not None and theirs > ours:
                self._activate(status, theirs, self._schema(status))
            elif theirs != ours:
                self._fail_replaced(status, f"the destination's watermark went back from {ours} to {theirs}")
                self._active.deactivate(table_id)

    # --- states -----------------------------------------------------------------------------------------------

    def _fail(self, status: TableStatus, error: EtlError) -> None:
        if isinstance(error, CopiedAgain):
            # Nothing a person could add: the table is copied again, and says why until that begins.
            with contextlib.suppress(StateConflict):  # someone moved it on; their decision stands
                self._move(status, TableState.INIT, TableUpdate(error=str(error), hint=error.hint))
                self._observer.on_table_error(status.name, error)
            return
        retry_at = datetime.now(UTC) + RETRY_AFTER if isinstance(error, TransientError) else None
        update = TableUpdate(error=str(error), hint=error.hint, attempts=status.attempts + 1, retry_at=retry_at)
        try:
            self._move(status, TableState.ERRORED, update)
        except StateConflict:
            return  # someone moved it on; their decision stands
        if status.sync_slot is not None:
            # Only a new copy brings the table back: the slot would hold WAL for nothing.
            self._drop(status.sync_slot, status.table_id)
        self._observer.on_table_error(status.name, error)

    def _move(self, status: TableStatus, to: TableState, update: TableUpdate | None = None) -> TableStatus:
        moved = self._store.transition(status, to, update)
        self._observer.on_state(status.name, to)
        return moved
