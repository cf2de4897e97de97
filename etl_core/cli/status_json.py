"""`etl status --json`: its keys, which `docs/configuration.md` promises to keep.

LSNs are text as PostgreSQL prints them, times are ISO 8601 in UTC, sizes bytes. What is not known is null.
"""

from __future__ import annotations

from datetime import UTC, datetime

from etl_core.config import PipelineConfig
from etl_core.lsn import Lsn
from etl_core.replication.health import judge
from etl_core.replication.status import PipelineStatus, lag_seconds, seconds_to_limit
from etl_core.source.slot import SlotStatus
from etl_core.source.transport import Transport
from etl_core.state.store import TableStatus
from etl_core.write_mode import WriteMode


def status_object(config: PipelineConfig, known: PipelineStatus, now: datetime) -> dict[str, object]:
    """The object that is printed."""
    verdict = judge(known)
    return {
        "pipeline": config.pipeline,
        "health": verdict.health,
        "reasons": list(verdict.reasons),
        "source": {
            "reachable": known.source_error is None,
            "error": known.source_error,
            "transport": None if known.transport is None else _transport(known.transport),
            "unsafe": list(known.unsafe),
        },
        "destination": {"type": config.destination.type, "error": known.destination_error},
        "stream": _stream(known, now),
        "slot": None if known.slot is None else _slot(known.slot, known.wal_rate),
        "other_slots": [_slot(slot, known.wal_rate) for slot in known.slots if slot != known.slot],
        "tables": [_table(table, known, config.write_mode_of(table.name)) for table in known.tables],
    }


def _stream(known: PipelineStatus, now: datetime) -> dict[str, object] | None:
    progress = known.progress
    if progress is None:
        return None
    return {
        "active": None if known.slot is None else known.slot.active,
        "flushed_lsn": str(progress.flushed_lsn),
        "commit_time": _time(progress.commit_time),
        "lag_seconds": lag_seconds(known.progress, known.slot, now),
        "rows": progress.rows,
        "rows_per_second": progress.rows_per_second,
        "updated_at": _time(progress.updated_at),
        "error": known.stream_error and known.stream_error.error,
        "hint": known.stream_error and known.stream_error.hint,
        "held_by": known.held_by,
    }


def _transport(transport: Transport) -> dict[str, object]:
    return {
        "kind": transport.kind,
        "tls_version": transport.tls_version,
        "cipher": transport.cipher,
        "sslmode": transport.sslmode,
    }


def _slot(slot: SlotStatus, wal_rate: float | None) -> dict[str, object]:
    return {
        "name": slot.name,
        "active": slot.active,
        "active_pid": slot.active_pid,
        "wal_status": slot.wal_status,
        "invalidation_reason": slot.invalidation_reason,
        "restart_lsn": _lsn(slot.restart_lsn),
        "confirmed_flush_lsn": _lsn(slot.confirmed_flush_lsn),
        "bytes_behind": slot.bytes_behind,
        "bytes_kept": slot.bytes_kept,
        "bytes_to_wal_limit": slot.safe_wal_size,
        "seconds_to_wal_limit": seconds_to_limit(slot, wal_rate),
    }


def _table(table: TableStatus, known: PipelineStatus, write_mode: WriteMode) -> dict[str, object]:
    return {
        "name": str(table.name),
        "state": table.state.name.lower(),
        "write_mode": write_mode,
        "watermark_lsn": _lsn(known.watermarks.get(table.table_id)),
        "snapshot_lsn": _lsn(table.snapshot_lsn),
        "rows_copied": table.rows_copied,
        "ignored": list(known.ignored.get(table.table_id, ())),
        "waits_for": table.waits_for,
        "waits_since": None if table.waits_for is None else _time(table.updated_at),
        "error": table.error,
        "hint": table.hint,
        "attempts": table.attempts,
        "retry_at": _time(table.retry_at),
        "updated_at": _time(table.updated_at),
    }


def _lsn(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")
