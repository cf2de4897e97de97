"""How a table appears in Dagster: key, group, owners, tags, kinds. Subclass it to change that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.destination.registry import type_label
from etl_core.identifiers import TableName
from etl_dagster.names import source_group

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


@dataclass(frozen=True, slots=True)
class ReplicatedTableProps:
    """What a translator is given: the table at the source, and the pipeline that replicates it.

    `comment` is what COMMENT ON TABLE said when the publication was discovered, None where nobody has asked.
    """

    table: TableName
    replication: "PostgresReplicationResource"
    comment: str | None = None


class DagsterReplicationTranslator:
    """The defaults.

    A replicated table has the key `[<destination type>, <namespace>, <table>]` (BigQuery: dataset and table there): the
    IO managers of DuckDB and BigQuery take the last two parts for schema and table, so that they find it without
    configuration. It depends on the source's table, `[<pipeline>, <namespace>, <table>]`, an external asset. With
    `key_prefix`, such as the pipeline's name, the key of the replicated table begins with that, for code locations in
    which two pipelines replicate a table of the same name.
    """

    def __init__(self, *, key_prefix: str | Sequence[str] = ()) -> None:
        self._key_prefix = [key_prefix] if isinstance(key_prefix, str) else [*key_prefix]

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The replicated table, in the destination."""
        table, replication = props.table, props.replication
        label = type_label(replication.destination.type)
        return dg.AssetSpec(
            [*self._key_prefix, label, *replication.destination.table_path(table)],
            deps=[self.get_source_asset_spec(props).key],
            description=props.comment
            or f"{table} of {replication.name}, replicated from PostgreSQL. Materialising it brings it up to now: it is"
            " copied if it was not yet, else the stream is waited for.",
            group_name=replication.name,
            kinds={"postgres", label},
            metadata=_known({"dagster/table_name": replication.destination.table_name(table)}),
        )

    def get_source_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The table at the source."""
        table, replication = props.table, props.replication
        address = replication.source_address()
        name = None if address.database is None else f"{address.database}.{table.namespace}.{table.name}"
        return dg.AssetSpec(
            [replication.name, table.namespace, table.name],
            description=props.comment or f"{table} in PostgreSQL, published by {replication.publication}.",
            group_name=source_group(replication.name),
            kinds={"postgres"},
            metadata=_known({"dagster/table_name": name, "dagster/uri": address.uri}),
        )

    def get_slot_asset_spec(self, replication: "PostgresReplicationResource") -> dg.AssetSpec:
        """The replication slot at the source, `[<pipeline>, replication_slot]`: there is one for all tables."""
        return dg.AssetSpec(
            [replication.name, "replication_slot"],
            description=f"The replication slot of {replication.name}: the stream reports how far behind it is, the"
            " server's rate of WAL, and how much more the server keeps for it.",
            group_name=source_group(replication.name),
            kinds={"postgres"},
            metadata=_known({"dagster/uri": replication.source_address().uri}),
        )


def _known(metadata: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if value is not None}
