"""Replicated tables as dbt sources, so that dbt models are downstream of them in Dagster."""

import contextlib
from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_dagster.failures import failure_of
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema
    from etl_dagster.resources import PostgresReplicationResource


def dbt_sources(
    replication: "PostgresReplicationResource", translator: DagsterReplicationTranslator | None = None
) -> str:
    """The text of a dbt `sources.yml` of the replicated tables; dagster-dbt takes each source for its table's asset.

    `translator` is the one that the definitions are built with. Reads the state store alone, which knows the tables
    from the pipeline's first start on, and their columns from their copy on: call it in a script, not in a module that
    Dagster loads. Raises dg.Failure, with what to do.
    """
    from etl_core.dbt_sources import dbt_sources as build_dbt_sources
    from etl_core.destination.registry import reader_names

    chosen = translator or DagsterReplicationTranslator()

    def asset_key(table: "TableName") -> "Sequence[str]":
        return chosen.get_asset_spec(ReplicatedTableProps(table, replication)).key.path

    def target(schema: "TableSchema") -> "TableSchema":
        return replication.shapes().of(schema).target

    header = (
        f"Written by etl_dagster.dbt_sources, of pipeline {replication.name}. Do not edit: write it again when tables"
        " or columns changed."
    )
    try:
        readers = reader_names(replication.destination.config())
        with contextlib.closing(replication.state.open(replication.name)) as store:
            store.migrate()
            return build_dbt_sources(store, replication.name, readers, target, asset_key, header)
    except EtlError as error:
        raise failure_of(error, replication.name) from error
