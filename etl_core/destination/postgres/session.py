"""Statements in a transaction of the destination's PostgreSQL, and the `Database` that begins them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from etl_core.destination.aside import aside_name
from etl_core.destination.postgres import tables
from etl_core.destination.postgres.connection import Server
from etl_core.destination.postgres.dialect import STORED_AS, PostgresDialect
from etl_core.destination.postgres.failures import ABSENT, UNIQUE_VIOLATION, explain_table
from etl_core.destination.postgres.known_types import KnownTypes
from etl_core.destination.postgres.lines import copy_lines
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.statements import create_schema, delete_all, drop
from etl_core.errors import EtlError, TableError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.change_log import views_of
from etl_core.schema.table import Column, TableSchema
from etl_core.source.connection import Connection

_TYPES: dict[pa.DataType, str] = {pa.uint64(): "numeric(20)", pa.uint32(): "bigint", pa.int64(): "bigint"}
"""Of what is not a table's: positions and numbers."""


class PostgresSession(Session):
    """See Session."""

    def __init__(self, server: Server, connection: Connection, dialect: PostgresDialect) -> None:
        self._server = server
        self._connection = connection
        self._dialect = dialect
        self._deferred: dict[TableName, list[Query]] | None = None
        """The constraints that COMMIT would check, by their tables."""
        self._release: Callable[[TableName], None] | None = None
        self._grants: dict[TableName, list[tuple[str, str | None, bool]]] = {}
        """On views of ours that were dropped, to be made again."""

    def identifier(self, *names: str) -> Query:
        return sql.Identifier(*names)

    def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._run(query, values).fetchall()

    def execute(self, query: Query, values: Sequence[object] = ()) -> int:
        return max(self._run(query, values).rowcount, 0)

    def _run(self, query: Query, values: Sequence[object]) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.execute(query.as_bytes(self._connection), values or None)

    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        fields = rows.schema
        columns = [sql.SQL("{} {}").format(sql.Identifier(field.name), _stored_as(field)) for field in fields]
        table = self._dialect.rows
        create = sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP")
        self.execute(create.format(table, sql.SQL(", ").join(columns)))
        self._copy(table, rows)
        changed = self.execute(query)
        self.execute(drop(table))
        return changed

    def insert(
        self,
        dialect: Dialect,  # noqa: ARG002
        table: Query,
        columns: Sequence[Column],  # noqa: ARG002 - the rows have them
        rows: pa.Table | pa.RecordBatchReader,
    ) -> int:
        return self._copy(table, rows)

    def _copy(self, table: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Copies Arrow rows into columns of their names; returns how many."""
        batches: Iterable[pa.RecordBatch] = rows.to_batches() if isinstance(rows, pa.Table) else rows
        names = sql.SQL(", ").join(sql.Identifier(name) for name in rows.schema.names)
        with self._connection.cursor() as cursor:
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(table, names)) as copy:
                for batch in batches:
                    for lines in copy_lines(batch):
                        copy.write(lines)
            return cursor.rowcount

    def create_namespace(self, name: str) -> None:
        """See Session. In a transaction of its own: of two copies that make one, one would wait, and fail."""
        if self.fetch(sql.SQL("SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s"), (name,)):
            return
        with suppress(EtlError), self._server.transaction("write") as connection:
            connection.execute(create_schema(self.identifier(name)).as_bytes(connection))
        super().create_namespace(name)

    def rollback(self) -> None:
        self._connection.rollback()

    def columns(self, name: TableName) -> Sequence[StoredColumn]:
        found = self._connection.execute(tables.COLUMNS, (name.namespace, name.name)).fetchall()
        return [StoredColumn(column, kind, default) for column, kind, default in found]

    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:
        kinds = ["r", "p", "v", "m", "f"] if views else ["r", "p"]
        return [(namespace, name) for namespace, name in self._connection.execute(tables.RELATIONS, (kinds,))]

    def additions(self, name: TableName, ours: Collection[str]) -> Additions:
        # All but columns stays with the table, which is never made anew but filled anew.
        return Additions(tuple(column for column in self.columns(name) if column.name not in ours))

    @contextmanager
    def made_anew(self, schema: TableSchema, additions: Additions) -> Iterator[Query]:
        """See Session. A table that is there is emptied and filled in place.

        So views, grants, indexes and triggers on it stay, and a reader waits only where a column is altered: DELETE
        leaves what a reader's snapshot has. TRUNCATE does not, and has every reader wait until the commit.
        """
        table = self.identifier(schema.name.namespace, schema.name.name)
        there = {column.name: column.type for column in self.columns(schema.name)}
        if not there:
            self.execute(tables.create(self._dialect, table, schema.columns))
            if not tables.has_primary_key(self._dialect, schema):
                self.execute(tables.identify_by_row(table))
        else:
            theirs = {column.name for column in additions.columns}
            self._check_references(schema.name)
            self.execute(delete_all(table))
            for index in self._keys(schema.name):
                is_key = index.is_on(schema.key) and tables.is_unique(schema)
                if index.is_primary and theirs.isdisjoint(index.columns) and not is_key:
                    self._drop_key(schema, index)
            altered = tables.alter(self._dialect, table, schema.columns, there, theirs)
            if altered:
                self.will_alter(schema.name)
            for statement in altered:
                self.execute(statement)
        yield table
        self.settle_key(schema)

    def settle_key(self, schema: TableSchema) -> None:
        """Gives the table its key, where it has another one or none: changes find their rows by it."""
        self._check_references(schema.name)
        found = self._keys(schema.name)
        primary = next((index for index in found if index.is_primary), None)
        is_theirs = primary is not None and not set(primary.columns) <= set(schema.column_names)
        is_primary = tables.is_unique(schema) and not is_theirs
        if not schema.key or any(index.is_on(schema.key) and (index.is_primary or not is_primary) for index in found):
            return
        if primary is not None and is_primary:
            self._drop_key(schema, primary)
        statement = tables.add_key(self._dialect, schema, is_primary=is_primary)
        if statement is not None:
            self.execute(statement)

    def _keys(self, name: TableName) -> list[tables.Index]:
        found = self._connection.execute(tables.INDEXES, (name.namespace, name.name)).fetchall()
        return [tables.Index(*row) for row in found]

    def _drop_key(self, schema: TableSchema, index: tables.Index) -> None:
        table = self.identifier(schema.name.namespace, schema.name.name)
        for statement in tables.drop_key(table, index):
            self.execute(statement)
        if not tables.has_primary_key(self._dialect, schema):
            self.execute(tables.identify_by_row(table))

    def _check_references(self, name: TableName) -> None:
        """Raises TableError for a table of a person's whose rows the deleted half of an update would change."""
        found = self._connection.execute(tables.REFERENCES, (name.namespace, name.name) * 2).fetchall()
        if found:
            (constraint, table), *_ = found
            if constraint is None:
                raise TableError(
                    f"{table} inherits from {name} in PostgreSQL: its rows would be deleted with those of {name}",
                    table=str(name),
                    hint=f"ALTER TABLE {table} NO INHERIT {name}, then: etl resync {name}",
                )
            raise TableError(
                f"foreign key {constraint} of {table} in PostgreSQL refers to {name} with ON DELETE CASCADE or SET: a"
                " changed row is deleted and inserted, which would change the rows there",
                table=str(name),
                hint=f"ALTER TABLE {table} DROP CONSTRAINT {constraint}, then: etl resync {name}",
            )

    def check_deferred(self, name: TableName) -> None:
        """See Session. At COMMIT nothing would say which table is at fault."""
        if self._deferred is None:
            self._deferred = {}
            for namespace, table, *constraint in self._connection.execute(tables.DEFERRED):
                self._deferred.setdefault(TableName(namespace, table), []).append(sql.Identifier(*constraint))
        if name in self._deferred:
            names = sql.SQL(", ").join(self._deferred[name])
            self.execute(sql.SQL("SET CONSTRAINTS {} IMMEDIATE").format(names))

    def create_view(self, view: TableName, query: Query) -> None:
        super().create_view(view, query)
        for privilege, role, is_grantable in self._grants.pop(view, []):
            name = self.identifier(view.namespace, view.name)
            self.execute(tables.grant(name, privilege, role, is_grantable=is_grantable))

    def drop_view(self, view: TableName) -> None:
        found = self._connection.execute(tables.GRANTS, (view.namespace, view.name)).fetchall()
        self._grants[view] = [(privilege, role, is_grantable) for privilege, role, is_grantable in found]
        super().drop_view(view)

    def on_alter(self, release: Callable[[TableName], None]) -> None:
        self._release = release

    def will_alter(self, name: TableName) -> None:
        if self._release is not None:
            self._release(name)

    def rename(self, before: TableName, name: TableName) -> int:
        """See Session. Views and whatever else uses the table go on to do so."""
        for view, renamed in zip(views_of(before), views_of(name), strict=True):
            if view in self._grants:
                self._grants[renamed] = self._grants.pop(view)
        if before.namespace != name.namespace:
            # Either namespace may have a table of the other's name.
            passing = aside_name("moving", TableId(0), before.namespace)
            self.execute(tables.rename(before, passing.name))
            self.execute(tables.move(passing, name.namespace))
            before = TableName(name.namespace, passing.name)
        self.execute(tables.rename(before, name.name))
        return 0

    @contextmanager
    def table_errors(self, name: TableName) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise explain_table(error, name) from None

    def is_absent(self, error: Exception) -> bool:
        return isinstance(error, psycopg.Error) and error.sqlstate in ABSENT

    def is_taken(self, error: Exception) -> bool:
        return isinstance(error, psycopg.Error) and error.sqlstate == UNIQUE_VIOLATION


class PostgresDatabase:
    """See Database."""

    def __init__(self, server: Server, dialect: PostgresDialect) -> None:
        self._server = server
        self._dialect = dialect

    def exists(self) -> bool:
        return True

    @contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[PostgresSession]:  # noqa: ARG002
        with self._server.transaction("read") as connection, self._session(connection) as session:
            yield session

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[PostgresSession]:  # noqa: ARG002
        with self._server.transaction("write") as connection, self._session(connection) as session:
            yield session

    @contextmanager
    def _session(self, connection: Connection) -> Iterator[PostgresSession]:
        self._dialect.known = KnownTypes(connection)
        try:
            yield PostgresSession(self._server, connection, self._dialect)
        finally:
            self._dialect.known = {}


def _stored_as(field: pa.Field[Any]) -> Query:
    stored = (field.metadata or {}).get(STORED_AS)
    return sql.SQL(_TYPES[field.type] if stored is None else stored.decode())
