"""PostgreSQL logical replication run by Dagster: an asset per table, a supervised stream, resources, checks.

Importing this package connects to nothing and loads neither Arrow nor a database driver; a public name loads its module
when it is first used, as every run and every step pays for the import.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etl_core import __version__

try:
    from dagster_shared.libraries import DagsterLibraryRegistry
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "dagster_shared":
        raise
    raise ImportError(
        "etl_dagster needs Dagster, which is not installed; the command etl works without it;"
        " run: pip install 'etl-dagster[dagster]'"
    ) from None

if TYPE_CHECKING:
    from etl_dagster.any_destination import AnyDestinationResource as AnyDestinationResource
    from etl_dagster.bigquery_destination import BigQueryDestinationResource as BigQueryDestinationResource
    from etl_dagster.declared_destinations import DuckLakeDestinationResource as DuckLakeDestinationResource
    from etl_dagster.declared_destinations import IcebergDestinationResource as IcebergDestinationResource
    from etl_dagster.declared_destinations import SnowflakeDestinationResource as SnowflakeDestinationResource
    from etl_dagster.definitions.automation import on_replicated_change as on_replicated_change
    from etl_dagster.definitions.change_sensor import build_change_sensor as build_change_sensor
    from etl_dagster.definitions.component import PostgresReplicationComponent as PostgresReplicationComponent
    from etl_dagster.definitions.dbt import dbt_sources as dbt_sources
    from etl_dagster.definitions.factory import build_postgres_replication as build_postgres_replication
    from etl_dagster.definitions.specs import build_slot_asset_spec as build_slot_asset_spec
    from etl_dagster.definitions.specs import build_source_asset_specs as build_source_asset_specs
    from etl_dagster.destination_resource import DestinationResource as DestinationResource
    from etl_dagster.duckdb_destination import DuckDBDestinationResource as DuckDBDestinationResource
    from etl_dagster.postgres_destination import PostgresDestinationResource as PostgresDestinationResource
    from etl_dagster.reports.checks import build_replication_checks as build_replication_checks
    from etl_dagster.resources import PostgresReplicationResource as PostgresReplicationResource
    from etl_dagster.resources import StateStoreResource as StateStoreResource
    from etl_dagster.stream.control_job import build_control_job as build_control_job
    from etl_dagster.stream.sensor import build_stream_sensor as build_stream_sensor
    from etl_dagster.stream.stream_job import StreamConfig as StreamConfig
    from etl_dagster.stream.stream_job import build_stream_job as build_stream_job
    from etl_dagster.stream.stream_job import build_stream_schedule as build_stream_schedule
    from etl_dagster.sync.assets import build_initial_sync_assets as build_initial_sync_assets
    from etl_dagster.sync.materialize_options import MaterializeOptions as MaterializeOptions
    from etl_dagster.sync.sync_step import SyncStep as SyncStep
    from etl_dagster.table_io_manager import ReplicatedTableIOManager as ReplicatedTableIOManager
    from etl_dagster.tables import ReplicatedTable as ReplicatedTable
    from etl_dagster.translator import DagsterReplicationTranslator as DagsterReplicationTranslator
    from etl_dagster.translator import ReplicatedTableProps as ReplicatedTableProps

_MODULES = {
    "AnyDestinationResource": "any_destination",
    "DagsterReplicationTranslator": "translator",
    "DestinationResource": "destination_resource",
    "BigQueryDestinationResource": "bigquery_destination",
    "DuckDBDestinationResource": "duckdb_destination",
    "MaterializeOptions": "sync.materialize_options",
    "DuckLakeDestinationResource": "declared_destinations",
    "IcebergDestinationResource": "declared_destinations",
    "SnowflakeDestinationResource": "declared_destinations",
    "PostgresDestinationResource": "postgres_destination",
    "PostgresReplicationComponent": "definitions.component",
    "PostgresReplicationResource": "resources",
    "ReplicatedTable": "tables",
    "ReplicatedTableIOManager": "table_io_manager",
    "ReplicatedTableProps": "translator",
    "StateStoreResource": "resources",
    "StreamConfig": "stream.stream_job",
    "SyncStep": "sync.sync_step",
    "build_change_sensor": "definitions.change_sensor",
    "build_control_job": "stream.control_job",
    "build_initial_sync_assets": "sync.assets",
    "build_postgres_replication": "definitions.factory",
    "build_replication_checks": "reports.checks",
    "build_slot_asset_spec": "definitions.specs",
    "build_source_asset_specs": "definitions.specs",
    "build_stream_job": "stream.stream_job",
    "build_stream_schedule": "stream.stream_job",
    "build_stream_sensor": "stream.sensor",
    "dbt_sources": "definitions.dbt",
    "on_replicated_change": "definitions.automation",
}

__all__ = [
    "AnyDestinationResource",
    "BigQueryDestinationResource",
    "DagsterReplicationTranslator",
    "DestinationResource",
    "DuckDBDestinationResource",
    "DuckLakeDestinationResource",
    "IcebergDestinationResource",
    "MaterializeOptions",
    "PostgresDestinationResource",
    "PostgresReplicationComponent",
    "PostgresReplicationResource",
    "ReplicatedTable",
    "ReplicatedTableIOManager",
    "ReplicatedTableProps",
    "SnowflakeDestinationResource",
    "StateStoreResource",
    "StreamConfig",
    "SyncStep",
    "build_change_sensor",
    "build_control_job",
    "build_initial_sync_assets",
    "build_postgres_replication",
    "build_replication_checks",
    "build_slot_asset_spec",
    "build_source_asset_specs",
    "build_stream_job",
    "build_stream_schedule",
    "build_stream_sensor",
    "dbt_sources",
    "on_replicated_change",
]

DagsterLibraryRegistry.register("etl-dagster", __version__, is_dagster_package=False)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    # `dg` finds the component by this.
    return sorted({*globals(), *_MODULES})
