"""The replicated tables as assets: materialising one is its initial sync, one step a table.

A step copies its own table only: others neither wait for it nor fail with it, and any executor may run several at once.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_dagster import names
from etl_dagster.failures import failure_of
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync import CopyProgress, Synced, run_interruptibly, sync_table
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

_IO_MANAGER_KEY = "dagster/io_manager_key"  # where AssetSpec.with_io_manager_key keeps it


class InitialSyncConfig(dg.Config):
    """What a person may set in the launchpad."""

    full_refresh: bool = Field(
        default=True, description="Copy the table again. Off: copy it only if it was not copied yet, else report it."
    )
    connections: int | None = Field(
        default=None, ge=1, description="Connections that copy this table (default: the resource's copy_connections)."
    )


def build_initial_sync_assets(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    *,
    translator: DagsterReplicationTranslator | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
) -> list[dg.AssetsDefinition]:
    """One asset for each table, in the order of `tables`. Connects to nothing.

    They need the resource `names.resource_key(replication.name)`. Condition and policy are the translator's unless
    given here.
    """
    translator = translator or DagsterReplicationTranslator()
    tags = {**(op_tags or {}), names.PIPELINE_TAG: replication.name}
    assets = []
    for table in tables:
        props = ReplicatedTableProps(table, replication)
        spec = translator.get_asset_spec(props)
        if automation_condition is not None:
            spec = spec.replace_attributes(automation_condition=automation_condition)
        if freshness_policy is not None:
            spec = spec.replace_attributes(freshness_policy=freshness_policy)
        source = translator.get_source_asset_spec(props).key
        assets.append(_asset(replication.name, table, spec, source, retry_policy, tags))
    return assets


def _asset(
    pipeline: str,
    table: TableName,
    spec: dg.AssetSpec,
    source: dg.AssetKey,
    retry_policy: dg.RetryPolicy | None,
    tags: Mapping[str, Any],
) -> dg.AssetsDefinition:
    key = names.resource_key(pipeline)
    # @dg.asset and @dg.multi_asset name the op's inputs and outputs after asset keys, and refuse a table's name that
    # has to be quoted. Nothing: whatever IO manager the table is read with does not write it.
    upstream = {f"upstream_{number}": dep.asset_key for number, dep in enumerate(spec.deps, 1)}

    @dg.op(
        name=names.sync_op_name(pipeline, table),
        description=f"Copies {table} into the destination, behind the swap.",
        ins={name: dg.In(dg.Nothing) for name in upstream},
        out=dg.Out(dg.Nothing, io_manager_key=spec.metadata.get(_IO_MANAGER_KEY)),
        required_resource_keys={key},
        tags=tags,
        retry_policy=retry_policy,
        pool=names.sync_pool(pipeline),
    )
    def copy_table(context: dg.AssetExecutionContext, config: InitialSyncConfig) -> dg.MaterializeResult:
        replication: PostgresReplicationResource = getattr(context.resources, key)
        try:
            synced = _sync(context, replication, table, config)
        except EtlError as error:
            raise failure_of(error) from error
        return dg.MaterializeResult(
            asset_key=spec.key,
            metadata=_metadata(synced, replication.destination.uri(table), source),
            data_version=dg.DataVersion(str(synced.lsn)),
        )

    return dg.AssetsDefinition(
        keys_by_input_name=upstream, keys_by_output_name={"result": spec.key}, node_def=copy_table, specs=[spec]
    )


def _sync(
    context: dg.AssetExecutionContext,
    replication: PostgresReplicationResource,
    table: TableName,
    config: InitialSyncConfig,
) -> Synced:
    if config.connections is not None:
        replication = replication.model_copy(update={"copy_connections": config.connections})
    progress, stop = CopyProgress(), threading.Event()

    def report() -> None:
        line = progress.line()
        if line is not None:
            context.log.info(line)

    return run_interruptibly(
        lambda: sync_table(replication, table, full_refresh=config.full_refresh, progress=progress, stop=stop),
        stop,
        report,
    )


def _metadata(synced: Synced, uri: str, source: dg.AssetKey) -> dict[str, Any]:
    columns = synced.schema.columns
    metadata: dict[str, Any] = {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(
                    column.name,
                    format_type(column),
                    constraints=dg.TableColumnConstraints(nullable=column.nullable),
                )
                for column in columns
            ]
        ),
        "dagster/column_lineage": dg.TableColumnLineage(
            {column.name: [dg.TableColumnDep(source, column.name)] for column in columns}
        ),
        "dagster/uri": uri,
        "etl/lsn": str(synced.lsn),
    }
    if synced.rows is not None:
        metadata["dagster/row_count"] = synced.rows
    if synced.cost is not None and synced.rows is not None:
        metadata["etl/bytes"] = synced.cost.size
        metadata["etl/duration_seconds"] = synced.cost.seconds
        metadata["etl/rows_per_second"] = synced.rows / synced.cost.seconds
    return metadata
