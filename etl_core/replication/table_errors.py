"""What the store is told of a table that stopped: its error, and what brings the table back.

- A table that the source no longer offers has made no attempt (`attempts` is 0): it is copied when it is back.
- One whose changes are kept has a sync slot: it is tried again at `retry_at` and goes on where it stopped.
- One with `retry_at` alone is copied again then.
- One with `waits_for` waits for a person, with or without its changes: `etl approve`, `etl resync`.
- One with none of these waits for `etl resync`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from etl_core.errors import CopyNeeded, DecisionNeeded, EtlError, TableAbsent
from etl_core.lsn import Lsn
from etl_core.state.store import TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_LONGEST = timedelta(hours=1)


def retry_time(first: timedelta, attempts: int) -> datetime:
    """When to try again after `attempts` tries have failed: the wait doubles from `first` to an hour, or is `first`."""
    doubled = first * (1 << min(max(attempts - 1, 0), 16))
    return datetime.now(UTC) + min(max(_LONGEST, first), doubled)


def failed_update(error: EtlError, attempts: int, first: timedelta) -> TableUpdate:
    """For a table of which nothing is kept. `attempts` is how many tries have failed, this one with them."""
    if isinstance(error, TableAbsent):
        return absent_update(error)
    if isinstance(error, DecisionNeeded):
        return TableUpdate(
            error=str(error), hint=error.hint, attempts=attempts, waits_for=error.waits_for, change=error.change
        )
    retry_at = None if isinstance(error, CopyNeeded) else retry_time(first, attempts)
    return TableUpdate(error=str(error), hint=error.hint, attempts=attempts, retry_at=retry_at)


def kept_update(
    status: TableStatus, error: EtlError, slot: str, lsn: Lsn, budget: int, first: timedelta
) -> TableUpdate:
    """For a table that is complete up to `lsn` and whose later changes `slot` keeps, up to `budget` bytes of WAL."""
    kept = f"its changes are kept on the source, up to {budget / 2**20:,.0f} MiB of WAL"
    attempts = status.attempts + 1
    waits = isinstance(error, DecisionNeeded)
    kept += "; beyond that the table is copied again once it is approved" if waits else "; it is tried again by itself"
    return TableUpdate(
        snapshot_lsn=lsn,
        sync_slot=slot,
        rows_copied=status.rows_copied,
        error=str(error),
        hint=f"{error.hint}; {kept}" if error.hint else kept,
        attempts=attempts,
        retry_at=None if waits else retry_time(first, attempts),
        waits_for=error.waits_for if isinstance(error, DecisionNeeded) else None,
        change=error.change if isinstance(error, DecisionNeeded) else None,
    )


def absent_update(error: TableAbsent) -> TableUpdate:
    return TableUpdate(error=str(error), hint=error.hint)


def is_absent(status: TableStatus) -> bool:
    """Whether the table stopped because the source did not offer it."""
    return status.state is TableState.ERRORED and status.attempts == 0 and status.error is not None
