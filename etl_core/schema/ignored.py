"""Changes of a table's columns that its destination does not follow (`schema_changes: ignore`).

`TableSchema.kept` has the columns as they were when the first change was ignored, `TableSchema.columns` those that the
source has. A column is told from another by its attribute number alone. `as_kept` is the table as the destination keeps
it: settings, shapes and steps from one version to the next go by that, so that nothing else knows of ignored changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etl_core.schema.alterations import (
    AddColumn,
    Alteration,
    ChangeKey,
    ChangeType,
    DropColumn,
    RenameColumn,
    RenameTable,
    alterations,
    keeps_values,
)
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import Column, TableSchema


def is_told(schema: TableSchema) -> bool:
    """Whether it is known which columns the table has: see `alterations.cannot_be_told`."""
    return any(column.fill_known for column in schema.columns)


def steps_since_kept(before: TableSchema, now: TableSchema) -> tuple[Alteration, ...]:
    """All that would have to be done to the destination's table of `before` to make it that of `now`, but its name."""
    steps = alterations(_kept_as_it_was(before), replace(now, kept=None))
    return tuple(step for step in steps if not isinstance(step, RenameTable))


def not_ignorable(before: TableSchema, now: TableSchema) -> tuple[Alteration, ...]:
    """What of the steps from `before` to `now` would have to be guessed if it were ignored.

    A type whose values the column that is kept cannot hold exactly, another key, a dropped column of a table whose rows
    are told apart by all their values, and the last column that is left.
    """
    kept = _kept_as_it_was(before)
    if not all(column.attnum for column in kept.columns):
        return steps_since_kept(before, now)
    by_number = {column.attnum: column for column in now.columns}
    gone = [column for column in kept.columns if column.attnum not in by_number]
    steps: list[Alteration] = []
    if now.is_multiset or len(gone) == len(kept.columns):
        steps += [DropColumn(column) for column in gone]
    for column in kept.columns:
        found = by_number.get(column.attnum, column)
        if not keeps_values(found, column):
            steps.append(ChangeType(column, found))
    if _key_numbers(before) != _key_numbers(now):
        steps.append(ChangeKey(before.key, now.key))
    return tuple(steps)


def ignoring(before: TableSchema, now: TableSchema) -> TableSchema:
    """`now`, of which the destination keeps what it has of `before`. Nothing of the change is `not_ignorable`."""
    if not is_told(now):
        return replace(now, kept=before.kept)
    if not steps_since_kept(before, now):
        return replace(now, kept=None)
    columns = _kept_as_it_was(before).columns
    # A default is what older rows of an added column hold: none of these will ever be added.
    return replace(now, kept=tuple(replace(one, missing_value=None, fill_known=True) for one in columns))


def as_kept(schema: TableSchema) -> TableSchema:
    """The table as the destination keeps it; the very same where all changes were followed.

    A column that the source has no more is nullable. `fill_known` is that of the source's column, whose rows may have
    been written anew.
    """
    if schema.kept is None:
        return schema
    told, by_number = is_told(schema), {column.attnum: column for column in schema.columns}
    names: dict[str, str] = {}
    columns = []
    for kept in schema.kept:
        found = by_number.get(kept.attnum)
        if found is None:
            columns.append(replace(kept, nullable=True, fill_known=told))
        else:
            names[found.name] = kept.name
            # The type itself is the source's: attributes and labels change without a change of the table.
            type_ = found.type if found.type.oid == kept.type.oid else kept.type
            columns.append(
                replace(kept, type=type_, nullable=found.nullable, fill_known=found.fill_known, comment=found.comment)
            )
    key = tuple(names.get(name, name) for name in schema.key)
    return replace(schema, columns=tuple(columns), key=key, kept=None)


def ignored(schema: TableSchema) -> tuple[str, ...]:
    """Each change that the destination does not have, as `column note (added)`."""
    if schema.kept is None:
        return ()
    return tuple(told for told in map(_told, steps_since_kept(schema, schema)) if told is not None)


def _told(step: Alteration) -> str | None:
    match step:
        case AddColumn(column):
            return f"column {column.name} (added)"
        case DropColumn(column):
            return f"column {column.name} (dropped)"
        case RenameColumn(before, column):
            return f"column {before.name} (renamed to {column.name})"
        case ChangeType(before, column):
            return f"column {before.name} ({format_type(before)} changed to {format_type(column)})"
        case _:
            return None


def _kept_as_it_was(schema: TableSchema) -> TableSchema:
    """With the columns that are kept, also those that the source has no more, under their names of then."""
    if schema.kept is None:
        return schema
    numbers = {column.attnum: column.name for column in schema.kept}
    key = tuple(numbers.get(number, name) for number, name in zip(_key_numbers(schema), schema.key, strict=True))
    return replace(schema, columns=schema.kept, key=key, kept=None)


def _key_numbers(schema: TableSchema) -> Sequence[int]:
    return [_number(schema.columns, name) for name in schema.key]


def _number(columns: Sequence[Column], name: str) -> int:
    return next((column.attnum for column in columns if column.name == name), 0)
