"""Which of the source's types a destination with PostgreSQL's own lacks: what arrives instead, and their SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from etl_core.destination.doctor import MissingType, TypedDestination
from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError
from etl_core.replication.source import Source
from etl_core.schema.table import TableSchema
from etl_core.source.catalog import find_table_id, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.finding import Finding, Severity
from etl_core.source.publication import find_publication
from etl_core.source.selected import selected_tables
from etl_core.source.type_ddl import create_type
from etl_core.table_pattern import TableSelection

if TYPE_CHECKING:
    from etl_core.shape.shapes import Shapes  # it loads Arrow

_SHOWN = 20


def examine_types(
    source: Source, selection: TableSelection | None, destination: Destination, shapes: Callable[[], Shapes]
) -> list[Finding]:
    """One finding for each type; none where source or destination cannot be reached: other checks say so."""
    if not isinstance(destination, TypedDestination):
        return []
    with contextlib.suppress(EtlError), contextlib.closing(source.connect("doctor")) as connection:
        shape = shapes()
        schemas = []
        for schema in _schemas(connection, source.publication, selection):
            with contextlib.suppress(EtlError):  # what is wrong with its settings is said when it is copied
                schemas.append(shape.of(schema).target)
        missing = destination.missing_types(schemas)
        return [_finding(connection, one) for one in missing[:_SHOWN]]
    return []


def _schemas(connection: Connection, publication: str, selection: TableSelection | None) -> Iterator[TableSchema]:
    wanted = selected_tables(connection, publication, selection)
    if find_publication(connection, publication) is not None:
        for table in published_tables(connection, publication):
            if wanted is None or table.name in wanted:
                yield table.schema
        return
    for name in wanted or ():
        table_id = find_table_id(connection, name)
        schema = None if table_id is None else table_schema(connection, table_id)
        if schema is not None:
            yield schema


def _finding(connection: Connection, missing: MissingType) -> Finding:
    columns = _listed(missing.columns)
    where = "is another type there than at the source" if missing.is_other else "is not in the destination's database"
    message = (
        f"{missing.type.namespace}.{missing.type.name} {where}, so {columns} is stored as {missing.stored}; make the"
        " type there before the table is copied, or copy the table again after it: etl resync"
    )
    statement = None if missing.is_other else create_type(connection, missing.type)
    return Finding(Severity.WARNING, "types", message, statement)


def _listed(columns: Sequence[str]) -> str:
    return columns[0] if len(columns) == 1 else f"{columns[0]} (and {len(columns) - 1} more)"
