"""How one SQL product spells what a table needs: names, types, values. Pure; everything that runs is in `session`.

Identifiers are quoted as in the SQL standard, so psycopg's composition serves every product that quotes them so. What
a statement does is the same for all and stands in `statements`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, LiteralString, TypeVar

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.arrow import arrow_field

Query = sql.Composable
Values = TypeVar("Values", "pa.Array[Any]", "pa.ChunkedArray[Any]")

NAMESPACE = "_etl"
"""The schema of our bookkeeping, where the product can have it."""


class VersionsDialect(ABC):
    """What the views of a table's versions need besides (`versions`): windows, recursion, lists and pairs of values."""

    inlined: ClassVar[Query] = sql.SQL("NOT MATERIALIZED ")
    """Has the product work a common table expression out anew where it is used, as part of what uses it."""
    once: ClassVar[Query] = sql.SQL("MATERIALIZED ")
    """Has it work one out but once."""

    @abstractmethod
    def position(self, lsn: Query, seq: Query) -> Query:
        """One number that sorts as both do, of 63 and 32 bits."""

    @abstractmethod
    def lists(self, names: Query, name: str) -> Query:
        """Whether a list of texts has `name`; false for NULL."""

    @abstractmethod
    def carried(
        self,
        value: Query,
        name: str,
        number: int,
        kind: Query,
        is_sent: Query,
        is_moved: Query,
        place: Query,
        by_key: Query,
    ) -> Query:
        """What a select list has for the column `name`: in each row its last value, or the move that brought it.

        Of the rows up to it the last that is sent has the value, which may be NULL; one that is moved alone has `place`
        instead. `kind` is the column's type, `number` tells it from others. `by_key` is the window, without a frame:
        the rows of a key in their order, in which those that have a value or are moved have places of their own.
        """

    @abstractmethod
    def value(self, alias: str, name: str, number: int) -> Query:
        """Of a relation that has what `carried` selects: the value."""

    @abstractmethod
    def moved(self, alias: str, name: str, number: int) -> Query:
        """The position of the move that brought the value; NULL where it was sent."""

    @abstractmethod
    def next_known(self, value: Query, is_known: Query, partition: Query, order: Query) -> Query:
        """The first value of its partition that is known, from its row on; it may be NULL."""

    def same(self, dialect: Dialect, left: Query, right: Query, column: Column) -> Query:
        """Whether two stored values are the same, their texts too; NULL is NULL."""
        told = dialect.told_apart(left, column), dialect.told_apart(right, column)
        same = dialect.same(left, right, column)
        if told[0] is None or told[1] is None:
            return same
        return sql.SQL("{} AND {}").format(same, dialect.same(told[0], told[1], column))

    @abstractmethod
    def renamed(self, names: Query, now: Mapping[str, str | None]) -> Query:
        """A list of texts in which some are called otherwise now, and those that are None are left out.

        NULL if nothing is left.
        """


class Dialect(ABC):
    """What a product brings to write and to read tables. Those with a default need it only where theirs is another."""

    product: ClassVar[str]
    """Its name in sentences for people."""
    rows: ClassVar[Query]
    """The name under which a statement that `Session.execute_with` runs reads the Arrow rows."""
    placeholder: ClassVar[Query]
    """What stands for a value that `Session.fetch` and `Session.execute` are given."""
    bookkeeping: ClassVar[tuple[LiteralString, ...]]
    """The statements that create it if it is missing, on `{namespace}`, `{watermarks}`, `{streams}` and `{logs}`.

    Columns: watermarks (pipeline, table_id, namespace, name, lsn, attnums, updated_at), of which lsn may be NULL, and
    streams (pipeline, lsn, updated_at, incarnation) in this order, incarnation may be NULL. An lsn has 64 bits without
    a sign. Where writers do not take turns, streams has the key (pipeline) and watermarks the key (namespace, name):
    the first row of two at once is refused by them, every later one is fenced by its update. With `versions` also logs
    (pipeline, table_id, since, namespace, name, views): since is an lsn, and all but the first two may be NULL.
    """
    namespace: ClassVar[str] = NAMESPACE
    """The schema of the bookkeeping."""
    reserved: ClassVar[frozenset[str]] = frozenset({"information_schema", "pg_catalog"})
    """Folded namespaces in which no table may be made, besides `namespace`."""
    longest_name: ClassVar[int | None] = None
    """How many bytes the product keeps of a column's name, where it cuts the rest; None if it does not."""
    alters_changed_tables: ClassVar[bool] = True
    """Whether a table can be altered in the transaction that has changed rows of it."""
    alters_in_place: ClassVar[bool] = True
    """Whether a table can be altered in a transaction; it is made anew with its rows where not."""
    finds_keys_by_in: ClassVar[bool] = False
    """Whether an index of the key is used for `(key) IN (SELECT …)` alone, and not for a correlated EXISTS."""
    replaces_by_select: ClassVar[bool] = False
    """Whether CREATE OR REPLACE TABLE … AS may select from the table that it replaces, in a transaction."""
    row_id: ClassVar[str | None] = None
    """The column that the product gives every row, of another value in each; without it rows of a table without a key
    are found by all their columns, and equal ones written again (`removals`)."""

    versions: ClassVar[VersionsDialect | None] = None
    """How the product spells the views of versions; without it its tables cannot have write_mode history."""
    views_hold_columns: ClassVar[bool] = False
    """Whether a view keeps the columns that it reads from being dropped or altered, and its own from being others."""

    @abstractmethod
    def temporary(self, name: str) -> Query:
        """The quoted name of a temporary table, which hides no other and is hidden by none."""

    @abstractmethod
    def fold(self, name: str) -> str:
        """Equal for names that are the same to the product."""

    @abstractmethod
    def type_name(self, column: Column) -> str:
        """The type that a column is stored as, as DDL spells it."""

    @abstractmethod
    def type_change(self, stored: str, column: Column) -> TypeChange:
        """From the type `stored`, as `Session.columns` spells it, to `type_name(column)`."""

    @abstractmethod
    def cast_in(self, value: Query, column: Column) -> Query:
        """The Arrow value of a column as what is stored."""

    @abstractmethod
    def cast_out(self, value: Query, column: Column) -> Query:
        """What is stored as the column's Arrow value."""

    def carried(self, value: Query, stored: str, column: Column) -> Query | None:
        """A value stored as `stored` in the type of `column`, NULL where that is not the same; None if unknown."""
        return value if self.type_change(stored, column) is TypeChange.NONE else None

    def arrow_field(self, column: Column) -> pa.Field[Any]:
        """The Arrow field under which a column's values are handed over."""
        return arrow_field(column)

    def arrow_schema(self, columns: Iterable[Column]) -> pa.Schema:
        """Those of several columns."""
        return pa.schema([self.arrow_field(column) for column in columns])

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:  # noqa: ARG002
        """A column's values as they are handed over, of the type of `arrow_field`. Raises ValueOutOfRange."""
        return values

    def arrow_batch(self, rows: pa.RecordBatch, columns: Sequence[Column], table: TableName) -> pa.RecordBatch:
        """Rows that have the `columns` in order, as they are handed over."""
        values: Any = [self.arrow_values(v, c, table) for v, c in zip(rows.columns, columns, strict=True)]
        return pa.RecordBatch.from_arrays(values, schema=self.arrow_schema(columns))

    def one_of_each(self, query: Query, key: Query) -> Query:
        """Of what `query` finds one row for each of the values of the columns `key`; more columns may follow."""
        return sql.SQL(
            'SELECT * FROM (SELECT "k".*, row_number() OVER (PARTITION BY {} ORDER BY {}) AS "etl$nth"'
            ' FROM ({}) AS "k") AS "k" WHERE "etl$nth" = 1'
        ).format(key, key, query)

    def moment(self, moment: datetime, column: Column) -> Query:
        """The stored value of a column of type timestamptz, in which `moment` has its time zone."""
        return sql.SQL("CAST({} AS {})").format(sql.Literal(moment.isoformat()), sql.SQL(self.type_name(column)))

    @abstractmethod
    def dump_attnums(self, attnums: Mapping[str, int]) -> object:
        """Attribute numbers by name of column, as the bookkeeping's `attnums` takes them."""

    @abstractmethod
    def load_attnums(self, stored: object) -> Mapping[str, int]:
        """The same as it was read."""

    def same(self, left: Query, right: Query, column: Column) -> Query:  # noqa: ARG002
        """Whether two stored values of a key's column are equal.

        NULL may equal NULL: a key has none, but in rows that were deleted before.
        """
        return _same(left, right)

    def told_apart(self, value: Query, column: Column) -> Query | None:  # noqa: ARG002
        """What differs where two stored values are equal whose texts differ; None for a type without such.

        Asked for rows that are found by all their values: -0 and 0 are two of them.
        """
        return None

    def row_values(self, alias: str, columns: Sequence[Column]) -> list[Query]:
        """What two rows have in common just if they are equal in all `columns`, by text: values to group and join by.

        `same_row` compares them.
        """
        values: list[Query] = [sql.Identifier(alias, column.name) for column in columns]
        found = (self.told_apart(value, column) for value, column in zip(values, columns, strict=True))
        return [*values, *(each for each in found if each is not None)]

    def same_row(self, left: Query, right: Query) -> Query:
        """Whether two of `row_values` are the same; NULL is NULL."""
        return _same(left, right)


def _same(left: Query, right: Query) -> Query:
    return sql.SQL("{} IS NOT DISTINCT FROM {}").format(left, right)
