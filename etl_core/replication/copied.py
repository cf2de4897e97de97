"""What an initial copy that finished says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.identifiers import TableName
from etl_core.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished initial copy. `seconds` includes waiting for the snapshot."""

    name: TableName
    rows: int
    seconds: float
    snapshot_lsn: Lsn
