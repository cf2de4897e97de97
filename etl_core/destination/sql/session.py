"""What runs statements: a `Session` of a SQL product, and the `Database` that begins sessions.

Sessions raise the product's own exceptions. `Database` turns those of a whole session into ours, and
`Session.table_errors` those that are one table's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from psycopg import sql

from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column, TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

SessionT_co = TypeVar("SessionT_co", bound="Session", covariant=True)


class Session(ABC):
    """One connection, in a transaction. Used by one thread."""

    @abstractmethod
    def identifier(self, *names: str) -> Query:
        """The quoted name of a namespace, or of a relation in it; it means nothing else."""

    @abstractmethod
    def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""

    @abstractmethod
    def execute(self, query: Query, values: Sequence[object] = ()) -> int:
        """Runs a statement; returns how many rows it changed or made, 0 of one that changes none."""

    @abstractmethod
    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        """As `execute`, of a statement that reads the Arrow rows under the name `Dialect.rows`.

        A product that reads no Arrow loads them into a temporary table first.
        """

    def insert(
        self, dialect: Dialect, table: Query, columns: Sequence[Column], rows: pa.Table | pa.RecordBatchReader
    ) -> int:
        """Inserts Arrow rows, which have the `columns`; returns how many. For a product with a shorter way in."""
        return self.execute_with(statements.insert(dialect, table, columns), rows)

    def define(self, query: Query) -> None:
        """Runs a statement that creates, alters or drops something, for a product that keeps those apart."""
        self.execute(query)

    def put_aside(self, result: Query, query: Query, rows: pa.Table | pa.RecordBatchReader | None = None) -> int:
        """Puts what a query finds into a new temporary table, `Dialect.temporary`; returns how many rows.

        The query may read Arrow rows, as in `execute_with`.
        """
        create = sql.SQL("CREATE TEMPORARY TABLE {} AS {}").format(result, query)
        return self.execute(create) if rows is None else self.execute_with(create, rows)

    def drop_temporary(self, result: Query) -> None:
        """Drops what `put_aside` made."""
        self.execute(statements.drop(result))

    @abstractmethod
    def rollback(self) -> None:
        """Gives the transaction up. What `fetch` finds from now on is what is committed."""

    @abstractmethod
    def columns(self, name: TableName) -> Sequence[StoredColumn]:
        """The columns of a table that is there."""

    @abstractmethod
    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:
        """Namespace and name of all tables, and of all views."""

    def relations_called(self, dialect: Dialect, name: TableName) -> Sequence[tuple[str, str]]:
        """Those of all tables and views whose name is the same to the product."""
        same = dialect.fold(name.namespace), dialect.fold(name.name)
        return [
            other for other in self.relations(views=True) if (dialect.fold(other[0]), dialect.fold(other[1])) == same
        ]

    def additions(self, name: TableName, ours: Collection[str]) -> Additions:
        """What is added to the table beside the columns `ours`; none if the table is not there.

        It may be spelled otherwise there: names are the same when `Dialect.fold` makes them so. For a product whose
        `columns` finds nothing where no table is, and which brings nothing but columns into a table made anew.
        """
        return Additions(tuple(column for column in self.columns(name) if column.name not in ours))

    @abstractmethod
    def made_anew(self, schema: TableSchema, additions: Additions) -> AbstractContextManager[Query]:
        """Has the `with` block fill an empty table, whose name it is given, which replaces the one of `schema`.

        It has the columns of `schema` and the additions. Raises TableError for additions that do not fit: nothing of
        the transaction may be committed then.
        """

    @abstractmethod
    def rename(self, before: TableName, name: TableName) -> int:
        """Gives a table another name, in another namespace too, with all that was added to it.

        The name is free, or the same to the product. Returns how many rows were written anew for it.
        """

    def create_namespace(self, namespace: str) -> None:
        """Makes the namespace of a table that is made next, unless it is there."""
        self.define(statements.create_schema(self.identifier(namespace)))

    def drop_table(self, name: TableName) -> None:
        """Drops a table of ours that nobody brings up to date. It may stay there as one that `is_left`, for a while."""
        self.define(statements.drop(self.identifier(name.namespace, name.name)))

    def is_left(self, name: TableName) -> bool:  # noqa: ARG002 - a transaction that is undone leaves nothing
        """Whether a relation that is there is what a writer of ours made and did not fill, or left and did not drop."""
        return False

    @abstractmethod
    def table_errors(self, name: TableName) -> AbstractContextManager[None]:
        """Turns the product's exceptions of the `with` block into ours, of a table where they are that table's."""

    @abstractmethod
    def is_absent(self, error: Exception) -> bool:
        """Whether a statement failed because a relation or column that it names is not there."""

    def create_view(self, view: TableName, query: Query) -> None:
        """Makes the view, or replaces it. `query` names relations as `within_view` does."""
        self.define(
            sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(self.identifier(view.namespace, view.name), query)
        )

    def drop_view(self, view: TableName) -> None:
        """Drops a view of ours that is there, to be made again in this transaction or not."""
        self.define(sql.SQL("DROP VIEW {}").format(self.identifier(view.namespace, view.name)))

    def on_alter(self, release: Callable[[TableName], None]) -> None:  # noqa: B027
        """Given what drops our views beside a table, for a product whose views hold the columns that they read."""

    def will_alter(self, name: TableName) -> None:  # noqa: B027
        """Told before columns of the table are renamed, dropped or get another type."""

    def within_view(self, name: TableName) -> Query:
        """What a view in the same namespace calls a relation, also when it is read by somebody else."""
        return self.identifier(name.namespace, name.name)

    def is_taken(self, error: Exception) -> bool:  # noqa: ARG002 - writers that take turns meet none
        """Whether a row of the bookkeeping was refused, as another writer has just made the one of that key."""
        return False

    def will_move(self, pipeline: str, name: TableName, lsn: Lsn) -> None:  # noqa: B027
        """Told before a table's watermark becomes `lsn`, for a product that says so with the data, too."""

    def settle_key(self, schema: TableSchema) -> None:  # noqa: B027
        """Told when the table of that name has the columns of `schema`, for a product whose tables have keys."""

    def check_deferred(self, name: TableName) -> None:  # noqa: B027
        """Told when the table has all its rows, for a product that would check some constraints at COMMIT only."""

    def will_store(self, rows: pa.Table) -> None:  # noqa: B027 - most products need not know
        """Told before rows are stored, for a product that chooses how by their sizes."""

    def will_rewrite(self, table: Query, columns: Sequence[Column]) -> None:  # noqa: B027
        """Told before values that are in `columns` of `table` are stored once more."""


class Database(Protocol[SessionT_co]):
    """Where sessions begin. Raises DestinationUnavailable, DestinationError."""

    def exists(self) -> bool:
        """Whether there is something to read; where there is not, it is not made by looking."""

    def reading(self, *, wait_seconds: float | None = None) -> AbstractContextManager[SessionT_co]:
        """A session that sees one state. Waits so long for who holds the database, None for as long as usual."""

    def transaction(self, *, tables: int = 1) -> AbstractContextManager[SessionT_co]:
        """A session whose work is durable at the end of the `with` block, and undone if that fails.

        `tables` is how many tables are changed.
        """
