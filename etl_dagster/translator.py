"""How a table appears in Dagster: key, group, owners, tags, kinds. Subclass it to change that."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.identifiers import TableName

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


@dataclass(frozen=True, slots=True)
class ReplicatedTableProps:
    """What a translator is given: the table at the source, and the pipeline that replicates it."""

    table: TableName
    replication: "PostgresReplicationResource"


class DagsterReplicationTranslator:
    """The defaults.

    A replicated table has the key `[<destination type>, <namespace>, <table>]` (BigQuery: dataset and table there): the
    IO managers of DuckDB and BigQuery take the last two parts for schema and table, so that they find it without
    configuration. It depends on the source's table, `[<pipeline>, <namespace>, <table>]`, an external asset.
    """

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The replicated table, in the destination."""
        table, replication = props.table, props.replication
        return dg.AssetSpec(
            [replication.destination.type, *replication.destination.table_path(table)],
            deps=[self.get_source_asset_spec(props).key],
            description=f"{table} of {replication.name}, replicated from PostgreSQL. Materialising it brings it up to"
            " now: it is copied if it was not yet, else the stream is waited for.",
            group_name=replication.name,
            kinds={"postgres", replication.destination.type},
            metadata={"dagster/table_name": ".".join(replication.destination.table_path(table))},
        )

    def get_source_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The table at the source."""
        table, replication = props.table, props.replication
        return dg.AssetSpec(
            [replication.name, table.namespace, table.name],
            description=f"{table} in PostgreSQL, published by {replication.publication}.",
            group_name=replication.name,
            kinds={"postgres"},
            metadata={"dagster/table_name": f"{table.namespace}.{table.name}"},
        )
