"""Tells of tables' states while no stream run does: what the `etl` command did meanwhile, such as a pause or a resync.

The state store is asked at each tick of the sensor; what Dagster was told already, by whomever, is what its event log
has. The sensor's cursor has the version of each table's row that was looked at last: a hint, which saves asking the
event log about each table again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.reports.table_states import TABLE_STATE, judge_table_state, last_told
from etl_dagster.stream.supervisor import Decision, StreamRun

if TYPE_CHECKING:
    from etl_core.state.store import StateStore, TableStatus

_IN_BETWEEN = frozenset({"DATA_SYNC", "FINISHED_COPY", "SYNC_DONE"})
"""Steps of a copy: whoever takes them tells how it ends."""


def is_told_by_a_run(decision: Decision, runs: Sequence[StreamRun]) -> bool:
    """Whether a stream run is there, or is being started, that tells of the tables' states within seconds."""
    return decision.run_key is not None or any(not run.is_dead and not run.is_queued for run in runs)


def state_events(
    statuses: "Sequence[TableStatus]",
    store: "StateStore",
    keys: Mapping[TableName, dg.AssetKey],
    instance: dg.DagsterInstance,
    pipeline: str,
    cursor: str | None,
) -> tuple[list[dg.AssetCheckEvaluation], str]:
    """A result of `table_state` for each table whose state Dagster does not know, and the cursor of the next tick.

    `keys` are the tables that have an asset. Nothing is reported here. Raises EtlError.
    """
    seen = _seen(cursor)
    changed = [status for status in statuses if seen.get(str(status.table_id)) != status.version]
    events = [*_events([status for status in changed if status.name in keys], store, keys, instance, pipeline)]
    return events, json.dumps({str(status.table_id): status.version for status in statuses}, separators=(",", ":"))


def _seen(cursor: str | None) -> Mapping[str, int]:
    """The versions looked at; none if somebody edited the cursor, which must not keep a stream from being started."""
    try:
        seen = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return seen if isinstance(seen, dict) else {}


def _events(
    changed: "Sequence[TableStatus]",
    store: "StateStore",
    keys: Mapping[TableName, dg.AssetKey],
    instance: dg.DagsterInstance,
    pipeline: str,
) -> Iterator[dg.AssetCheckEvaluation]:
    for status in changed:
        if status.state.name in _IN_BETWEEN:
            continue
        key = keys[status.name]
        verdict = judge_table_state(status.name, status, store.history(status.table_id), pipeline)
        event = verdict.evaluation(key, TABLE_STATE)
        if event.description != last_told(instance, key):
            yield event
