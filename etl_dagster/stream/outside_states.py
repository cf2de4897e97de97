"""Tells of tables' states while no stream run does: what the `etl` command did meanwhile, such as a pause or a resync.

The state store is asked at each tick of the sensor; what Dagster was told already is in its event log. The sensor's
cursor has the version of each table's row that was looked at last: a hint, which saves asking the event log again.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.reports.table_states import TABLE_STATE, judge_table_state, last_told
from etl_dagster.stream.supervisor import Decision, StreamRun

if TYPE_CHECKING:
    from etl_core.state.store import StateStore, TableStatus

_NEWS = frozenset({"ERRORED", "PAUSED"})
"""States of a table that are told though nothing was told of it before: what is well, or new, a stream tells."""
_UNSEEN = object()
_TABLES_A_TICK = 100
"""Each is two queries. Those beyond come at the next tick."""


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
    found = {status.name: status for status in statuses}
    seen = _seen(cursor)
    versions = {str(table): found[table].version if table in found else None for table in keys}
    changed = [table for table in keys if seen.get(str(table), _UNSEEN) != versions[str(table)]]
    events = []
    for table in changed[:_TABLES_A_TICK]:
        event = _event(table, keys[table], found.get(table), store, instance, pipeline)
        if event is not None:
            events.append(event)
    for table in changed[_TABLES_A_TICK:]:
        del versions[str(table)]
    return events, json.dumps(versions, separators=(",", ":"))


def _seen(cursor: str | None) -> Mapping[str, int | None]:
    """The versions looked at; none if the cursor was edited by hand, which must keep no stream from being started."""
    try:
        seen = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return seen if isinstance(seen, dict) else {}


def _event(
    table: TableName,
    key: dg.AssetKey,
    status: "TableStatus | None",
    store: "StateStore",
    instance: dg.DagsterInstance,
    pipeline: str,
) -> dg.AssetCheckEvaluation | None:
    state = None if status is None else status.state.name
    if state == "DATA_SYNC":  # for how long is not known; its end is another version
        return None
    told = last_told(instance, key)
    if told is None and state not in _NEWS:
        return None
    from etl_core.replication.ignored_changes import ignored_of

    history = [] if status is None else store.history(status.table_id)
    ignored = () if status is None else ignored_of(store, status.table_id)
    event = judge_table_state(table, status, history, pipeline, ignored).evaluation(key, TABLE_STATE)
    return None if event.description == told else event
