"""What changed between two versions of a table, and whether it can be carried forward in place.

Only added and dropped columns can. Everything else changes what existing rows hold or are called, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.schema.pg_types import format_type, modifiers
from etl_core.schema.table import Column, TableSchema


@dataclass(frozen=True, slots=True)
class SchemaDiff:
    """Columns to drop, then columns to add. A column in both was dropped and added again under its name."""

    added: tuple[Column, ...] = ()
    dropped: tuple[Column, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped)


def diff(old: TableSchema, new: TableSchema) -> SchemaDiff:
    """The columns to add (in the order of `new`) and to drop (in the order of `old`) to get from `old` to `new`.

    Raises CopiedAgain for a renamed column, a changed type or type modifier, and a changed key.
    Not looked at, as no row's values depend on it: nullability, replica identity, the table's own name.
    """
    _refuse_renamed(old, new)
    before = {column.name: column for column in old.columns}
    added: list[Column] = []
    replaced: set[str] = set()
    for column in new.columns:
        earlier = before.get(column.name)
        if earlier is None:
            added.append(column)
        elif _is_another(earlier, column):
            added.append(column)
            replaced.add(column.name)
        elif (earlier.type.oid, modifiers(earlier)) != (column.type.oid, modifiers(column)):
            raise _refused(new, f"column {column.name} changed from {_from_to(earlier, column)}")
    after = set(new.column_names)
    dropped = tuple(column for column in old.columns if column.name not in after or column.name in replaced)
    _refuse_changed_key(old, new, replaced)
    _refuse_possible_rename(new, added, dropped)
    return SchemaDiff(tuple(added), dropped)


def _is_another(earlier: Column, column: Column) -> bool:
    return earlier.attnum != column.attnum and earlier.attnum != 0 and column.attnum != 0


def _from_to(earlier: Column, column: Column) -> str:
    was, now = format_type(earlier), format_type(column)
    return f"{was} to {now}" if was != now else f"the type {was} to another type of that name, which was created since"


def _refuse_renamed(old: TableSchema, new: TableSchema) -> None:
    by_attnum = {column.attnum: column for column in old.columns if column.attnum}
    for column in new.columns:
        earlier = by_attnum.get(column.attnum)
        if earlier is not None and earlier.name != column.name:
            raise _refused(
                new,
                f"column {earlier.name} ({format_type(earlier)}) was renamed to {column.name} ({format_type(column)})",
            )


def _refuse_changed_key(old: TableSchema, new: TableSchema, replaced: set[str]) -> None:
    if old.key != new.key:
        raise _refused(new, f"the key changed from {_format_key(old)} to {_format_key(new)}")
    for name in new.key:
        if name in replaced:
            was, now = format_type(old.column(name)), format_type(new.column(name))
            raise _refused(new, f"key column {name} ({was}) was dropped and added again ({now})")


def _refuse_possible_rename(new: TableSchema, added: list[Column], dropped: tuple[Column, ...]) -> None:
    """Without attribute numbers a rename looks like drop and add; its old rows would lose their values."""
    for gone in dropped:
        for column in added:
            if gone.attnum == 0 or column.attnum == 0:
                raise _refused(
                    new,
                    f"column {gone.name} ({format_type(gone)}) is gone and {column.name} ({format_type(column)}) "
                    "is new, which cannot be told from a rename",
                )


def _format_key(schema: TableSchema) -> str:
    return f"({', '.join(schema.key)})" if schema.key else "none"


def _refused(schema: TableSchema, what: str) -> CopiedAgain:
    return CopiedAgain(
        f"table {schema.name}: {what}, which cannot be applied to the rows already copied",
        table=str(schema.name),
        hint=COPIED_AGAIN,
    )
