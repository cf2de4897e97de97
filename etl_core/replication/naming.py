"""Which tables a person means by a name. All is kept by OID; a name may have changed hands since it was stored."""

from __future__ import annotations

from collections.abc import Sequence

from etl_core.errors import EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.replication.source import Source
from etl_core.source.catalog import find_table_id
from etl_core.state.store import StateStore, TableStatus


def tables_named(store: StateStore, source: Source, name: TableName) -> Sequence[TableStatus]:
    """The pipeline's tables of that name: as `etl status` shows it, as the source has it now, or else as it had before.

    Two of them if tables have swapped names since. A source out of reach is not asked.
    """
    tables = store.tables()
    found = [status for status in tables if status.name == name]
    now = _at_the_source(source, name)
    found += [status for status in tables if status.table_id == now and status not in found]
    if found:
        return found
    return [status for status in tables if name in _names_of(store, status)]


def _names_of(store: StateStore, status: TableStatus) -> set[TableName]:
    return {version.schema.name for version in store.schema_versions(status.table_id)}


def _at_the_source(source: Source, name: TableName) -> TableId | None:
    try:
        with source.connect("catalog") as connection:
            return find_table_id(connection, name)
    except EtlError:
        return None
