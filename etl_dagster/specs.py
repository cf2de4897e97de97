"""The tables at the source as external assets: what the replicated tables are downstream of."""

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
