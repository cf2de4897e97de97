"""The replicated tables as assets: materialising one brings it up to now.

One step does so for all tables, as a process costs more than a small table; those that `copy_processes` names have
steps of their own. A table that fails fails alone either way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.load_checks import check_replication
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.stream_job import StreamConfig
from etl_dagster.sync.materialize_options import MATERIALIZE_KEY, OPTIONS
from etl_dagster.sync.shared_sync import shared_sync_graph
from etl_dagster.sync.step_batch import Batches
from etl_dagster.sync.sync_op import TableSync, outputs_of, sync_op
from etl_dagster.sync.sync_step import Execute, run_step
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

_IO_MANAGER_KEY = "dagster/io_manager_key"  # where AssetSpec.with_io_manager_key keeps it


def build_initial_sync_assets(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    *,
    translator: DagsterReplicationTranslator | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    copy_processes: Mapping[str, int] | None = None,
    pool: str | None = None,
    batches: StreamConfig | None = None,
    max_lag: float = 60.0,
    execute: Execute = run_step,
) -> list[dg.AssetsDefinition]:
    """An asset for each table: one definition of those that share a step, one of each other. Connects to nothing.

    They need the resource `names.resource_key(replication.name)`. Condition and policy are the translator's unless
    given here. `copy_processes` names the large tables and says how many processes copy each, on several machines where
    the executor has them: 1 gives a table a step of its own. The others are copied in one step, several at a time.
    `pool` is another concurrency pool than `<pipeline>_sync`. With `batches`, which the schedule's runs have, a step
    whose tables wait for a stream streams a batch itself if no run does; `max_lag` is in seconds, for its reports.
    `execute` is called for each step and yields what the step does; a step that is tried again calls it again.
    """
    check_replication(replication)
    translator = translator or DagsterReplicationTranslator()
    tags = {**(op_tags or {}), names.PIPELINE_TAG: replication.name}
    processes = _processes(replication.name, tables, copy_processes or {})
    assets: list[dg.AssetsDefinition] = []
    drained = None if batches is None else _batches(replication, tables, translator, batches, max_lag)
    together: list[tuple[TableSync, dg.AssetSpec]] = []
    for table in tables:
        props = ReplicatedTableProps(table, replication)
        spec = translator.get_asset_spec(props)
        if automation_condition is not None:
            spec = spec.replace_attributes(automation_condition=automation_condition)
        if freshness_policy is not None:
            spec = spec.replace_attributes(freshness_policy=freshness_policy)
        sync = TableSync(
            replication.name,
            table,
            spec.key,
            translator.get_source_asset_spec(props).key,
            spec.metadata.get(_IO_MANAGER_KEY),
            tags,
            retry_policy,
            pool or names.sync_pool(replication.name),
            drained,
            execute,
        )
        if table in processes:
            assets.append(_asset([sync], [spec], processes[table]))
        else:
            together.append((sync, spec))
    if together:
        assets.insert(0, _asset([sync for sync, _ in together], [spec for _, spec in together], 1))
    return assets


def _batches(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    translator: DagsterReplicationTranslator,
    config: StreamConfig,
    max_lag: float,
) -> Batches:
    props = {table: ReplicatedTableProps(table, replication) for table in tables}
    return Batches(
        keys={table: translator.get_asset_spec(prop).key for table, prop in props.items()},
        sources={table: translator.get_source_asset_spec(prop).key for table, prop in props.items()},
        slot=translator.get_slot_asset_spec(replication).key,
        max_lag=max_lag,
        config=config,
    )


def _processes(pipeline: str, tables: Sequence[TableName], copy_processes: Mapping[str, int]) -> dict[TableName, int]:
    processes = {TableName.parse(table): number for table, number in copy_processes.items()}
    for table, number in processes.items():
        if table not in tables:
            raise dg.DagsterInvalidDefinitionError(f"copy_processes: {table} is not a table of pipeline {pipeline}")
        if number < 1:
            raise dg.DagsterInvalidDefinitionError(f"copy_processes: {table} is copied by one process at least")
    return processes


def _asset(syncs: Sequence[TableSync], specs: Sequence[dg.AssetSpec], processes: int) -> dg.AssetsDefinition:
    keys = dict.fromkeys(dep.asset_key for spec in specs for dep in spec.deps)
    upstream = {f"upstream_{number}": key for number, key in enumerate(keys, 1)}
    return dg.AssetsDefinition(
        keys_by_input_name=upstream,
        keys_by_output_name={name: sync.key for name, sync in outputs_of(syncs).items()},
        node_def=sync_op(syncs, upstream) if processes == 1 else shared_sync_graph(syncs[0], upstream, processes),
        specs=specs,
        can_subset=len(syncs) > 1,
        resource_defs={MATERIALIZE_KEY: OPTIONS},
    )
