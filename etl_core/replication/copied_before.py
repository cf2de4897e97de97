"""Whether the destination has what the state says was copied: another one has not, such as that of a new `destination`.

A copy is stored as FINISHED_COPY after it was published, so states are read first, and the positions after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from etl_core.destination.protocol import Positions
from etl_core.errors import DestinationError
from etl_core.lsn import ZERO
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import COPIED, TableState


def copied_tables(store: StateStore) -> list[TableStatus]:
    """The tables that the destination has, as the state says, also one that stopped and goes on from kept changes.

    Asked for before the positions that they are compared with.
    """
    return [status for status in store.tables() if status.state in COPIED or _is_kept(status)]


def _is_kept(status: TableStatus) -> bool:
    return status.state is TableState.ERRORED and status.sync_slot is not None


def is_there(status: TableStatus, positions: Positions) -> bool:
    """Whether the destination has the table as of its copy, or of later."""
    watermark = positions.tables.get(status.table_id)
    return watermark is not None and watermark >= (status.snapshot_lsn or ZERO)


def check_not_another(copied: Sequence[TableStatus], positions: Positions, pipeline: str) -> None:
    """Raises DestinationError for a destination that has nothing of the pipeline; no state is changed by it.

    One that has something of it, such as an older one, is the matter of each table.
    """
    if not copied or positions.stream is not None or any(is_there(status, positions) for status in copied):
        return
    names = _some(str(status.name) for status in copied)
    raise DestinationError(
        f"the destination has nothing of pipeline {pipeline}, whose tables were copied before ({names}); nothing was"
        " changed",
        hint="correct the destination in the configuration; or have every table copied into this one: etl sync --all",
    )


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
