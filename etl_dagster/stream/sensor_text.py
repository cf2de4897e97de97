"""What the sensor's page says of a stream beyond which run it is: how far behind, and how long its slot lasts."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_dagster.reports.verdicts import StreamReading

if TYPE_CHECKING:
    from etl_core.source.connection import Connection
    from etl_core.source.slot import SlotStatus
    from etl_core.state.store import StateStore

REASON_TAG = "etl/reason"
"""On runs that the sensor starts: why. A tick that requests runs has no text of its own in Dagster."""


def stream_text(connection: "Connection", slot: "SlotStatus | None", store: "StateStore") -> str:
    """To be put behind a tick's reason: `; 1.2 KiB and 0.4 s behind; …`. Empty if source or store cannot be asked."""
    from etl_core.source.server import average_wal_rate, current_lsn
    from etl_core.source.slot import wal_limit

    try:
        reading = StreamReading(datetime.now(UTC), current_lsn(connection), slot, store.progress())
        left = None if slot is None else slot_text(slot, wal_limit(connection), average_wal_rate(connection))
    except EtlError:
        return ""
    return "".join(f"; {part}" for part in (lag_text(reading), left) if part)


def lag_text(reading: StreamReading) -> str | None:
    """How far behind the stream is; None before it has begun."""
    from etl_core.cli.texts import duration, size

    lag, behind = reading.lag_seconds, reading.bytes_behind
    if lag is None or behind is None:
        return None
    return f"{size(behind)} and at most {duration(lag)} behind" if behind else "nothing is behind"


def slot_text(slot: "SlotStatus", limit: int | None, rate: float | None) -> str:
    """How much WAL the server still keeps for the slot, and how long that lasts at `rate` bytes per second."""
    from etl_core.cli.texts import duration, size

    if slot.is_lost:
        return f"its replication slot {slot.name} is lost"
    if limit is None or slot.safe_wal_size is None:
        return "its slot keeps WAL without a limit (max_slot_wal_keep_size)"
    left = max(0, slot.safe_wal_size)
    lasts = f", {duration(left / rate)} at the server's average rate" if rate else ""
    return f"its slot may fall behind by {size(left)} more{lasts}"
