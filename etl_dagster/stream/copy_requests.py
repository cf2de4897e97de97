"""Which tables the sensor has copied again, and the one run that it asks for all of them.

A run's asset selection says which tables it is for, and its tag since when: the latest moment at which one of them was
set back. A table that was set back after that is to be copied once more, though a run that has it may be under way.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.stream.runs import in_flight_and_ended, may_start_again, silent_runs
from etl_dagster.stream.sensor_text import REASON_TAG

if TYPE_CHECKING:
    from etl_core.state.store import StateStore, TableStatus

_SETTLED = timedelta(seconds=30)
"""A table that was set back is left alone for so long: the person or run that did it may be about to copy it."""
_TAG = "etl/set_back_until"
_PAUSE = 60.0
"""Seconds from the end of a run that did not copy such a table to the next one; twice as many after each further."""
_LONGEST_PAUSE = 3600.0
_SILENCE = 600.0
"""Seconds without an event after which such a run is not counted on: after a kill -9 Dagster says for ever that it is
in flight. One that copies or waits logs every two seconds to half a minute, but not while a large table is published.
Should it live, nothing is copied twice: the engine lets one process copy a table, and the other waits for that."""
_SHOWN = 3


def to_be_copied(statuses: "Sequence[TableStatus]", store: "StateStore") -> "list[TableStatus]":
    """Those set back some time ago, by the engine or a person, or failed with a time to try again that has come."""
    from etl_core.state.table_state import TableState

    now = datetime.now(UTC)
    # Not one that was never asked for. One that failed or was paused before its first copy was set back by a person.
    asked_for = (TableState.FINISHED_COPY, TableState.ERRORED, TableState.PAUSED)
    settled = {status.table_id for status in statuses if _is_settled(status, now)}
    settled = settled and settled & store.tables_once_in(asked_for)
    return [status for status in statuses if status.table_id in settled or _is_to_be_tried(status, now)]


def copy_request(
    instance: dg.DagsterInstance,
    wanted: "Sequence[TableStatus]",
    keys: Mapping[TableName, dg.AssetKey],
    job: str,
    pipeline: str,
) -> dg.RunRequest | None:
    """A run of `job` for those of `wanted` that no run is about to copy, or has just failed to; None if there is none.

    Each table once for each time it was set back, and again after a run for it that ended, or fell silent, without
    moving it.
    """
    earlier = in_flight_and_ended(instance, job) if wanted else []
    before = {status.name: [run for run in earlier if _was_for(run, status, keys[status.name])] for status in wanted}
    gone = silent_runs(instance, earlier, _SILENCE)
    due = [status for status in wanted if may_start_again(before[status.name], _PAUSE, _LONGEST_PAUSE, gone=gone)]
    if not due:
        return None
    # Dagster starts nothing under a key that it has had: the newest run tells this request from any before that.
    newest = earlier[0].dagster_run.run_id if earlier else ""
    lives = [newest, *sorted(f"{status.table_id}:{status.version}" for status in due)]
    names = [str(status.name) for status in due]
    more = f" and {len(names) - _SHOWN} more tables" if len(names) > _SHOWN else ""
    return dg.RunRequest(
        run_key=f"{pipeline}:copy:{hashlib.sha256(' '.join(lives).encode()).hexdigest()[:32]}",
        job_name=job,
        asset_selection=[keys[status.name] for status in due],
        tags={
            _TAG: max(map(_moment, due)).isoformat(),
            REASON_TAG: f"{', '.join(names[:_SHOWN])}{more} to be copied again",
        },
    )


def _is_settled(status: "TableStatus", now: datetime) -> bool:
    from etl_core.state.table_state import TableState

    return status.state is TableState.INIT and status.updated_at is not None and status.updated_at <= now - _SETTLED


def _is_to_be_tried(status: "TableStatus", now: datetime) -> bool:
    from etl_core.state.table_state import TableState

    # One whose changes are kept has a slot: the stream tries it again.
    is_due = status.retry_at is not None and status.retry_at <= now
    return status.state is TableState.ERRORED and is_due and status.sync_slot is None


def _was_for(record: dg.RunRecord, status: "TableStatus", key: dg.AssetKey) -> bool:
    """Whether the sensor started the run for the table, after the table came into its present state."""
    run = record.dagster_run
    until = run.tags.get(_TAG)
    return until is not None and key in (run.asset_selection or ()) and datetime.fromisoformat(until) >= _moment(status)


def _moment(status: "TableStatus") -> datetime:
    """Since when the table is in its state; a copy changes that. By the clock of the machine that moved it."""
    return status.updated_at or datetime.min.replace(tzinfo=UTC)
