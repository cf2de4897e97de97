"""What doctor says of a pipeline that has run: which of its tables the catalog shows to be incomplete, or passed over.

Looks as the watch does, and changes nothing: the next start does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etl_core.config import PipelineConfig
from etl_core.errors import EtlError
from etl_core.identifiers import TableId
from etl_core.replication.ignored_changes import ignored_changes
from etl_core.replication.source import Source
from etl_core.schema.fingerprint import what_changed
from etl_core.source.catalog import published_tables
from etl_core.source.connection import Connection
from etl_core.source.finding import Finding, Severity
from etl_core.source.fingerprint import Look, candidates, look
from etl_core.source.publication import add_tables_statement
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import COPIED

_SHOWN = 20


def examine_known(config: PipelineConfig, source: Source, store: StateStore) -> list[Finding]:
    """Findings about the tables that were copied before; none for a new pipeline.

    Neither for one whose source or store cannot be reached: other checks say so.
    """
    with contextlib.suppress(EtlError):
        if store.source_identity() is None:
            return []
        statuses = {status.table_id: status for status in store.tables()}
        with contextlib.closing(source.connect("doctor")) as connection:
            found = look(connection, source.publication, statuses)
            findings = list(_examine(connection, source.publication, store, statuses, found))
            findings += [
                Finding(
                    Severity.NOTE,
                    "catalog",
                    f"{statuses[table_id].name} keeps its columns; ignored: {', '.join(changes)}",
                )
                for table_id, changes in ignored_changes(config, store).items()
                if table_id in statuses
            ]
            return findings[:_SHOWN] + list(_unknown(connection, config, source.publication, statuses, found))
    return []


def _examine(
    connection: Connection, publication: str, store: StateStore, statuses: dict[TableId, TableStatus], found: Look
) -> Iterator[Finding]:
    copied = [status for status in statuses.values() if status.state in COPIED]
    if found.publishing is None:
        if copied:
            yield Finding(
                Severity.UNSAFE,
                "publication",
                f"publication {publication} does not exist, though {len(copied)} tables were copied: what is written "
                "meanwhile is not sent; they are copied again as soon as it exists, which etl run sees to",
            )
        return
    remembered = store.fingerprints()
    for status in statuses.values():
        now, before = found.tables.get(status.table_id), remembered.get(status.table_id)
        if now is None or status.state not in COPIED:
            continue
        if not now.is_published:
            yield Finding(
                Severity.UNSAFE,
                "publication",
                f"{status.name} was copied and is no longer published: its changes do not arrive",
                add_tables_statement(connection, publication, [now.name]),
            )
        elif before is not None and (why := what_changed(before.fingerprint, now)) is not None:
            yield Finding(Severity.WARNING, "catalog", f"{status.name} will be copied again: {why}")


def _unknown(
    connection: Connection, config: PipelineConfig, publication: str, known: dict[TableId, TableStatus], found: Look
) -> Iterator[Finding]:
    selection = config.source.selection
    if found.publishing is None or (selection is not None and not selection.is_open):
        return
    if candidates(connection, found.publishing) <= known.keys():
        return
    new = [
        table.name
        for table in published_tables(connection, publication)
        if table.schema.table_id not in known and (selection is None or table.name in selection)
    ]
    if new:
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        yield Finding(
            Severity.NOTE,
            "catalog",
            f"published and not replicated yet: {', '.join(map(str, new[:_SHOWN]))}{more}; etl run copies what is new",
        )
