"""The errors of this package: they name table and column, never a value (Arrow's own messages quote it)."""

from __future__ import annotations

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import Column

OPTION = "set types.out_of_range: null (or clamp) for a column of no key"
"""What to do about a value beyond the range of its type."""


def out_of_range(what: str, column: Column, table: TableName, hint: str) -> ValueOutOfRange:
    """`what` completes the sentence "column c of table t holds …"."""
    return ValueOutOfRange(f"column {column.name} of table {table} holds {what}", table=str(table), hint=hint)


def unreadable(column: Column, table: TableName) -> ValueOutOfRange:
    """A value that is not the text of the column's type: not what a server with pinned settings sends."""
    return out_of_range(
        f"text that is not a value of type {format_type(column)}",
        column,
        table,
        "check that nothing between us and the server changes DateStyle, IntervalStyle, TimeZone, "
        "lc_monetary or bytea_output, "
        f"then copy the table again: etl resync {table}",
    )


def not_utf8(column: Column, table: TableName) -> ValueOutOfRange:
    """A value of a database whose encoding is SQL_ASCII, the only one that lets any bytes in."""
    return out_of_range(
        "text that is not valid UTF-8",
        column,
        table,
        f"the encoding SQL_ASCII checks nothing: correct the values, then copy the table again: etl resync {table}",
    )
