"""A sensor that starts downstream assets when enough rows of the replicated tables that they read have changed.

It is a sensor of its own, not a condition: Dagster's default automation sensor evaluates only Dagster's own conditions,
none of which can count rows, and leaves out others without a word.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import dagster as dg

from etl_dagster.stream.runs import tagged_run_in_flight
from etl_dagster.stream.sensor_text import REASON_TAG

CHANGE_SENSOR_TAG = "etl/change_sensor"
"""Of the runs that the sensor starts: its name."""

_REPORTS_A_TICK = 1000
_COUNTS = ("etl/rows_inserted", "etl/rows_updated", "etl/rows_deleted")


def build_change_sensor(
    name: str,
    target: dg.AssetSelection | Sequence[dg.AssetsDefinition | dg.AssetKey | str],
    *,
    min_rows: int,
    minimum_interval_seconds: int | None = None,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Starts a run of `target` when `min_rows` row changes have arrived in the replicated tables that it reads.

    What a stream reports is counted, from the sensor's first tick on and again after each run that it starts: rows
    inserted, updated and deleted, of all tables together. A table that was copied or emptied counts as enough, as any
    row may have changed. While a run that the sensor started is under way, it goes on counting. A run that failed is
    not repeated by the sensor. `minimum_interval_seconds` is the shortest time between two runs. Raises
    dg.DagsterInvalidDefinitionError unless `min_rows` is positive.
    """
    if min_rows < 1:
        raise dg.DagsterInvalidDefinitionError(f"sensor {name}: min_rows must be at least 1, not {min_rows}")
    selection = target if isinstance(target, dg.AssetSelection) else dg.AssetSelection.assets(*target)

    @dg.sensor(
        name=name,
        target=selection,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=f"Starts its assets when {min_rows:,} rows of the replicated tables that they read have changed.",
    )
    def change_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        assert context.repository_def is not None  # noqa: S101 - Dagster gives it to every tick
        graph = context.repository_def.asset_graph
        targets = selection.resolve(graph)
        parents = {parent for key in targets for parent in graph.get(key).parent_keys} - targets
        found = _count(context.instance, parents, _read(context.cursor))
        reason = _text(found.counts)
        missing = sorted(key.to_user_string() for key in found.missing if graph.get(key).is_materializable)
        if missing:
            skip = f"waits for the first materialisation of {_few(missing)}"
        elif not found.is_replicated:
            names = _few(sorted(key.to_user_string() for key in parents)) or "nothing"
            skip = f"counts no rows: the assets read {names}, and no stream or copy has reported any of it yet"
        elif not _is_enough(found.counts, min_rows):
            skip = f"{reason}; the run starts at {min_rows:,}"
        elif running := tagged_run_in_flight(context.instance, {CHANGE_SENSOR_TAG: name}):
            skip = f"{reason}; run {running[:8]}… is under way"
        else:
            context.log.info(reason)
            handled = _written({table: replace(each, rows=0) for table, each in found.counts.items()})
            request = dg.RunRequest(
                # Should the daemon end before it has stored the cursor, the same reports start no second run.
                run_key=f"{name}:{hashlib.blake2s(handled.encode(), digest_size=8).hexdigest()}",
                tags={CHANGE_SENSOR_TAG: name, REASON_TAG: reason},
                asset_selection=sorted(targets),
            )
            return dg.SensorResult(run_requests=[request], cursor=handled)
        return dg.SensorResult(skip_reason=skip, cursor=_written(found.counts))

    return change_sensor


@dataclass(frozen=True, slots=True)
class _Counted:
    """Of one table: the last report that was read, and the rows changed up to it; None if any may have changed."""

    event: int
    rows: int | None = 0


_Counts: TypeAlias = Mapping[str, _Counted]


@dataclass(frozen=True, slots=True)
class _Found:
    counts: _Counts
    missing: Collection[dg.AssetKey]
    is_replicated: bool
    """Whether a stream or a copy of ours has reported any of the tables."""


def _count(instance: dg.DagsterInstance, parents: Collection[dg.AssetKey], before: _Counts) -> _Found:
    """Adds the reports since the last tick to what was counted `before`."""
    latest = {}
    is_replicated = False
    for record in instance.get_asset_records(list(parents)):
        event = record.asset_entry.last_materialization_record
        if event is not None and event.asset_materialization is not None:
            latest[record.asset_entry.asset_key] = event.storage_id
            is_replicated = is_replicated or "etl/lsn" in event.asset_materialization.metadata
    counts = {}
    for key in sorted(parents):
        last = latest.get(key, 0)
        counted = before.get(key.to_user_string(), _Counted(last))
        if last > counted.event:
            counted = _add_reports(instance, key, counted)
        counts[key.to_user_string()] = counted
    return _Found(counts, parents - latest.keys(), is_replicated)


def _add_reports(instance: dg.DagsterInstance, key: dg.AssetKey, counted: _Counted) -> _Counted:
    newer = dg.AssetRecordsFilter(asset_key=key, after_storage_id=counted.event)
    # What is beyond the limit comes at the next tick.
    for record in instance.fetch_materializations(newer, limit=_REPORTS_A_TICK, ascending=True).records:
        event = record.asset_materialization
        rows = 0 if event is None else _changed_rows(event)
        total = None if rows is None or counted.rows is None else counted.rows + rows
        counted = _Counted(record.storage_id, total)
    return counted


def _changed_rows(report: dg.AssetMaterialization) -> int | None:
    """None if any row may have changed; 0 for a heartbeat, and for what no stream or copy of ours has reported."""
    told = report.metadata
    brought_up_by = told.get("etl/brought_up_by")
    if "etl/truncated" in told or (brought_up_by is not None and brought_up_by.value == "copy"):
        return None
    values = [told[label].value for label in _COUNTS if label in told]
    return sum(value for value in values if isinstance(value, int))


def _is_enough(counts: _Counts, min_rows: int) -> bool:
    rows = [each.rows for each in counts.values()]
    return None in rows or sum(number for number in rows if number is not None) >= min_rows


def _text(counts: _Counts) -> str:
    anew = [table for table, each in counts.items() if each.rows is None]
    changed = {table: each.rows for table, each in counts.items() if each.rows}
    most = sorted(changed, key=changed.__getitem__, reverse=True)
    parts = [f"{_few(anew)} copied or emptied"] if anew else []
    if changed or not anew:
        detail = _few([f"{changed[table]:,} in {table}" for table in most])
        total = sum(changed.values())
        parts.append(f"{total:,} row{'' if total == 1 else 's'} changed" + (f": {detail}" if detail else ""))
    return "; ".join(parts)


def _few(names: Sequence[str]) -> str:
    """The first three of them; a dbt project may read hundreds of tables."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _read(cursor: str | None) -> _Counts:
    """What an earlier tick counted. Nothing at the first tick, and for a table that is read since a later one."""
    if not cursor:
        return {}
    return {table: _Counted(event, rows) for table, (event, rows) in json.loads(cursor).items()}


def _written(counts: _Counts) -> str:
    return json.dumps({table: [each.event, each.rows] for table, each in counts.items()})
