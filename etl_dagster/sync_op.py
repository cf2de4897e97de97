"""The step that copies one table, and what its materialisation says."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_dagster import names
from etl_dagster.failures import failure_of
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync import CopyProgress, Synced, run_interruptibly, sync_table

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

    def result(self, replication: PostgresReplicationResource, synced: Synced) -> dg.MaterializeResult:
        return dg.MaterializeResult(
            asset_key=self.key,
            metadata=_metadata(synced, replication.destination.uri(self.table), self.source),
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
        return sync.result(replication, copy_table(context, replication, sync.table, config))

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


def _metadata(synced: Synced, uri: str, source: dg.AssetKey) -> dict[str, Any]:
    columns = synced.schema.columns
    metadata: dict[str, Any] = {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(
                    column.name,
                    format_type(column),
                    description=column.comment,
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
        metadata["etl/duration_seconds"] = round(synced.cost.seconds, 3)
        metadata["etl/rows_per_second"] = round(synced.rows / synced.cost.seconds)
    return metadata
