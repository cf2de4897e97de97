"""`etl status`: what is known of a pipeline, as text or as JSON; before the first run and without the source, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE, FAILED, UNKNOWN
from etl_core.cli.failures import say
from etl_core.cli.status_json import status_object
from etl_core.cli.texts import (
    NOTHING,
    STATE_WORDS,
    columns,
    duration,
    number,
    put,
    size,
    told_ignored,
    waiting_since,
)
from etl_core.control import PipelineControl
from etl_core.errors import TransientError
from etl_core.identifiers import TableId, TableName
from etl_core.replication.health import Health, judge
from etl_core.replication.status import PipelineStatus, lag_seconds, seconds_to_limit
from etl_core.source.slot import SlotStatus
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState
from etl_core.write_mode import WriteMode

_SHOWN = 5
_EXIT = {Health.HEALTHY: DONE, Health.NEEDS_YOU: FAILED, Health.UNKNOWN: UNKNOWN}
_MODES = {
    WriteMode.SOFT_DELETE: "deleted rows stay, with _etl_deleted_at",
    WriteMode.APPEND: "a row for every change, with _etl_op",
    WriteMode.HISTORY: "a row for every change; the views …_history and …_current have versions and the rows of now",
}
"""What is told of a table that is no mirror."""


def status(pipeline: PipelineControl, arguments: Arguments) -> int:
    if arguments.schema is not None:
        from etl_core.cli.schema_status import schema_status  # types need pyarrow, which takes long to load

        return schema_status(pipeline, arguments.schema, as_json=arguments.json)
    try:
        known = pipeline.status()
    except TransientError as error:  # of the state store: what it holds is not known, nor whether it needs a person
        say(str(error), error.hint)
        return UNKNOWN
    now = datetime.now(UTC)
    exit_status = _EXIT[judge(known).health]
    if arguments.json:
        put(json.dumps(status_object(pipeline.config, known, now), indent=2, ensure_ascii=False))
        return exit_status
    put(f"pipeline     {pipeline.config.pipeline} → {pipeline.config.destination.type}")
    for line in status_lines(known, now, pipeline.config.write_mode_of):
        put(line)
    return exit_status


def status_lines(
    known: PipelineStatus, now: datetime, write_mode: Callable[[TableName], WriteMode] = lambda _: WriteMode.MIRROR
) -> list[str]:
    """The status as text, without the name of the pipeline."""
    source = known.source_error or known.transport
    lines = [f"source       {source}"] if source else []
    if known.destination_error:
        lines.append(f"destination  {known.destination_error}")
    if not known.tables and known.progress is None:
        return [*lines, "nothing has been replicated yet: etl run"]
    lines.append(f"stream       {_stream(known, now)}")
    if known.stream_error is not None:
        lines.append(f"    ended at {known.stream_error.at.astimezone():%H:%M:%S}: {known.stream_error.error}")
        if known.stream_error.hint:
            lines.append(f"    → {known.stream_error.hint}")
    if known.held_by is not None:
        lines.append(f"held         by {known.held_by}: changes are written when it has ended")
    if known.slot is not None:
        lines.append(f"slot         {_slot(known.slot, known.wal_rate)}")
    elif not known.source_error:
        lines.append("slot         does not exist: changes are not kept for this pipeline")
    lines += [f"other slot   {_slot(slot, known.wal_rate)}" for slot in known.slots if slot != known.slot]
    lines += [f"source       {sentence}" for sentence in known.unsafe[:_SHOWN]]
    if len(known.unsafe) > _SHOWN:
        lines.append(f"source       and {len(known.unsafe) - _SHOWN} more: etl doctor")
    return [*lines, "", *_tables(known, write_mode)]


def _stream(known: PipelineStatus, now: datetime) -> str:
    progress = known.progress
    if progress is None:
        return "has not begun: etl stream"
    parts = [
        f"replicated up to {progress.flushed_lsn}",
        _in_step(known, lag_seconds(known.progress, known.slot, now) or 0.0),
        f"{progress.rows:,} row changes" if progress.rows else "",
        f"{progress.rows_per_second:,.0f} rows/s lately" if progress.rows_per_second else "",
    ]
    return ", ".join(part for part in parts if part)


def _in_step(known: PipelineStatus, lag: float) -> str:
    if known.slot is not None and known.slot.active:
        return f"lag {duration(lag)}"
    return f"{'nobody streams, ' if known.slot is not None else ''}in step {duration(lag)} ago"


def _slot(slot: SlotStatus, wal_rate: float | None) -> str:
    reader = f"read by server process {slot.active_pid}" if slot.active else "nobody reads it"
    parts = [
        f"{slot.name}: {slot.wal_status or 'unknown'}",
        f"invalidated: {slot.invalidation_reason}" if slot.invalidation_reason else "",
        reader,
        f"confirmed {slot.confirmed_flush_lsn}" if slot.confirmed_flush_lsn is not None else "",
        f"{size(slot.bytes_behind)} behind" if slot.bytes_behind is not None else "",
        f"{size(slot.bytes_kept)} of WAL kept" if slot.bytes_kept is not None else "",
        _to_limit(slot, wal_rate),
    ]
    return ", ".join(part for part in parts if part)


def _to_limit(slot: SlotStatus, wal_rate: float | None) -> str:
    if slot.safe_wal_size is None:
        return "no WAL limit"
    seconds = seconds_to_limit(slot, wal_rate)
    lasts = "" if seconds is None else f": {duration(seconds)} at the server's average rate"
    return f"{size(slot.safe_wal_size)} to the WAL limit{lasts}"


def _ahead(known: PipelineStatus) -> set[TableId]:
    """Streamed tables that readers see further than the others: until the stream has passed their watermark."""
    if known.progress is None:
        return set()
    ready = {table.table_id for table in known.tables if table.state is TableState.READY}
    return {table for table, mark in known.watermarks.items() if table in ready and mark > known.progress.flushed_lsn}


def _tables(known: PipelineStatus, write_mode: Callable[[TableName], WriteMode]) -> list[str]:
    tables, watermarks, ahead = known.tables, known.watermarks, _ahead(known)
    rows = [("TABLE", "STATE", "WATERMARK", "ROWS COPIED")]
    for table in tables:
        watermark = watermarks.get(table.table_id)
        rows.append(
            (
                str(table.name),
                STATE_WORDS[table.state] if table.waits_for is None else "waits",
                NOTHING if watermark is None else str(watermark),
                number(table.rows_copied),
            )
        )
    header, *lines = columns(rows)
    shown = [header]
    for line, table in zip(lines, tables, strict=True):
        shown.append(line)
        mode = write_mode(table.name)
        if mode in _MODES:
            shown.append(f"    write_mode {mode}: {_MODES[mode]}")
        if table.table_id in ahead:
            mark = watermarks[table.table_id]
            shown.append(f"    just copied: it is ahead of the other tables until the stream has passed {mark}")
        if known.ignored.get(table.table_id):
            shown.append(f"    {told_ignored(known.ignored[table.table_id])}")
        if table.waits_for is not None:
            shown.append(f"    {waiting_since(table)}")
        if table.error:
            shown.append(f"    {' '.join(table.error.splitlines())}{_tries(table)}")
        if table.hint:
            shown.append(f"    → {' '.join(table.hint.splitlines())}")
    return shown


def _tries(table: TableStatus) -> str:
    told = f"tried {table.attempts} times" if table.attempts > 1 else ""
    again = f"again at {table.retry_at.astimezone():%H:%M:%S}" if table.retry_at is not None else ""
    return f" ({', '.join(part for part in (told, again) if part)})" if told or again else ""
