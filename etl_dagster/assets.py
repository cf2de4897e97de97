"""The replicated tables as assets: materialising one is its initial sync, one step a table.

A step copies its own table only: others neither wait for it nor fail with it, and any executor may run several at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.load_checks import check_replication
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.shared_sync import shared_sync_graph
from etl_dagster.sync_op import TableSync, sync_op
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
) -> list[dg.AssetsDefinition]:
    """One asset for each table, in the order of `tables`. Connects to nothing.

    They need the resource `names.resource_key(replication.name)`. Condition and policy are the translator's unless
    given here. `copy_processes` says, by table, how many processes copy a big one together, on several machines where
    the executor has them; the others are copied by one. `pool` is another concurrency pool than `<pipeline>_sync`.
    """
    check_replication(replication)
    translator = translator or DagsterReplicationTranslator()
    tags = {**(op_tags or {}), names.PIPELINE_TAG: replication.name}
    processes = _processes(replication.name, tables, copy_processes or {})
    assets = []
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
        )
        assets.append(_asset(sync, spec, processes.get(table, 1)))
    return assets


def _processes(pipeline: str, tables: Sequence[TableName], copy_processes: Mapping[str, int]) -> dict[TableName, int]:
    processes = {TableName.parse(table): number for table, number in copy_processes.items()}
    for table, number in processes.items():
        if table not in tables:
            raise dg.DagsterInvalidDefinitionError(f"copy_processes: {table} is not a table of pipeline {pipeline}")
        if number < 1:
            raise dg.DagsterInvalidDefinitionError(f"copy_processes: {table} is copied by one process at least")
    return processes


def _asset(sync: TableSync, spec: dg.AssetSpec, processes: int) -> dg.AssetsDefinition:
    upstream = {f"upstream_{number}": dep.asset_key for number, dep in enumerate(spec.deps, 1)}
    return dg.AssetsDefinition(
        keys_by_input_name=upstream,
        keys_by_output_name={"result": spec.key},
        node_def=sync_op(sync, upstream) if processes == 1 else shared_sync_graph(sync, upstream, processes),
        specs=[spec],
    )
