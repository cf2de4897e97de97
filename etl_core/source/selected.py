"""Which tables of the source a selection by names and patterns comes to."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.source.connection import Connection
from etl_core.source.publication import find_publication, published_names
from etl_core.source.sqlstate import translate
from etl_core.table_pattern import TableSelection

_SHOWN = 10

# Neither an extension's tables nor those of a state store, whose changes would follow each batch, for ever.
_ALL_TABLES = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND NOT (n.nspname = 'etl' AND EXISTS (SELECT FROM pg_catalog.pg_class s
                                         WHERE s.relnamespace = n.oid AND s.relname = 'stream_errors'))
ORDER BY 1, 2
"""


def all_tables(conn: Connection) -> list[TableName]:
    """The permanent tables of the database, partitions by their root alone."""
    try:
        rows = conn.execute(_ALL_TABLES).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return [TableName(*row) for row in rows]


def selected_tables(
    conn: Connection, publication: str, selection: TableSelection | None
) -> tuple[TableName, ...] | None:
    """The tables selected: of those that the publication publishes, or, before it exists, of the database's.

    None for what the publication publishes. Tables that are named come first, and need not be there.
    """
    if selection is None or not selection.patterns:
        return None if selection is None else selection.names
    if find_publication(conn, publication) is not None:
        there = published_names(conn, publication)
    elif selection.asks_catalog:
        there = all_tables(conn)
    else:
        return None
    found = (name for name in sorted(there) if name in selection)
    return tuple(dict.fromkeys((*selection.names, *found)))


def check_selected(tables: Sequence[TableName] | None, publication: str, selection: TableSelection | None) -> None:
    """Raises ConfigError for patterns that match no table."""
    if selection is not None and tables is not None and not tables:
        raise ConfigError(
            f"no table that publication {publication} publishes, or could publish, is one of {selection}",
            field="source.tables",
            hint="check the patterns: without a dot they are about the schema public; etl doctor lists what is there",
        )


def selected_unpublished(conn: Connection, publication: str, selection: TableSelection | None) -> list[TableName]:
    """Tables of the database that a pattern selects and the publication, which exists, does not publish."""
    if selection is None or not selection.asks_catalog:
        return []
    published = set(published_names(conn, publication))
    return [
        name for name in all_tables(conn) if name not in published and name not in selection.names and name in selection
    ]


def told_unpublished(tables: Sequence[TableName], publication: str) -> str:
    """A sentence about such tables."""
    shown = ", ".join(map(str, tables[:_SHOWN]))
    more = f" and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
    return (
        f"not replicated, though source.tables selects it, as publication {publication} does not publish it:"
        f" {shown}{more}; what is added there is copied"
    )
