"""Asset checks of the replicated tables: how late, how safe the slot, the same columns, the same rows.

None is blocking, and all of them are one op: a process costs more than most checks. What cannot be looked at, because
the source or the destination is away, has not passed and says why; it raises nothing.

Dagster adds the checks of an asset to every run that materialises it, in the page and in the command line. So a costly
one leaves such runs alone: it is evaluated when a run has it without its table, that is when it was asked for.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from etl_dagster.load_checks import check_max_lag, check_replication, definition_errors
from etl_dagster.names import PIPELINE_TAG, check_job_name, check_op_name, resource_key
from etl_dagster.reports.live_checks import REPLICATION_LAG, SLOT_HEALTH
from etl_dagster.reports.table_states import TABLE_STATE, judge_table_state
from etl_dagster.reports.verdicts import (
    SlotReading,
    StreamReading,
    Verdict,
    judge_comparison,
    judge_failure,
    judge_lag,
    judge_no_slot,
    judge_schema,
    judge_slot,
    judge_state,
)
from etl_dagster.reports.waits import Waits
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

if TYPE_CHECKING:
    from etl_core.lsn import Lsn
    from etl_core.pipeline import Pipeline
    from etl_core.replication.observer import Observer
    from etl_core.source.connection import Connection
    from etl_core.state.store import TableStatus

_RATE_OVER = 1.0
"""Seconds between the two readings that give the server's rate of WAL."""
_PATIENCE = 10.0
"""Seconds a running stream is given to pass the position seen first: it stores an idle position every five."""
_POLL = 0.2
_PROGRESS_EVERY = 10.0
_UNCOPIED = (TableState.INIT, TableState.ERRORED, TableState.PAUSED)

_Subject: TypeAlias = TableName | None
"""What a check is of: a table, or with None the replication slot, of which a pipeline has one."""
_Examine = Callable[["Pipeline", Sequence[Any]], Mapping[Any, Verdict]]
"""Gives a verdict for every one of the subjects. Raises EtlError when nothing can be said of any."""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    description: str
    examine: _Examine
    is_costly: bool = False
    """Reads whole tables: not evaluated in a run that materialises them."""


def build_replication_checks(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    *,
    translator: DagsterReplicationTranslator | None = None,
    max_lag: float = 60.0,
    connections: int | None = None,
) -> list[dg.AssetChecksDefinition]:
    """`replication_lag`, `table_state`, `schema_matches`, `equals_source` of each table; `slot_health` of the slot.

    In one definition. A stream run reports the first two and `slot_health` by itself.

    The resource is to be given under `names.resource_key(replication.name)`. `max_lag` is in seconds; `connections`
    read the source at a time in `equals_source` (default: as many as copy a table).
    """
    check_replication(replication)
    with definition_errors(replication.name):
        check_max_lag(max_lag)
    translator = translator or DagsterReplicationTranslator()
    keys: dict[_Subject, dg.AssetKey] = {
        table: translator.get_asset_spec(ReplicatedTableProps(table, replication)).key for table in tables
    }
    slot: dict[_Subject, dg.AssetKey] = {None: translator.get_slot_asset_spec(replication).key}
    kinds = (
        _Kind(
            REPLICATION_LAG,
            f"The table has what the source had {max_lag:g} s ago. A quiet source has no lag.",
            lambda pipeline, wanted: _examine_lag(pipeline, wanted, max_lag),
        ),
        _Kind(
            TABLE_STATE,
            "The table streams. The stream reports it when it changes, with the error, the hint and the next try.",
            _examine_states,
        ),
        _Kind(
            SLOT_HEALTH,
            "The WAL that the replication slot needs is safe: bytes and time to the server's limit.",
            _examine_slot,
        ),
        _Kind("schema_matches", "The source's columns are those the table was brought to.", _examine_schemas),
        _Kind(
            "equals_source",
            "All rows equal the source's at one LSN; the stream is held there meanwhile, or brought there."
            " Evaluated when executed by itself, by the checks' job or by a schedule, not with a materialisation.",
            _examine_rows,
            is_costly=True,
        ),
    )
    return [_build_checks(kinds, replication.name, keys, slot, connections)] if keys else []


def build_check_job(
    replication: PostgresReplicationResource, checks: Sequence[dg.AssetChecksDefinition]
) -> Any:  # the type of what `define_asset_job` gives is not public
    """A job of all these checks, one kind after the other: `equals_source` holds the stream, which would look late."""
    return dg.define_asset_job(
        check_job_name(replication.name),
        selection=dg.AssetSelection.checks(*checks),
        executor_def=dg.in_process_executor,
        description=f"Checks the tables of {replication.name}: lag, slot, columns, rows.",
        tags={PIPELINE_TAG: replication.name},
    )


def _build_checks(
    kinds: Sequence[_Kind],
    pipeline_name: str,
    tables: Mapping[_Subject, dg.AssetKey],
    slot: Mapping[_Subject, dg.AssetKey],
    connections: int | None,
) -> dg.AssetChecksDefinition:
    resource = resource_key(pipeline_name)
    # @dg.multi_asset_check names the op's inputs and outputs after the keys, and refuses one that has to be quoted.
    inputs = {f"asset_{number}": key for number, key in enumerate([*tables.values(), *slot.values()], 1)}
    keys_of = {kind.name: slot if kind.name == SLOT_HEALTH else tables for kind in kinds}
    specs = {
        f"{kind.name}_{number}": dg.AssetCheckSpec(kind.name, asset=key, description=kind.description)
        for kind in kinds
        for number, key in enumerate(keys_of[kind.name].values(), 1)
    }

    @dg.op(
        name=check_op_name(pipeline_name),
        description=f"Evaluates the selected checks of pipeline {pipeline_name}, one kind after the other.",
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in specs},
        required_resource_keys={resource},
        tags={"kind": "postgres"},
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        replication: PostgresReplicationResource = getattr(context.resources, resource)
        materialized = _materialized(context)
        for kind in kinds:
            wanted = [
                subject
                for subject, key in keys_of[kind.name].items()
                if dg.AssetCheckKey(key, kind.name) in context.selected_asset_check_keys
            ]
            left = [table for table in wanted if kind.is_costly and tables[table] in materialized]
            if left:
                context.log.info(
                    f"{kind.name} reads whole tables, and is not evaluated in a run that materialises them:"
                    f" execute it by itself, or by job {check_job_name(pipeline_name)}"
                )
            examined = [subject for subject in wanted if subject not in left]
            for subject, verdict in _examine(kind, replication, examined, connections, context.log).items():
                yield dg.AssetCheckResult(
                    passed=verdict.passed,
                    asset_key=keys_of[kind.name][subject],
                    check_name=kind.name,
                    severity=verdict.severity,
                    description=verdict.description,
                    metadata=dict(verdict.numbers),
                )

    checks: dg.AssetChecksDefinition = dg.AssetChecksDefinition.create(
        keys_by_input_name=inputs, node_def=check, check_specs_by_output_name=specs, can_subset=True
    )
    return checks


def _materialized(context: dg.AssetCheckExecutionContext) -> set[dg.AssetKey]:
    """The assets that this run materialises, however it was launched: Dagster plans each in the run's events."""
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    events = context.instance.all_logs(context.run.run_id, of_type=planned)
    return {event.asset_key for entry in events if (event := entry.dagster_event) is not None and event.asset_key}


def _examine(
    kind: _Kind,
    replication: PostgresReplicationResource,
    subjects: Sequence[_Subject],
    connections: int | None,
    log: dg.DagsterLogManager,
) -> Mapping[_Subject, Verdict]:
    if not subjects:
        return {}
    try:
        with _open(replication, connections, log) as pipeline:
            pipeline.store.migrate()
            return kind.examine(pipeline, subjects)
    except EtlError as error:
        verdict = judge_failure(error)
        return dict.fromkeys(subjects, verdict)


def _open(replication: PostgresReplicationResource, connections: int | None, log: dg.DagsterLogManager) -> "Pipeline":
    from etl_core.pipeline import Pipeline

    config = replication.config()
    if connections is not None:
        config = dataclasses.replace(config, copy=dataclasses.replace(config.copy, connections_per_table=connections))
    return Pipeline(config, observer=logging_observer(log))


def logging_observer(log: dg.DagsterLogManager) -> "Observer":
    """Tells a step's log of a comparison: its progress, what it waits for, what it tries again."""
    from etl_core.replication.observer import Observer

    waits = Waits()

    class LoggingObserver(Observer):
        _due = 0.0

        def on_waiting(self, reason: str) -> None:
            if waits.is_news(reason):
                log.info(reason)

        def on_comparing(self, table: TableName, *, is_again: bool) -> None:
            log.info(f"{table}: " + ("differs, reading both sides again to find the rows" if is_again else "comparing"))
            self._due = time.monotonic() + _PROGRESS_EVERY

        def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + _PROGRESS_EVERY
                share = f" ({size / total_size:.0%})" if total_size else ""
                log.info(f"{table}: {rows:,} rows compared{share}")

        def on_retry(self, error: EtlError, wait: float) -> None:
            log.warning(f"{error}; tried again in {wait:.1f} s")

    return LoggingObserver()


def _statuses(pipeline: "Pipeline") -> "dict[TableName, TableStatus]":
    return {status.name: status for status in pipeline.store.tables()}


def _judge_states(pipeline: "Pipeline", tables: Sequence[TableName]) -> dict[TableName, Verdict]:
    """Verdicts of the tables that are not streaming."""
    statuses = _statuses(pipeline)
    verdicts = {table: judge_state(table, statuses.get(table)) for table in tables}
    return {table: verdict for table, verdict in verdicts.items() if verdict is not None}


def _examine_lag(pipeline: "Pipeline", tables: Sequence[TableName], max_lag: float) -> dict[TableName, Verdict]:
    verdicts = _judge_states(pipeline, tables)
    streaming = [table for table in tables if table not in verdicts]
    if streaming:
        reading = _read_stream(pipeline, max_lag)
        verdicts |= {table: judge_lag(table, reading, max_lag) for table in streaming}
    return verdicts


def _read_stream(pipeline: "Pipeline", max_lag: float) -> StreamReading:
    """Reads until the lag is known to be at most `max_lag`, or for `_PATIENCE` if somebody streams.

    After a quiet hour the last progress is an hour old, though what has come since may be a second old.
    """
    from etl_core.source.server import current_lsn
    from etl_core.source.slot import slot_status

    with pipeline.source.connect("check") as connection:
        end_lsn = current_lsn(connection)
        slot = slot_status(connection, pipeline.source.main_slot)
    deadline = time.monotonic() + _PATIENCE
    while True:
        progress = pipeline.store.progress()
        reading = StreamReading(datetime.now(UTC), end_lsn, slot, progress)
        is_late = reading.lag_seconds is not None and reading.lag_seconds > max_lag
        if not is_late or slot is None or not slot.active or time.monotonic() >= deadline:
            return reading
        pipeline.stop.wait(_POLL)


def _examine_states(pipeline: "Pipeline", tables: Sequence[TableName]) -> dict[TableName, Verdict]:
    from etl_core.replication.ignored_changes import ignored_of

    statuses, store, name = _statuses(pipeline), pipeline.store, pipeline.config.pipeline
    found = [(table, statuses.get(table)) for table in tables]
    return {
        table: judge_table_state(
            table,
            status,
            store.history(status.table_id) if status else (),
            name,
            ignored_of(store, status.table_id) if status else (),
        )
        for table, status in found
    }


def _examine_slot(pipeline: "Pipeline", _: Sequence[None]) -> dict[None, Verdict]:
    """The tables' states do not matter to it."""
    if pipeline.store.source_identity() is None:
        return {None: judge_no_slot(pipeline.source.main_slot)}
    with pipeline.source.connect("check") as connection:
        return {None: judge_slot(_read_slot(connection, pipeline))}


def _read_slot(connection: "Connection", pipeline: "Pipeline") -> SlotReading:
    from etl_core.source.slot import slot_status, wal_limit

    name = pipeline.source.main_slot
    limit = wal_limit(connection)
    rate = _measure_wal_rate(connection, pipeline)
    return SlotReading(name, slot_status(connection, name), limit, rate)


def _measure_wal_rate(connection: "Connection", pipeline: "Pipeline") -> float:
    """Bytes of WAL the server writes in a second, of all its databases: the limit counts all."""
    from etl_core.source.server import current_lsn

    def read() -> "tuple[Lsn, float]":
        return current_lsn(connection), time.monotonic()

    first, began = read()
    pipeline.stop.wait(_RATE_OVER)
    last, ended = read()
    return (last - first) / (ended - began)


def _examine_schemas(pipeline: "Pipeline", tables: Sequence[TableName]) -> dict[TableName, Verdict]:
    from etl_core.policies import SchemaChanges
    from etl_core.source.catalog import published_tables

    verdicts = _judge_states(pipeline, tables)
    statuses = _statuses(pipeline)
    with pipeline.source.connect("check") as connection:
        published = {t.schema.table_id: t.schema for t in published_tables(connection, pipeline.source.publication)}
    for table in (table for table in tables if table not in verdicts):
        table_id = statuses[table].table_id
        stored = pipeline.store.schema(table_id)
        ignores = pipeline.config.policy_of(table).schema_changes is SchemaChanges.IGNORE
        verdicts[table] = judge_schema(table, stored[1] if stored else None, published.get(table_id), ignores=ignores)
    return verdicts


def _examine_rows(pipeline: "Pipeline", tables: Sequence[TableName]) -> dict[TableName, Verdict]:
    statuses = _statuses(pipeline)
    # Those that still catch up are taken in on the way to the position to compare at.
    compared = [table for table in tables if table in statuses and statuses[table].state not in _UNCOPIED]
    verdicts = {
        table: verdict
        for table in tables
        if table not in compared and (verdict := judge_state(table, statuses.get(table))) is not None
    }
    if compared:
        pipeline.prepare()
        verdicts |= {comparison.table: judge_comparison(comparison) for comparison in pipeline.verify(compared)}
    return verdicts
