"""What a check concludes from what was read: decided here without a connection, a clock or a run.

Every verdict is about one table or one slot; its description is one sentence for the person on call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.state.table_state import TableState
from etl_dagster.hints import in_dagster

if TYPE_CHECKING:
    from etl_core.replication.compare import Comparison
    from etl_core.schema.table import TableSchema
    from etl_core.source.slot import SlotStatus
    from etl_core.state.store import ReplicationProgress, TableStatus

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
_LOW_SHARE = 0.2
"""Of the WAL limit: with less of it left, somebody should look."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`severity` counts when it is not passed. `numbers` are metadata; those that are numbers become plots."""

    passed: bool
    description: str
    severity: dg.AssetCheckSeverity = _ERROR
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)

    def evaluation(self, key: dg.AssetKey, check: str) -> dg.AssetCheckEvaluation:
        """The verdict as a run reports it, of the check of this name on the asset `key`."""
        return dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=check,
            passed=self.passed,
            severity=self.severity,
            description=self.description,
            metadata=dict(self.numbers),
        )


@dataclass(frozen=True, slots=True)
class StreamReading:
    """How far the stream is. `end_lsn`, the end of the source's WAL, was read before `progress` and `at` after it."""

    at: datetime
    end_lsn: Lsn
    slot: "SlotStatus | None"
    progress: "ReplicationProgress | None"

    @property
    def bytes_behind(self) -> int | None:
        """WAL that is not in the destination, ours or not; None if the stream has not begun."""
        return None if self.progress is None else max(0, self.end_lsn - self.progress.flushed_lsn)

    @property
    def lag_seconds(self) -> float | None:
        """The longest time for which the source may have had something the destination has not.

        0 when everything in the WAL is there: a quiet source has no lag. Else what the last batch was late, and the
        time since. None if the stream has not begun.
        """
        if self.progress is None or self.progress.updated_at is None:
            return None
        if not self.bytes_behind:
            return 0.0
        return (self.progress.lag_seconds or 0.0) + max(0.0, (self.at - self.progress.updated_at).total_seconds())


@dataclass(frozen=True, slots=True)
class SlotReading:
    """The slot, and how fast the server writes WAL (bytes per second). `limit` in bytes, None if there is none."""

    name: str
    slot: "SlotStatus | None"
    limit: int | None
    rate: float


def judge_failure(error: EtlError) -> Verdict:
    """What could not be looked at has not passed."""
    return Verdict(False, f"{error}; {in_dagster(error.hint)}" if error.hint else str(error))


def judge_state(table: TableName, status: "TableStatus | None") -> Verdict | None:
    """Why there is nothing to look at; None for a table that is streaming."""
    from etl_core.cli.texts import STATE_WORDS

    if status is None:
        return Verdict(False, f"{table} has not been replicated yet; materialise it", _WARN)
    if status.state is TableState.READY:
        return None
    sentence = f"{table} is {STATE_WORDS[status.state]}"
    details = "; ".join(" ".join(text.split()) for text in (status.error, in_dagster(status.hint or "")) if text)
    return Verdict(
        False,
        f"{sentence}: {details}" if details else sentence,
        _ERROR if status.state is TableState.ERRORED else _WARN,
        {"etl/state": status.state.name},
    )


def judge_lag(table: TableName, reading: StreamReading, max_lag: float) -> Verdict:
    """The lag of a table that is streaming against `max_lag` seconds."""
    from etl_core.cli.texts import duration

    slot = reading.slot
    lag, behind = reading.lag_seconds, reading.bytes_behind
    if slot is None or slot.is_lost:
        gone = "does not exist" if slot is None else "is lost"
        return Verdict(False, f"no changes reach {table}: its replication slot {gone}; see slot_health")
    if lag is None or behind is None:
        return Verdict(False, f"the stream of {table} has not begun; start it")
    numbers = {"etl/lag_seconds": round(lag, 3), "etl/bytes_behind": behind}
    if not behind:
        return Verdict(True, f"{table} has all the source has", numbers=numbers)
    late = f"{table} is at most {duration(lag)} behind"
    if lag <= max_lag:
        return Verdict(True, late, numbers=numbers)
    why = "the stream runs but does not keep up" if slot.active else "nobody streams: start the stream"
    return Verdict(False, f"{late}, more than {duration(max_lag)}; {why}", numbers=numbers)


def judge_no_slot(name: str) -> Verdict:
    """Before the first initial sync."""
    return Verdict(False, f"nothing has been replicated yet, so there is no replication slot {name}", _WARN)


def judge_slot(reading: SlotReading) -> Verdict:
    """Whether the WAL the slot needs is safe, and for how long."""
    slot, name = reading.slot, reading.name
    if slot is None:
        return Verdict(
            False, f"replication slot {name} does not exist, so changes are not kept; remove the state, copy all again"
        )
    numbers = _slot_numbers(slot, reading)
    if slot.is_lost:
        why = slot.invalidation_reason or "its WAL was removed"
        return Verdict(
            False,
            f"replication slot {name} is lost ({why}): changes are missing; drop it and copy all tables again",
            numbers=numbers,
        )
    if slot.wal_status == "unreserved":
        return Verdict(
            False,
            f"replication slot {name} is about to lose WAL it needs, at the next checkpoint; run the stream now",
            numbers=numbers,
        )
    return _judge_headroom(slot, reading, numbers)


def _judge_headroom(slot: "SlotStatus", reading: SlotReading, numbers: Mapping[str, float | int | str]) -> Verdict:
    from etl_core.cli.texts import duration, size

    state = f"replication slot {reading.name} is {slot.wal_status}, {size(slot.bytes_behind or 0)} behind"
    if not reading.limit or slot.safe_wal_size is None:
        note = "WAL is kept without a limit, so that a stream that stands still fills the server's disk"
        return Verdict(True, f"{state}; {note} (max_slot_wal_keep_size)", numbers=numbers)
    left = f"{size(slot.safe_wal_size)} of WAL before the limit of {size(reading.limit)}"
    lasts = f", which lasts {duration(slot.safe_wal_size / reading.rate)} at the present rate" if reading.rate else ""
    if slot.safe_wal_size < reading.limit * _LOW_SHARE:
        advice = "let the stream catch up, or raise max_slot_wal_keep_size"
        return Verdict(False, f"{state}, only {left}{lasts}; {advice}", _WARN, numbers)
    return Verdict(True, f"{state}, {left}{lasts}", numbers=numbers)


def _slot_numbers(slot: "SlotStatus", reading: SlotReading) -> dict[str, float | int | str]:
    numbers: dict[str, float | int | str] = {
        "etl/wal_status": slot.wal_status or "unknown",
        "etl/wal_bytes_per_second": round(reading.rate, 1),
    }
    if slot.bytes_behind is not None:
        numbers["etl/bytes_behind"] = slot.bytes_behind
    if slot.safe_wal_size is not None:
        numbers["etl/bytes_to_wal_limit"] = slot.safe_wal_size
        if reading.rate:
            numbers["etl/seconds_to_wal_limit"] = round(max(0, slot.safe_wal_size) / reading.rate, 1)
    return numbers


def judge_schema(
    table: TableName, stored: "TableSchema | None", source: "TableSchema | None", *, ignores: bool = False
) -> Verdict:
    """The columns that are published now against those the destination was last brought to.

    `ignores`: changes of the table's columns are ignored, where they can be.
    """
    if source is None:
        return Verdict(False, f"{table} is no longer published, so that its changes do not arrive; publish it again")
    if stored is None:
        return Verdict(False, f"{table} has no stored schema; materialise it again")
    from etl_core.cli.texts import told_ignored
    from etl_core.schema.alterations import alterations
    from etl_core.schema.ignored import ignored, ignoring, not_ignorable

    if ignores and not not_ignorable(stored, source):
        changes = ignored(ignoring(stored, source))
        if changes:
            return Verdict(
                True, f"{table} keeps its columns; {told_ignored(changes)}", numbers={"etl/ignored": ", ".join(changes)}
            )
    steps = [str(step) for step in alterations(stored, source)]
    differences = [*steps, *_changed_nullability(stored, source)]
    numbers = {"etl/columns": len(source.columns), "etl/column_differences": len(differences)}
    if not differences:
        return Verdict(True, f"{table} has the source's {len(source.columns)} columns", numbers=numbers)
    advice = "it follows with the table's next changed row, by a new copy of the table if need be"
    return Verdict(
        False,
        f"{table} differs from the source: {'; '.join(differences)}; {advice}",
        _ERROR if steps else _WARN,
        numbers,
    )


def _changed_nullability(stored: "TableSchema", source: "TableSchema") -> list[str]:
    before = {column.name: column.nullable for column in stored.columns}
    return [
        f"column {column.name} is {'nullable' if column.nullable else 'NOT NULL'} now"
        for column in source.columns
        if before.get(column.name, column.nullable) != column.nullable
    ]


def judge_comparison(comparison: "Comparison") -> Verdict:
    """The outcome of comparing all rows of a table at one LSN."""
    from etl_core.cli.texts import plural

    table = comparison.table
    if not comparison.content:
        return Verdict(False, f"{table} was {comparison.problem or 'not compared'}", _WARN)
    numbers: dict[str, float | int | str] = {
        "etl/source_rows": comparison.source_rows,
        "etl/destination_rows": comparison.destination_rows,
        "etl/rows_missing": comparison.missing,
        "etl/rows_extra": comparison.extra,
        "etl/rows_changed": comparison.changed,
        "etl/lsn": str(comparison.lsn),
        "etl/content": comparison.content,
    }
    if comparison.is_equal:
        return Verdict(
            True,
            f"{table} equals the source at {comparison.lsn}: {plural(comparison.source_rows, 'row')}",
            _ERROR,
            numbers,
        )
    kinds = {"missing": comparison.missing, "extra": comparison.extra, "changed": comparison.changed}
    counts = ", ".join(f"{rows:,} {kind}" for kind, rows in kinds.items() if rows)
    notes = [f"{table} differs from the source at {comparison.lsn}: {counts or 'content'}", *_keys(comparison)]
    notes += [comparison.problem] if comparison.problem else []
    return Verdict(False, "; ".join([*notes, "materialise it again"]), _ERROR, numbers)


def _keys(comparison: "Comparison") -> Sequence[str]:
    shown = [keys.first if keys.first == keys.last else f"{keys.first} … {keys.last}" for keys in comparison.ranges]
    return [f"key {', '.join(shown)}"] if shown else []
