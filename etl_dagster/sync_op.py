"""The step that copies one table, and what its materialisation says."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.failures import failure_of
from etl_dagster.last_reports import NEVER, last_reports
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync import CopyProgress, Synced, run_interruptibly, sync_table
from etl_dagster.table_report import (
    TableFacts,
    copied_text,
    found_text,
    reported_columns,
    schema_change,
    size_at_source,
    source_observation,
    table_metadata,
)

_T = TypeVar("_T")


class InitialSyncConfig(dg.Config):
    """What a person may set in the launchpad."""

    full_refresh: bool = Field(
        default=True, description="Copy the table again. Off: copy it only if it was not copied yet, else report it."
    )
    connections: int | None = Field(
        default=None, ge=1, description="Connections that copy this table (default: the resource's copy_connections)."
    )


@dataclass(frozen=True, slots=True)
class TableSync:
    """One table's initial sync: the table, its assets' keys, and how its steps are to be run."""

    pipeline: str
    table: TableName
    key: dg.AssetKey
    source: dg.AssetKey
    io_manager_key: str | None
    tags: Mapping[str, Any]
    retry_policy: dg.RetryPolicy | None
    pool: str

    @property
    def name(self) -> str:
        return names.sync_op_name(self.pipeline, self.table)

    @property
    def resource_key(self) -> str:
        return names.resource_key(self.pipeline)

    def replication(self, context: Any, config: InitialSyncConfig | None = None) -> PostgresReplicationResource:
        """The pipeline's resource as the step has it, with what the launchpad says."""
        replication: PostgresReplicationResource = getattr(context.resources, self.resource_key)
        if config is None or config.connections is None:
            return replication
        return replication.model_copy(update={"copy_connections": config.connections})

    def result(self, context: Any, replication: PostgresReplicationResource, synced: Synced) -> dg.MaterializeResult:
        """What the step gives. Logs first how the columns differ from those last reported, and what the source has."""
        size = size_at_source(replication, synced.schema.table_id)
        metadata = _metadata(self, replication, synced, size)
        before = last_reports(context.instance, [self.key]).get(self.key, NEVER)
        change = schema_change(self.key, metadata, reported_columns(before.metadata))
        if change is not None:
            context.log_event(change)
        if synced.cost is not None:
            context.log_event(source_observation(self.source, self.table, synced.schema, size))
        return dg.MaterializeResult(
            asset_key=self.key,
            metadata=metadata,
            data_version=dg.DataVersion(str(synced.lsn)),
        )


def sync_op(sync: TableSync, upstream: Iterable[str]) -> dg.OpDefinition:
    """The op of a table that one process copies; `upstream` names its inputs, which carry nothing."""

    # @dg.asset and @dg.multi_asset name the op's inputs and outputs after asset keys, and refuse a table's name that
    # has to be quoted. Nothing: whatever IO manager the table is read with does not write it.
    @dg.op(
        name=sync.name,
        description=f"Copies {sync.table} into the destination, behind the swap.",
        ins={name: dg.In(dg.Nothing) for name in upstream},
        out=dg.Out(dg.Nothing, io_manager_key=sync.io_manager_key),
        required_resource_keys={sync.resource_key},
        tags=sync.tags,
        retry_policy=sync.retry_policy,
        pool=sync.pool,
    )
    def copy(context: dg.AssetExecutionContext, config: InitialSyncConfig) -> dg.MaterializeResult:
        replication = sync.replication(context, config)
        return sync.result(context, replication, copy_table(context, replication, sync.table, config))

    return copy


def copy_table(
    context: Any,
    replication: PostgresReplicationResource,
    table: TableName,
    config: InitialSyncConfig,
    share: str | None = None,
) -> Synced:
    """`sync_table` as a step: its progress in the step's log, its errors as Dagster's."""
    progress, stop = CopyProgress(), threading.Event()
    return interruptible_step(
        context,
        progress,
        stop,
        lambda: sync_table(
            replication, table, full_refresh=config.full_refresh, progress=progress, stop=stop, share=share
        ),
    )


def interruptible_step(context: Any, progress: CopyProgress, stop: threading.Event, work: Callable[[], _T]) -> _T:
    """What `work` gives, which ends soon after `stop` is set. Logs `progress` meanwhile; raises dg.Failure."""

    def report() -> None:
        line = progress.line()
        if line is not None:
            context.log.info(line)

    try:
        return run_interruptibly(work, stop, report)
    except EtlError as error:
        raise failure_of(error) from error


def _metadata(
    sync: TableSync, replication: PostgresReplicationResource, synced: Synced, size: int | None
) -> dict[str, Any]:
    cost = synced.cost
    if cost is None or synced.rows is None:
        summary = found_text(synced.rows, synced.lsn)
    else:
        summary = copied_text(synced.rows, synced.lsn)
    facts = TableFacts(synced.lsn, synced.schema, synced.rows, size)
    metadata = table_metadata(replication.destination, sync.table, sync.source, facts, summary)
    if cost is not None and synced.rows is not None:
        metadata["etl/bytes_copied"] = cost.size
        metadata["etl/duration_seconds"] = round(cost.seconds, 3)
        metadata["etl/rows_per_second"] = round(synced.rows / cost.seconds)
    return metadata
