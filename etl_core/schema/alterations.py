"""What changed between two versions of a table: an ordered list of steps, computed once and carried with the changes.

A column is told from another by its attribute number where both are known, else by its name. Steps that can be carried
forward are done in place by the destination; where what older rows hold does not follow from what it has, the table is
copied again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import format_type, forms, modifiers, under_domains
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema


@dataclass(frozen=True, slots=True)
class DropColumn:
    """A column went, with its values."""

    column: Column

    def __str__(self) -> str:
        return f"column {self.column.name} ({format_type(self.column)}) was dropped"


@dataclass(frozen=True, slots=True)
class RenameColumn:
    """A column has another name and the same values."""

    before: Column
    column: Column

    def __str__(self) -> str:
        return (
            f"column {self.before.name} ({format_type(self.before)}) was renamed to "
            f"{self.column.name} ({format_type(self.column)})"
        )


@dataclass(frozen=True, slots=True)
class ChangeType:
    """A column's type or type modifier is another one. `before` may have another name."""

    before: Column
    column: Column

    def __str__(self) -> str:
        was, now = format_type(self.before), format_type(self.column)
        if forms(self.before.type) != forms(self.column.type):
            return f"column {self.column.name} ({now}) is stored in another form now"
        if was == now:
            return f"column {self.column.name} changed from the type {was} to another type of that name"
        return f"column {self.column.name} changed from {was} to {now}"


@dataclass(frozen=True, slots=True)
class AddColumn:
    """A column came. Older rows hold its `missing_value`, if that is known (`fill_known`)."""

    column: Column

    def __str__(self) -> str:
        return f"column {self.column.name} ({format_type(self.column)}) was added"


@dataclass(frozen=True, slots=True)
class ChangeKey:
    """Other columns identify a row. Names as they are before and after all other steps."""

    before: tuple[str, ...]
    key: tuple[str, ...]

    def __str__(self) -> str:
        return f"the key changed from {_format_key(self.before)} to {_format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class RenameTable:
    """The table has another name, maybe in another namespace. All of its rows stay."""

    before: TableName
    name: TableName

    def __str__(self) -> str:
        return f"the table was renamed from {self.before} to {self.name}"


Alteration: TypeAlias = DropColumn | RenameColumn | ChangeType | AddColumn | ChangeKey | RenameTable


def origins(before: Mapping[str, int], columns: Sequence[Column]) -> dict[str, str]:
    """For each of `columns` that was there before, its name and what it was called then.

    `before` are the names of the columns there were, with their attribute numbers, 0 for one that is not known.
    """
    named = {attnum: name for name, attnum in before.items() if attnum}
    found = {column.name: named[column.attnum] for column in columns if column.attnum in named}
    taken = set(found.values())
    for column in columns:
        is_free = column.name not in found and column.name in before and column.name not in taken
        if is_free and 0 in (column.attnum, before[column.name]):
            found[column.name] = column.name
    return found


def alterations(old: TableSchema, new: TableSchema) -> tuple[Alteration, ...]:
    """The steps from `old` to `new`: columns that went, that changed their name or type, that came; the key; the name.

    A column that was dropped and added again under its name is in two of them. Renames are meant to be done together:
    two columns may have swapped their names. Not looked at, as no row's values depend on it: nullability, replica
    identity, order.
    """
    known = {column.name: column for column in old.columns}
    origin = origins({column.name: column.attnum for column in old.columns}, new.columns)
    stay = set(origin.values())
    pairs = [(known[origin[column.name]], column) for column in new.columns if column.name in origin]
    steps: list[Alteration] = [DropColumn(column) for column in old.columns if column.name not in stay]
    steps += [RenameColumn(before, column) for before, column in pairs if before.name != column.name]
    steps += [ChangeType(before, column) for before, column in pairs if _is_another_type(before, column)]
    steps += [AddColumn(column) for column in new.columns if column.name not in origin]
    if old.key != tuple(origin.get(name) for name in new.key):
        steps.append(ChangeKey(old.key, new.key))
    if old.name != new.name:
        steps.append(RenameTable(old.name, new.name))
    return tuple(steps)


def check_carried(old: TableSchema, new: TableSchema, steps: Sequence[Alteration]) -> None:
    """Raises CopiedAgain unless what rows hold after `steps` follows from what they held before.

    `fill_known` of a column is False if the source has written older rows anew, and of all columns if it cannot be told
    which they are (`replication/describe.py`).
    """
    for step in steps:
        if isinstance(step, DropColumn):
            _refuse_possible_rename(new, step, steps)
        elif isinstance(step, ChangeType):
            if not keeps_values(step.before, step.column):
                raise _refused(new, f"{step}, which cannot be applied to the rows already copied")
            if not step.column.fill_known:
                raise _refused(new, f"{step}, and its rows were written anew, which may have changed their values")
        elif isinstance(step, AddColumn) and not step.column.fill_known:
            raise _refused(
                new,
                f"column {step.column.name} came, and the WAL does not hold what older rows have in it (a "
                "default computed per row, a column that was not published, or one dropped and added again)",
            )
        elif isinstance(step, ChangeKey):
            _refuse_key(old, new, step, steps)
    if not all(column.fill_known for column in new.columns):
        raise _refused(new, "its columns were altered, and which of them its rows are of can no longer be told")


def cannot_be_told(schema: TableSchema) -> TableSchema:
    """The schema as one of which is not known which columns they are: `check_carried` refuses it."""
    return replace(schema, columns=tuple(replace(column, fill_known=False) for column in schema.columns))


def is_sent_alike(one: TableSchema, other: TableSchema) -> bool:
    """Whether both are sent by the same Relation message, but for its key flags and the table's name."""
    sent = [[(column.name, column.type.oid, column.type_modifier) for column in each.columns] for each in (one, other)]
    return sent[0] == sent[1]


def keeps_values(before: Column, after: Column) -> bool:
    """Whether a change of type that writes no row anew leaves every value's text as it was.

    PostgreSQL keeps the bytes of rows when a type grows or loses its limit. What they are printed as stays the same but
    for pairs such as cidr and inet, which is why the pairs are named.
    https://www.postgresql.org/docs/current/sql-altertable.html
    """
    (old, old_modifier), (new, new_modifier) = (under_domains(c.type, c.type_modifier) for c in (before, after))
    if forms(before.type) != forms(after.type):
        return False
    if _is_text(old) and _is_text(new):
        return True
    if old.oid != new.oid:
        return False
    if old.oid == pg_types.NUMERIC:
        return _is_wider(pg_types.numeric_precision(old_modifier), pg_types.numeric_precision(new_modifier))
    return old_modifier == new_modifier or old.oid in _GROWING


_GROWING = frozenset({pg_types.TIME, pg_types.TIMESTAMP, pg_types.TIMESTAMPTZ, pg_types.INTERVAL, 1266, 1562})
"""Types whose modifier is a limit alone: those of time, timetz, and varbit."""


def _is_text(pg_type: PgType) -> bool:
    return pg_type.oid in (pg_types.TEXT, pg_types.VARCHAR) or pg_type.name == "citext"


def _is_wider(before: tuple[int, int] | None, after: tuple[int, int] | None) -> bool:
    if before is None or after is None:
        return after is None
    return after[0] >= before[0] and after[1] == before[1]


def _is_another_type(before: Column, column: Column) -> bool:
    if forms(before.type) != forms(column.type):
        return True
    return (before.type.oid, modifiers(before)) != (column.type.oid, modifiers(column))


def _refuse_key(old: TableSchema, new: TableSchema, step: ChangeKey, steps: Sequence[Alteration]) -> None:
    """A Relation message tells the key of its moment, unless the whole row is the identity: then the catalog does."""
    tells = (ReplicaIdentity.DEFAULT, ReplicaIdentity.INDEX)
    came = {added.column.name for added in steps if isinstance(added, AddColumn)}
    for name in step.key:
        if name in came and name in step.before:
            raise _refused(new, f"key column {name} was dropped and added again")
    if not step.before or not step.key or came.intersection(step.key):
        raise _refused(new, f"{step}, which cannot be applied to the rows already copied")
    if old.replica_identity not in tells or new.replica_identity not in tells:
        raise _refused(new, f"{step}, and with its replica identity the WAL does not tell from which row on")


def _refuse_possible_rename(new: TableSchema, gone: DropColumn, steps: Sequence[Alteration]) -> None:
    """Without attribute numbers a rename looks like drop and add; its old rows would lose their values."""
    for step in steps:
        if isinstance(step, AddColumn) and 0 in (gone.column.attnum, step.column.attnum):
            raise _refused(
                new,
                f"column {gone.column.name} ({format_type(gone.column)}) is gone and {step.column.name} "
                f"({format_type(step.column)}) is new, which cannot be told from a rename",
            )


def _format_key(key: tuple[str, ...]) -> str:
    return f"({', '.join(key)})" if key else "none"


def _refused(schema: TableSchema, what: str) -> CopiedAgain:
    return CopiedAgain(f"table {schema.name}: {what}", table=str(schema.name), hint=COPIED_AGAIN)
