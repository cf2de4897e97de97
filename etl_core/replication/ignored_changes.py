"""Which changes of columns the destination does not have, as they are ignored: for status, doctor and Dagster."""

from __future__ import annotations

from etl_core.config import PipelineConfig
from etl_core.identifiers import TableId
from etl_core.policies import SchemaChanges
from etl_core.schema.ignored import ignored
from etl_core.state.store import StateStore


def ignored_of(store: StateStore, table_id: TableId) -> tuple[str, ...]:
    """Of one table, as `column note (added)`."""
    stored = store.schema(table_id)
    return () if stored is None else ignored(stored[1])


def ignored_changes(config: PipelineConfig, store: StateStore) -> dict[TableId, tuple[str, ...]]:
    """Of each table with some. The store is asked for the schemas of tables whose changes are ignored alone."""
    found = {
        status.table_id: ignored_of(store, status.table_id)
        for status in store.tables()
        if config.policy_of(status.name).schema_changes is SchemaChanges.IGNORE
    }
    return {table_id: changes for table_id, changes in found.items() if changes}
