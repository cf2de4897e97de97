"""What an initial copy that finished says of itself, and which of them counts for nothing."""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState

_AGAIN_ALONE = "it changed while it was copied together with other tables, and is copied again alone"


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished initial copy. `seconds` includes waiting for the snapshot."""

    name: TableName
    rows: int
    seconds: float
    snapshot_lsn: Lsn


def why_again_alone(table: TableName) -> str:
    """Why a table is set back that was copied in a group, and that the stream has passed since."""
    return f"{table}: {_AGAIN_ALONE}"


def is_again_alone(status: TableStatus) -> bool:
    """Whether the table was set back for that reason, and its next copy has not begun."""
    return status.state is TableState.INIT and (status.error or "").endswith(_AGAIN_ALONE)
