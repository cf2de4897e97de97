"""What people have added to a table of ours: columns above all, and whatever else the product knows of.

Only columns that the bookkeeping knows are ours to drop or to alter. The others stay: a row that is updated keeps its
values in them, a new row has their default, and a table that is made anew (a copy again, a schema change in the middle
of a transaction) gets them back, the values by key. What cannot be kept is refused before anything is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.type_change import TypeChange
from etl_core.errors import SchemaChangeRefused, TableError
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column of a table as the product describes it: its type and default in the product's own spelling."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Additions:
    """All of one table. False if there are none."""

    columns: tuple[StoredColumn, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.columns)

    def __str__(self) -> str:
        """For people: what there is, without anybody's texts."""
        return ", ".join(f"column {column.name}" for column in self.columns)

    def renamed(self, names: Mapping[str, str]) -> Self:  # noqa: ARG002 - for those that name columns of ours
        """The same when columns of ours are called otherwise: `names` by what they are called now."""
        return self

    @property
    def hold_columns(self) -> bool:
        """Whether the product may refuse to drop or to add a column because of them."""
        return False


def check_clash(dialect: Dialect, schema: TableSchema, columns: Sequence[str], folded: Mapping[str, str]) -> None:
    """Raises SchemaChangeRefused if the source has a column named like one of `columns`, which are a person's.

    `folded` are the source's new columns by their folded name.
    """
    for name in columns:
        if dialect.fold(name) in folded:
            raise SchemaChangeRefused(
                f"{schema.name} has got a column {folded[dialect.fold(name)]} at the source, and in {dialect.product} "
                "it has a column of that name which this pipeline did not create",
                table=str(schema.name),
                hint=f"rename the column in {dialect.product} (ALTER TABLE … RENAME {name} TO …), "
                f"then: etl resync {schema.name}",
            )


def check_can_be_kept(
    dialect: Dialect, schema: TableSchema, additions: Additions, ours: Collection[str], types: Mapping[str, str]
) -> None:
    """Raises TableError, before a copy, if its swap would lose values of a person's columns.

    `types` are those of the table's columns now.
    """
    added = {dialect.fold(column.name) for column in additions.columns}
    check_clash(
        dialect,
        schema,
        [column.name for column in additions.columns],
        {dialect.fold(name): name for name in schema.column_names if dialect.fold(name) in added},
    )
    if not additions.columns:
        return
    if not schema.key:
        why = "it has no key to find its rows again by"
    elif not all(name in ours for name in schema.key):
        why = "its key is another one than before"
    elif any(dialect.type_change(types[name], schema.column(name)) is TypeChange.OTHER for name in schema.key):
        why = "its key is of another type than before"
    else:
        return
    raise TableError(
        f"a new copy of {schema.name} would lose the values of {additions}, which this pipeline did not create: {why}",
        table=str(schema.name),
        hint="save them in a table of your own, drop the columns with ALTER TABLE … DROP COLUMN, "
        f"then: etl resync {schema.name}",
    )
