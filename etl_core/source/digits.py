"""The most digits that the numerics of a table have, asked of the server in the snapshot of a copy.

Measured with a million rows of 130 bytes: 0.13 s for a column, 0.5 s for a column of arrays, where COPY alone takes
1.2 s; the server may use several processes for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from psycopg import sql

from etl_core.errors import EtlError
from etl_core.schema.pg_types import base_type
from etl_core.schema.table import Column, TypeKind
from etl_core.source.catalog import PublishedTable
from etl_core.source.command import check_result, run_command
from etl_core.source.connection import Connection
from etl_core.source.snapshot import as_table_error, rows_from
from etl_core.values.digits import Digits, digits_in

# min_scale is NULL of NaN and infinity, which are no numbers.
_MOST = """
pg_catalog.max(pg_catalog.min_scale({value})),
pg_catalog.max(CASE WHEN pg_catalog.min_scale({value}) IS NOT NULL THEN pg_catalog.abs(pg_catalog.trunc({value})) END)
"""
_AT_ONCE = 800
"""Columns of a query, which may have 1,664 results."""
_ELEMENT = sql.Identifier("element")


def count_digits(
    conn: Connection, table: PublishedTable, columns: Sequence[Column], stop: threading.Event
) -> Mapping[str, Digits]:
    """By the name of each of `columns`, which are numerics or arrays of them, in the transaction that `conn` is in.

    The table is locked, and all its rows are read: once for all numerics, and once for each column of arrays. Raises
    what the server's error translates to, and Stopped.
    """
    arrays = [column for column in columns if base_type(column.type).kind is TypeKind.ARRAY]
    numbers = [column for column in columns if column not in arrays]
    found: dict[str, Digits] = {}
    for first in range(0, len(numbers), _AT_ONCE):
        some = numbers[first : first + _AT_ONCE]
        most = sql.SQL(", ").join(sql.SQL(_MOST).format(value=sql.Identifier(column.name)) for column in some)
        found |= _ask(conn, table, sql.SQL("SELECT {} {}").format(most, rows_from(table)), some, stop)
    for column in arrays:
        elements = sql.SQL("SELECT pg_catalog.unnest({}) AS {} {}").format(
            sql.Identifier(column.name), _ELEMENT, rows_from(table)
        )
        query = sql.SQL("SELECT {} FROM ({}) AS elements").format(sql.SQL(_MOST).format(value=_ELEMENT), elements)
        found |= _ask(conn, table, query, [column], stop)
    return found


def _ask(
    conn: Connection, table: PublishedTable, query: sql.Composed, columns: Sequence[Column], stop: threading.Event
) -> dict[str, Digits]:
    try:
        result = run_command(conn, query.as_bytes(conn), stop)
        check_result(result)
    except EtlError as error:
        raise as_table_error(error, table.name) from None
    values = [(result.get_value(0, at) or b"0").decode() for at in range(result.nfields)]
    return {
        column.name: Digits(digits_in(values[2 * at + 1]).whole, int(values[2 * at]))
        for at, column in enumerate(columns)
    }
