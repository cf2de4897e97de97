"""Tables that were renamed since the configuration selected them: it has their old names, and they are followed.

A table is known by its OID, so it stays the pipeline's under its new name, and another table that is created under the
old one is one of its own. By which of its names a table was selected is stored as soon as that is not its name any
more: names may change hands, and what is taken out of the configuration later must go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etl_core.identifiers import TableId, TableName
from etl_core.source.absence import names_now, permanent_tables
from etl_core.source.connection import Connection
from etl_core.state.store import StateStore, TableStatus
from etl_core.table_pattern import TableSelection


@dataclass(frozen=True, slots=True)
class Followed:
    """A table that the configuration has by the name `configured`, and that is `called` otherwise now."""

    table_id: TableId
    configured: TableName
    called: TableName

    def __str__(self) -> str:
        return (
            f"{self.configured} is called {self.called} at the source now, and is replicated under that name: write "
            f"{self.called} in source.tables, too"
        )


def find_followed(
    conn: Connection, store: StateStore, selection: TableSelection | None, known: Iterable[TableStatus]
) -> list[Followed]:
    """Those of the `known` tables that are selected by a name of before, and not left out by their name of now."""
    if selection is None:
        return []
    statuses = list(known)
    now, selected = names_now(conn, [status.table_id for status in statuses]), store.selected_names()
    found = []
    for status in statuses:
        called = now.get(status.table_id)
        configured = selected.get(status.table_id, status.name)
        if called is None or called in selection or selection.leaves_out(called) or configured not in selection:
            continue
        found.append(Followed(status.table_id, configured, called))
    return found


def with_followed(conn: Connection, wanted: Sequence[TableName], followed: Sequence[Followed]) -> tuple[TableName, ...]:
    """The tables `wanted` by their names of now: a name that no table has any more stands for the one that is followed.

    A table that has that name now is wanted as well.
    """
    configured = {one.configured for one in followed}
    gone = configured - permanent_tables(conn, sorted(configured)) if configured else set()
    return tuple(dict.fromkeys([*(name for name in wanted if name not in gone), *(one.called for one in followed)]))


def names_followed(
    store: StateStore, selection: TableSelection | None, conn: Connection, wanted: Sequence[TableName]
) -> Sequence[TableName]:
    """The tables `wanted` by their names of now, of a pipeline whose store knows which of them were renamed."""
    return with_followed(conn, wanted, find_followed(conn, store, selection, store.tables()))


def note_renamed(store: StateStore, selection: TableSelection | None, before: TableStatus, name: TableName) -> None:
    """Called before the store has the table under the new name. Stores by which one it is selected."""
    if selection is None or before.name == name:
        return
    known = store.selected_names().get(before.table_id)
    if name in selection:
        if known is not None:
            store.save_selected_name(before.table_id, None)
    elif known is None:
        store.save_selected_name(before.table_id, before.name)
