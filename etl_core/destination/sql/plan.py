"""What has to be altered in a table: told from the bookkeeping of the destination, so that nothing is done twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.type_change import TypeChange
from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.schema.alterations import origins
from etl_core.schema.table import Column, TableSchema


class Plan:
    """The steps from a table's columns to those of `schema`."""

    def __init__(
        self, dialect: Dialect, schema: TableSchema, attnums: Mapping[str, int], present: Mapping[str, str]
    ) -> None:
        """`attnums` are those of our columns, `present` the table's columns and their types.

        Raises CopiedAgain for a type that cannot become another. A column is altered from the type that the
        bookkeeping's table has; a person may have given it another.
        """
        self._dialect = dialect
        self.origins = origins(attnums, schema.columns)
        """What each column that stays is called in the table, by its name in `schema`."""
        self._columns = {column.name: column for column in schema.columns}
        self.added = [column for column in schema.columns if column.name not in self.origins]
        stay = set(self.origins.values())
        self.dropped = [name for name in attnums if name not in stay]
        self.renamed = [(before, name) for name, before in self.origins.items() if before != name]
        """(before, after)."""
        changes = {name: dialect.type_change(present[it], self._columns[name]) for name, it in self.origins.items()}
        for name, change in changes.items():
            if change not in (TypeChange.NONE, TypeChange.GROWS):
                wanted, stored = dialect.type_name(self._columns[name]), present[self.origins[name]]
                raise CopiedAgain(
                    f"column {name} of {schema.name} is {wanted} at the source and {stored} in {dialect.product}",
                    table=str(schema.name),
                    hint=COPIED_AGAIN,
                )
        self.retyped = [self._columns[name] for name, change in changes.items() if change is TypeChange.GROWS]
        self._here = {dialect.fold(name) for name in attnums}

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped or self.renamed or self.retyped)

    @property
    def meets_itself(self) -> bool:
        """Whether a name that comes is one that is there: a swap, or a column dropped and added again."""
        return not self._here.isdisjoint(self.new_names())

    def new_names(self) -> dict[str, str]:
        """The names that come, by their folded name."""
        names = [*(column.name for column in self.added), *(name for _, name in self.renamed)]
        return {self._dialect.fold(name): name for name in names}

    def stored(self) -> list[Column]:
        """The columns that stay, under the names they have now."""
        return [replace(self._columns[name], name=before) for name, before in self.origins.items()]
