"""Which columns of a table a Relation message means: what the WAL says and what the catalog says, put together.

A Relation message has names and types as of the WAL, and no attribute numbers. The catalog has numbers, as of now,
which may be ahead: a column may have been renamed, retyped or dropped since. But a table's columns are always sent in
the order of their numbers, and a number is never given twice. So if all columns that may have been sent were, or none
but those that must have been, their numbers are known whatever they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from etl_core.protocol.messages import RelationColumn
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a table beside the message.

    `applied` is the schema it has in the destination, None if it is not replicated. `catalog` is its schema as of now,
    with unpublished columns, None if it is gone; `dropped` are the numbers of the columns it had once. `last_attnum` is
    the highest number that had been given at a moment that the stream has passed, None if no such moment is known.
    """

    applied: TableSchema | None
    catalog: TableSchema | None
    dropped: Collection[int] = ()
    last_attnum: int | None = None


@dataclass(frozen=True, slots=True)
class Identified:
    """The columns of a message, in its order: types and attribute numbers as far as they can be told, 0 otherwise.

    `is_proven` says that no other columns can be meant. If not, `fill_known` is False for a column that looks like one
    of the destination's under another name.
    """

    columns: tuple[Column, ...]
    is_proven: bool


def as_applied(described: Sequence[RelationColumn], known: Known) -> Identified | None:
    """The columns of a message that says what the destination has and the catalog shows; None if there is more to it.

    Nearly every message is of this kind; `dropped` and `last_attnum` need not be known for it.
    """
    if known.applied is None or known.catalog is None or len(described) != len(known.applied.columns):
        return None
    today = {column.name: column for column in known.catalog.columns}
    found = []
    for message, applied in zip(described, known.applied.columns, strict=True):
        column = today.get(message.name)
        if column is None or (column.name, column.attnum) != (applied.name, applied.attnum):
            return None
        if not message.type_oid == column.type.oid == applied.type.oid:
            return None
        found.append(replace(column, type_modifier=message.type_modifier))
    return Identified(tuple(found), is_proven=True)


def identify(described: Sequence[RelationColumn], known: Known) -> Identified:
    """By the order of the columns if that proves them, else by their names and types."""
    numbers = _numbers_by_order(described, known)
    if numbers is None:
        return Identified(_by_name(described, known), is_proven=False)
    columns = (_column(column, attnum, known) for column, attnum in zip(described, numbers, strict=True))
    return Identified(tuple(columns), is_proven=True)


def is_alike(one: Column, other: Column) -> bool:
    """Whether both have the same type and modifier."""
    return (one.type.oid, one.type_modifier) == (other.type.oid, other.type_modifier)


def _numbers_by_order(described: Sequence[RelationColumn], known: Known) -> tuple[int, ...] | None:
    """The attribute numbers of the message's columns if their order alone proves them."""
    applied, catalog = known.applied, known.catalog
    if applied is None or catalog is None or known.last_attnum is None:
        return None
    held = {column.attnum for column in applied.columns}
    if 0 in held:
        return None
    today = {column.attnum for column in catalog.columns}
    always = held & today  # there when the destination was brought to them, and there now
    came = {attnum for attnum in (*today, *known.dropped) if attnum > known.last_attnum}
    possible = held | came
    if len(described) == len(always):
        numbers = tuple(sorted(always))
    elif len(described) == len(possible):
        numbers = tuple(sorted(possible))
    else:
        return None
    # A column whose name leads to one that was not published says that the publication itself was altered.
    names = {column.name: column.attnum for column in catalog.columns}
    if any(names.get(column.name, numbers[0]) not in possible for column in described):
        return None
    return numbers


def _column(described: RelationColumn, attnum: int, known: Known) -> Column:
    candidates = [
        column
        for schema in (known.catalog, known.applied)
        for column in (() if schema is None else schema.columns)
        if column.attnum == attnum
    ]
    for column in candidates:
        if column.type.oid == described.type_oid:
            return replace(column, name=described.name, type_modifier=described.type_modifier, fill_known=True)
    return Column(described.name, _type(described.type_oid), described.type_modifier, attnum=attnum)


def _by_name(described: Sequence[RelationColumn], known: Known) -> tuple[Column, ...]:
    columns = tuple(_column_by_name(column, known) for column in described)
    if known.applied is None:
        return columns
    if any(column.attnum == 0 for column in columns):
        columns = _with_old_numbers(columns, known)
    held = {column.attnum: column.name for column in known.applied.columns if column.attnum}
    return tuple(
        replace(column, fill_known=False) if held.get(column.attnum, column.name) != column.name else column
        for column in columns
    )


def _column_by_name(described: RelationColumn, known: Known) -> Column:
    for schema in (known.catalog, known.applied):
        for column in () if schema is None else schema.columns:
            if column.name == described.name and column.type.oid == described.type_oid:
                # Not in the catalog any more: the type is known, but not whether it is the same column.
                attnum = column.attnum if schema is known.catalog else 0
                return replace(column, type_modifier=described.type_modifier, attnum=attnum)
    return Column(described.name, _type(described.type_oid), described.type_modifier)


def _with_old_numbers(columns: tuple[Column, ...], known: Known) -> tuple[Column, ...]:
    """Columns that the catalog no longer has under that name and type are those the destination has.

    Unless a column came and went since the copy: it may be that one.
    """
    if known.applied is None or known.last_attnum is None or max(known.dropped, default=0) > known.last_attnum:
        return columns
    held = {column.name: column for column in known.applied.columns}
    return tuple(
        replace(column, attnum=held[column.name].attnum)
        if column.attnum == 0 and column.name in held and is_alike(held[column.name], column)
        else column
        for column in columns
    )


def _type(oid: int) -> PgType:
    return builtin(oid) or PgType(oid, str(oid), kind=TypeKind.PSEUDO)
