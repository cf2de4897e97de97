"""Tables that stopped with an error while the others go on: what is kept for them, and when they are tried again.

A table that fails in the main stream gets a slot of its own, copied from the main slot where that is confirmed. Nothing
beyond what is durable for every active table has been confirmed, so no change of the table that was not applied lies
before the slot, and its watermark skips what lies behind it and was applied. So the table goes on as one whose initial
copy has just finished: by its catch-up, from its watermark. The slot keeps WAL, so it lives within a budget; beyond it,
or where no slot could be had, the table is copied again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from etl_core.batch import WatermarkMove
from etl_core.errors import CopyNeeded, EtlError, SourceChanged, TableAbsent, TableError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.failpoints import COMPLETE_TOLD, reach
from etl_core.replication.source import KeptChanges
from etl_core.replication.table_errors import failed_update, kept_update
from etl_core.state.store import StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_log = logging.getLogger(__name__)

FIRST_RETRY = timedelta(minutes=1)
_MOST_KEPT = 4
"""Slots for stopped tables: a destination that refuses a thousand tables must not take every slot of the server."""
_NOT_KEPT = "its changes are no longer kept on the source (batch.kept_wal)"
_WEIGH_EVERY = 10.0
"""Seconds between two looks at how much WAL the slots keep."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is done on the source to keep a table's changes."""

    keep: Callable[[TableId], KeptChanges | None]
    """Copies the main slot; None if the server refuses that."""
    complete_up_to: Callable[[TableId, WatermarkMove], None]
    """Says in the destination that the table is complete up to a later position."""
    kept_wal: Callable[[str], int | None]
    """Bytes of WAL that the slot keeps and the main slot does not; None if it is gone or lost."""
    budget: int
    """Bytes of WAL that one table may keep; 0 keeps none."""


class StoppedTables:
    """Decides for the hand-over. `stop` is called by the writing thread and the conducting one, `due` by the latter."""

    def __init__(
        self,
        store: StateStore,
        active: ActiveTables,
        keeping: Keeping,
        still_waits: Callable[[TableStatus], bool] = lambda status: status.waits_for is not None,
    ) -> None:
        """`still_waits`: whether a table that waits for a person does so by its policy of today, too."""
        self._still_waits = still_waits
        self._store = store
        self._active = active
        self._keeping = keeping
        self._to_complete: dict[TableId, WatermarkMove] = {}
        self._next_weighing = 0.0
        self._is_start = True

    def stop(self, status: TableStatus, error: EtlError) -> TableUpdate:
        """What the store is told of a table that fails now; it is still active if it was. Then `complete` is called."""
        kept = self._keep(status, error)
        if kept is None:
            return failed_update(error, status.attempts + 1, FIRST_RETRY)
        return kept_update(status, error, *kept, self._keeping.budget, FIRST_RETRY)

    def complete(self, table_id: TableId) -> None:
        """Moves the watermark of a table that had no change for long up to where its slot begins.

        Called when what `stop` gave is stored under the claim of the stream: what a successor has confirmed is complete
        for the successor, not for this one. A slot that begins beyond the watermark is taken for one that somebody has
        advanced, and the table is copied again.
        """
        move = self._to_complete.pop(table_id, None)
        if move is not None:
            with contextlib.suppress(EtlError):
                self._keeping.complete_up_to(table_id, move)
                reach(COMPLETE_TOLD)

    def due(self, statuses: Sequence[TableStatus]) -> list[tuple[TableStatus, TableState, TableUpdate]]:
        """The stopped tables whose changes were kept and that are tried again now, or copied again.

        At the first call, when a stream starts, all are tried but those that wait for a person. Raises TransientError.
        """
        kept = [status for status in statuses if _keeps(status)]
        tried = [status for status in statuses if _is_tried(status)]
        at_start, self._is_start = self._is_start, False
        is_weighed = bool(kept or tried) and time.monotonic() >= self._next_weighing
        if is_weighed:
            self._next_weighing = time.monotonic() + _WEIGH_EVERY
        now = datetime.now(UTC)
        moves = []
        for status in kept:
            if is_weighed and self._weighs_too_much(status):
                moves.append((status, TableState.INIT, _copied_again(status)))
            elif status.waits_for is not None and (not at_start or self._still_waits(status)):
                continue  # policies change with a start alone
            elif at_start or status.retry_at is None or status.retry_at <= now:
                update = TableUpdate(
                    snapshot_lsn=status.snapshot_lsn,
                    sync_slot=status.sync_slot,
                    rows_copied=status.rows_copied,
                    attempts=status.attempts,
                )
                moves.append((status, TableState.FINISHED_COPY, update))
        # Slots go after the state: a stream that was replaced decides nothing, and drops nothing.
        lost = [status for status in tried if is_weighed and self._weighs_too_much(status)]
        return moves + [(status, TableState.INIT, _copied_again(status)) for status in lost]

    def _keep(self, status: TableStatus, error: EtlError) -> tuple[str, Lsn] | None:
        """The slot that keeps the table's changes, and the position up to which the table is known to be complete.

        A slot that is made and then of no use is dropped by the hand-over, which finds it by its record.
        """
        if isinstance(error, (CopyNeeded, TableAbsent, SourceChanged)) or not self._keeping.budget:
            return None
        if status.state is TableState.FINISHED_COPY and status.sync_slot is not None and status.snapshot_lsn:
            return status.sync_slot, status.snapshot_lsn
        watermark = self._active.watermarks().get(status.table_id)
        if status.state is not TableState.READY or watermark is None or not isinstance(error, TableError):
            return None
        others = [other for other in self._store.tables() if other.table_id != status.table_id and _keeps(other)]
        if len(others) >= _MOST_KEPT:
            return None
        kept = self._keeping.keep(status.table_id)
        if kept is None:
            return None
        progress = self._store.progress()
        if progress is None or kept.confirmed_lsn > progress.flushed_lsn:
            # Cannot be, as what is confirmed was stored before; were it so, changes could be missing in between.
            return None
        self._to_complete.pop(status.table_id, None)
        if watermark < kept.confirmed_lsn:
            self._to_complete[status.table_id] = WatermarkMove(watermark, kept.confirmed_lsn)
        return kept.slot, watermark

    def _weighs_too_much(self, status: TableStatus) -> bool:
        size = None if status.sync_slot is None else self._keeping.kept_wal(status.sync_slot)
        if size is not None and size <= self._keeping.budget:
            return False
        what = "its slot is lost" if size is None else f"it keeps {size:,} bytes of WAL, more than batch.kept_wal"
        _log.warning("%s is copied again: %s", status.name, what)
        return True


def _copied_again(status: TableStatus) -> TableUpdate:
    return TableUpdate(error=f"{status.name} is copied again: {_NOT_KEPT}", attempts=status.attempts)


def _is_tried(status: TableStatus) -> bool:
    """Whether the table goes on from what was kept for it, and has not caught up yet."""
    return status.state is TableState.FINISHED_COPY and status.attempts > 0 and status.sync_slot is not None


def _keeps(status: TableStatus) -> bool:
    return status.state is TableState.ERRORED and status.sync_slot is not None
