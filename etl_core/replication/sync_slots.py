"""The sync slots of a stream's hand-overs: what they still hold, and their end. Each of them keeps WAL."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from etl_core.errors import SlotInUse, TransientError
from etl_core.identifiers import TableId
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.source.slot import SlotStatus
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import TableState

_READER_SECONDS = 10.0
"""How long the reader of a slot, which has just left, is waited for."""


class SyncSlots:
    """Of one stream; on connections of its own."""

    def __init__(self, source: Source, store: StateStore, observer: Observer) -> None:
        self._source = source
        self._store = store
        self._observer = observer
        self._read: dict[TableId, str] = {}
        self._undropped: dict[str, TableId] = {}

    def kept(self, status: TableStatus) -> SlotStatus | None:
        """The table's sync slot, None if it is gone or no longer holds what it was made for."""
        self._leave_earlier(status)
        if status.sync_slot is not None:
            self._read[status.table_id] = status.sync_slot
        slot = None if status.sync_slot is None else self._source.slot_status(status.sync_slot)
        return None if slot is None or slot.is_lost else slot

    def give_up(self, table_id: TableId) -> None:
        """The slot that was read last for a table which somebody has moved on; `drop_left` drops it."""
        if table_id in self._read:
            self._undropped[self._read.pop(table_id)] = table_id

    def _leave_earlier(self, status: TableStatus) -> None:
        """The table may have been copied again before a look saw it: the slot of the earlier copy is left over."""
        earlier = self._read.pop(status.table_id, None)
        if earlier is not None and earlier != status.sync_slot:
            self._undropped[earlier] = status.table_id

    def drop(self, status: TableStatus) -> None:
        """Drops the table's slot, if it has one; tried again by `drop_left` if that fails for the moment."""
        self._leave_earlier(status)
        if status.sync_slot is None:
            return
        self._undropped[status.sync_slot] = status.table_id
        try:
            self._source.drop_if_owned(status.sync_slot, _READER_SECONDS)
            self._undropped.pop(status.sync_slot, None)
        except TransientError as error:
            self._observer.on_retry(error, 0.0)

    def drop_left(self, tables: Mapping[TableId, TableStatus]) -> None:
        """Those of tables that need none, given up, or not dropped so far."""
        idle = {status.table_id for status in tables.values() if _needs_none(status)}
        if idle:
            owned = {slot.name: slot.table_id for slot in self._store.owned_slots() if slot.table_id is not None}
            self._undropped |= {name: of for name, of in owned.items() if of in idle}
        for name, table_id in list(self._undropped.items()):
            status = self._store.table(table_id)  # as of after its slots were read: a new copy has a new one
            if status is None or status.sync_slot != name:
                with contextlib.suppress(SlotInUse):  # a copy that was paused waits for old transactions with it
                    self._source.drop_if_owned(name, 0.0)
                    self._undropped.pop(name, None)


def _needs_none(status: TableStatus) -> bool:
    """Whether the table is copied anew before it goes on: paused, set back, or stopped without its changes."""
    return status.sync_slot is None and status.state in (TableState.PAUSED, TableState.INIT, TableState.ERRORED)
