"""What the sensor's page says of a stream beyond which run it is: how far behind, and how long its slot lasts."""

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_dagster.verdicts import StreamReading

if TYPE_CHECKING:
    from etl_core.source.slot import SlotStatus
    from etl_dagster.resources import PostgresReplicationResource

REASON_TAG = "etl/reason"
"""On runs that the sensor starts: why. A tick that requests runs has no text of its own in Dagster."""


def stream_text(replication: "PostgresReplicationResource", timeout: int) -> str:
    """To be put behind a tick's reason: `; 1.2 KiB and 0.4 s behind; …`.

    Empty where the source or the state store cannot be asked; the source is given `timeout` seconds to connect and to
    answer.
    """
    from etl_core.identifiers import main_slot_name
    from etl_core.source.server import average_wal_rate, current_lsn
    from etl_core.source.slot import slot_status, wal_limit

    try:
        with (
            contextlib.closing(replication.state.open(replication.name)) as store,
            replication.connect("sensor_text", timeout=timeout) as connection,
        ):
            end_lsn, slot = current_lsn(connection), slot_status(connection, main_slot_name(replication.name))
            reading = StreamReading(datetime.now(UTC), end_lsn, slot, store.progress())
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
