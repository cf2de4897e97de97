"""What tells a change of a table from all others: what a person approves, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from etl_core.schema.alterations import Alteration
from etl_core.schema.ignored import steps_since_kept
from etl_core.schema.pg_types import modifiers
from etl_core.schema.table import Column, TableSchema


def change_id(before: TableSchema, steps: Sequence[Alteration]) -> str:
    """Of these steps from `before`."""
    columns = {column for step in steps for column in _columns(step)}
    return _digest([*map(_column, before.columns), "", *map(str, steps), "", *sorted(map(_column, columns))])


def take_over_id(before: TableSchema, now: TableSchema) -> str:
    """Of all that a destination of `before` does not have of `now`, what was ignored until then included."""
    kept = before if before.kept is None else TableSchema(before.table_id, before.name, before.kept, ())
    return change_id(kept, steps_since_kept(before, now))


def made_anew_id(told: str, now: TableSchema) -> str:
    """Of a table that was dropped and created again."""
    return _digest([told, *map(_column, now.columns), repr(now.key)])


def is_among(change: str, approved: str | None) -> bool:
    """Whether a person approved it: `TableStatus.approved` has what was, with spaces between."""
    return change in (approved or "").split()


def _columns(step: Alteration) -> tuple[Column, ...]:
    found = (getattr(step, "before", None), getattr(step, "column", None))
    return tuple(column for column in found if isinstance(column, Column))


def _column(column: Column) -> str:
    return repr((column.name, column.attnum, column.type.oid, modifiers(column)))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
