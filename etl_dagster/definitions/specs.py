"""The source as external assets: its tables, which the replicated ones are downstream of, and the replication slot."""

from collections.abc import Sequence

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.load_checks import check_replication
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps


def build_source_asset_specs(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    translator: DagsterReplicationTranslator | None = None,
) -> list[dg.AssetSpec]:
    """One external asset for each table, in the order of `tables`. Connects to nothing."""
    check_replication(replication)
    translator = translator or DagsterReplicationTranslator()
    return [translator.get_source_asset_spec(ReplicatedTableProps(table, replication)) for table in tables]


def build_slot_asset_spec(
    replication: PostgresReplicationResource, translator: DagsterReplicationTranslator | None = None
) -> dg.AssetSpec:
    """The external asset of the pipeline's replication slot, which has the check `slot_health`. Connects to nothing."""
    check_replication(replication)
    return (translator or DagsterReplicationTranslator()).get_slot_asset_spec(replication)
