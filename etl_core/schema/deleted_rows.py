"""The column of ours that a table has whose deleted rows are kept.

The column has a number that no column of PostgreSQL has, so that it is told from one of the source by its number, in
schemas and in a destination's bookkeeping alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema

_DELETED_AT = -100
"""Attribute numbers of PostgreSQL's own columns are -1 to -6, those of a person's 1 to 1600."""


def _timestamptz() -> PgType:
    found = builtin(pg_types.TIMESTAMPTZ)
    assert found is not None  # noqa: S101 - it is in the table
    return found


DELETED_AT = Column(
    "_etl_deleted_at",
    _timestamptz(),
    attnum=_DELETED_AT,
    comment="When the row was deleted at the source; NULL while it lives.",
)
"""When the row's delete was committed at the source; NULL while the row lives."""


def is_ours(column: Column) -> bool:
    """Whether it is DELETED_AT, and no column of the source."""
    return column.attnum == _DELETED_AT


def keeps_deleted(schema: TableSchema) -> bool:
    """Whether deleted rows stay in the table; its last column is DELETED_AT then."""
    return bool(schema.columns) and is_ours(schema.columns[-1])


def has_deleted(attnums: Mapping[str, int]) -> bool:
    """The same of a table as a destination keeps it: attribute numbers by column."""
    return attnums.get(DELETED_AT.name) == _DELETED_AT
