"""Statements in a transaction of Snowflake, and the `Database` that begins them.

**Nothing is defined in a transaction, as that would commit it.** A second connection makes what is needed: a staging
table for rows, a temporary one, a table that is to replace another. The transaction has only their rows. A table that
replaces, renames or drops another is written down in the transaction, and done when that is committed (`pending`):
`CREATE OR REPLACE TABLE … CLONE`, which is one step for readers. So are views. Whoever begins next does first what is
still pending. Until then `SnowflakeSession` finds such a table where it was made.

**Writers take turns.** Snowflake is READ COMMITTED and enforces no key. Each transaction first updates the one row of
`_etl.turns`, which it holds until it ends; statements begin after that, and so see all that was committed before. A
transaction that Snowflake has ended meanwhile (one that is idle while others wait for it) is found before COMMIT.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from psycopg import sql
from snowflake.connector.errors import Error

from etl_core.destination.snowflake import pending
from etl_core.destination.snowflake.connection import FILES, WORK_PREFIX, Link
from etl_core.destination.snowflake.dialect import STORED_AS, SnowflakeDialect
from etl_core.destination.snowflake.failures import ABSENT, explain, explain_table
from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import NAMESPACE, Query
from etl_core.destination.sql.session import Session
from etl_core.errors import DestinationUnavailable
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema

MADE_PREFIX = "made$"
_TURNS = sql.Identifier(NAMESPACE, "turns")
_LONGEST_TEXT = 16_777_216
_OLD_SCHEMAS = sql.SQL(
    "SELECT schema_name FROM information_schema.schemata WHERE STARTSWITH(schema_name, ?)"
    " AND created < DATEADD(day, -1, CURRENT_TIMESTAMP())"
)
_OLD_TABLES = sql.SQL(
    "SELECT table_name FROM information_schema.tables WHERE table_schema = ? AND STARTSWITH(table_name, ?)"
    " AND created < DATEADD(day, -1, CURRENT_TIMESTAMP())"
)

SUPPORT = (
    sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(NAMESPACE)),
    sql.SQL("CREATE STAGE IF NOT EXISTS {}").format(FILES),
    *pending.SUPPORT,
    sql.SQL("CREATE TABLE IF NOT EXISTS {} AS SELECT CURRENT_TIMESTAMP() AS taken_at").format(_TURNS),
)
"""The statements that create what is here if it is missing, in this order: `_TURNS` says that all is there."""


class SnowflakeSession(Session):
    """See Session."""

    def __init__(self, link: Link, dialect: SnowflakeDialect, pipeline: str) -> None:
        self._link = link
        self._dialect = dialect
        self._pipeline = pipeline
        self._places: dict[TableName, str] = {}
        """Tables of `_etl` in which other tables are until the transaction has ended."""
        self._gone: set[TableName] = set()
        self._views: dict[TableName, Query | None] = {}
        """The views that are to be made, in order, and to be dropped."""
        self._temporary: dict[str, Query] = {}
        self.made: list[str] = []
        """All tables of `_etl` that were made."""

    def identifier(self, *names: str) -> Query:
        place = self._places.get(TableName(*names)) if len(names) == 2 else None
        return sql.Identifier(*names) if place is None else sql.Identifier(NAMESPACE, place)

    def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._link.run(query, values).fetchall()]

    def execute(self, query: Query, values: Sequence[object] = ()) -> int:
        return max(self._link.run(query, values).rowcount or 0, 0)

    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        self._load(rows)
        return self.execute(query)

    def _load(self, rows: pa.Table | pa.RecordBatchReader) -> None:
        defined = [sql.SQL("{} {}").format(sql.Identifier(_name(field)), _stored_as(field)) for field in rows.schema]
        table = self._new(self._dialect.rows)
        self.define(sql.SQL("CREATE OR REPLACE TABLE {} ({})").format(table, sql.SQL(", ").join(defined)))
        self._link.load(table, _in_decimals(rows) if isinstance(rows, pa.Table) else rows)

    def _new(self, table: Query) -> Query:
        self._temporary[table.as_string(None)] = table
        return table

    def define(self, query: Query) -> None:
        self._link.define(query)

    def put_aside(self, result: Query, query: Query, rows: pa.Table | pa.RecordBatchReader | None = None) -> int:
        if rows is not None:
            self._load(rows)
        create = sql.SQL('CREATE OR REPLACE TABLE {} AS SELECT * FROM ({}) AS "etl$found" LIMIT 0')
        self.define(create.format(self._new(result), query))
        return self.execute(sql.SQL("INSERT INTO {} {}").format(result, query))

    def drop_temporary(self, result: Query) -> None:
        """See Session. It goes when the transaction has ended, which holds it."""

    def rollback(self) -> None:
        self._link.rollback()
        self._places.clear()
        self._gone.clear()
        self._views.clear()

    def columns(self, name: TableName) -> Sequence[StoredColumn]:
        place = TableName(NAMESPACE, self._places[name]) if name in self._places else name
        query = sql.SQL(
            "SELECT column_name, data_type, numeric_precision, numeric_scale,"
            " character_maximum_length, column_default FROM information_schema.columns"
            " WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position"
        )
        return [
            StoredColumn(column, _spelled(*kind), default)
            for column, *kind, default in self.fetch(query, (place.namespace, place.name))
        ]

    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:
        query = sql.SQL("SELECT table_schema, table_name FROM information_schema.tables")
        found = self.fetch(query if views else query + sql.SQL(" WHERE table_type = 'BASE TABLE'"))
        there = {(namespace, name) for namespace, name in found if not namespace.startswith(WORK_PREFIX)}
        there -= {(name.namespace, name.name) for name in self._gone}
        if views:
            there -= {(name.namespace, name.name) for name, query in self._views.items() if query is None}
            there |= {(name.namespace, name.name) for name, query in self._views.items() if query is not None}
        return [*(there | {(name.namespace, name.name) for name in self._places})]

    def additions(self, name: TableName, ours: Collection[str]) -> Additions:
        return Additions(tuple(column for column in self.columns(name) if column.name not in ours))

    @contextmanager
    def made_anew(self, schema: TableSchema, additions: Additions) -> Iterator[Query]:
        """See Session. A clone of what is made replaces the table after COMMIT."""
        defined = [
            sql.SQL("{} {}").format(sql.Identifier(column.name), statements.type_name(self._dialect, column))
            for column in schema.columns
        ]
        defined += [
            sql.SQL("{} {}").format(
                sql.Identifier(column.name),
                sql.SQL(column.type if column.default is None else f"{column.type} DEFAULT {column.default}"),
            )
            for column in additions.columns
        ]
        made = self._make()
        place = sql.Identifier(NAMESPACE, made)
        self.define(sql.SQL("CREATE TABLE {} ({})").format(place, sql.SQL(", ").join(defined)))
        yield place
        self._put(schema.name, made)

    def rename(self, before: TableName, name: TableName) -> int:
        """See Session. The rows are written anew, within Snowflake."""
        copied = 0
        made = self._places.pop(before, None)
        if made is None:
            made = self._make()
            there, place = self.identifier(before.namespace, before.name), sql.Identifier(NAMESPACE, made)
            self.define(sql.SQL("CREATE TABLE {} LIKE {} COPY GRANTS").format(place, there))
            copied = self.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(place, there))
        self._gone.add(before)
        self._put(name, made)
        return copied

    def drop_table(self, name: TableName) -> None:
        self._places.pop(name, None)
        self._gone.add(name)

    def _make(self) -> str:
        self.made.append(f"{MADE_PREFIX}{self._pipeline}${secrets.token_hex(8)}")
        return self.made[-1]

    def _put(self, name: TableName, made: str) -> None:
        self._places[name] = made
        self._gone.discard(name)

    def create_view(self, view: TableName, query: Query) -> None:
        self._views.pop(view, None)
        self._views[view] = query

    def drop_view(self, view: TableName) -> None:
        self._views[view] = None

    def within_view(self, name: TableName) -> Query:
        return pending.Shown(name.namespace, name.name)

    @contextmanager
    def table_errors(self, name: TableName) -> Iterator[None]:
        try:
            yield
        except Error as error:
            raise explain_table(error, name) from error

    def is_absent(self, error: Exception) -> bool:
        return isinstance(error, Error) and error.errno in ABSENT

    def note_pending(self) -> bool:
        """Writes down what is to be done after COMMIT; whether there is something."""
        steps: list[tuple[TableName, str | None]] = [*self._places.items(), *((name, None) for name in self._gone)]
        pending.note_tables(self._link, self._pipeline, steps)
        pending.note_views(self._link, self._pipeline, self._views, self._places)
        return bool(steps or self._views)

    def clean(self) -> None:
        """Drops what only the transaction has needed."""
        kept = set(self._places.values())
        unused = [sql.Identifier(NAMESPACE, made) for made in self.made if made not in kept]
        for table in (*self._temporary.values(), *unused):
            self.define(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
        self._temporary.clear()


class SnowflakeDatabase:
    """See Database. Keeps a pair of connections for the next transaction. Used by several threads."""

    def __init__(self, take: Any, keep: Any, dialect: SnowflakeDialect, pipeline: str) -> None:
        self._take = take
        self._keep = keep
        self._dialect = dialect
        self._pipeline = pipeline
        self.last_seconds = 0.0
        """How long the statements of the last transaction took."""

    def exists(self) -> bool:
        return True

    @contextmanager
    def open(self) -> Iterator[Link]:
        """A pair of connections outside of a transaction, once what is pending is done."""
        with self._link() as link:
            self._finish(link)
            yield link

    @contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[SnowflakeSession]:  # noqa: ARG002
        with self.open() as link:
            yield SnowflakeSession(link, self._dialect, self._pipeline)

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[SnowflakeSession]:  # noqa: ARG002
        with self._link() as link:
            link.seconds = 0.0
            is_fenced = self._begin(link)
            session = SnowflakeSession(link, self._dialect, self._pipeline)
            began = _transaction_of(session)
            try:
                yield session
                has_pending = session.note_pending()
                if is_fenced and _transaction_of(session) != began:
                    raise DestinationUnavailable(
                        "Snowflake has ended the transaction, as others waited for it; nothing of it was applied"
                    )
            except BaseException:
                with suppress(Error):
                    session.rollback()
                    session.clean()
                raise
            link.commit()
            if has_pending:
                self._finish(link)
            session.clean()
            self.last_seconds = link.seconds

    def create(self) -> None:
        """Creates what sessions need. Idempotent. Drops what transactions that were killed have left."""
        with self._link() as link:
            for statement in SUPPORT:
                link.define(statement)
            self._finish(link)
            for (name,) in link.run(_OLD_SCHEMAS, (f"{WORK_PREFIX}{self._pipeline}$",)).fetchall():
                link.define(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
            for (name,) in link.run(_OLD_TABLES, (NAMESPACE, f"{MADE_PREFIX}{self._pipeline}$")).fetchall():
                link.define(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(NAMESPACE, name)))

    @contextmanager
    def _link(self) -> Iterator[Link]:
        """A pair of connections, kept if nothing failed."""
        link = None
        try:
            link = self._take()
            yield link
        except Error as error:
            if link is not None:
                link.close()
            raise explain(error) from error
        except BaseException:
            if link is not None:
                link.close()
            raise
        self._keep(link)

    def _begin(self, link: Link) -> bool:
        """Begins a transaction in this writer's turn; False where there is no bookkeeping yet."""
        while True:
            link.begin()
            try:
                link.run(sql.SQL("UPDATE {} SET taken_at = CURRENT_TIMESTAMP()").format(_TURNS))
            except Error as error:
                if error.errno not in ABSENT:
                    raise
                link.rollback()
                link.begin()
                return False
            if not pending.is_pending(link, self._pipeline):
                return True
            link.rollback()
            self._finish(link)

    def _finish(self, link: Link) -> None:
        """Does what committed transactions have written down."""
        if not pending.is_pending(link, self._pipeline):
            return
        link.begin()
        link.run(sql.SQL("UPDATE {} SET taken_at = CURRENT_TIMESTAMP()").format(_TURNS))
        pending.finish(link, self._pipeline)
        link.rollback()


def _transaction_of(session: SnowflakeSession) -> object:
    return session.fetch(sql.SQL("SELECT CURRENT_TRANSACTION()"))[0][0]


def _spelled(kind: str, precision: int | None, scale: int | None, length: int | None) -> str:
    """A column's type as DDL has it."""
    if kind == "NUMBER":
        return f"NUMBER({precision},{scale})"
    if kind == "TEXT":
        return "VARCHAR" if length is None or length >= _LONGEST_TEXT else f"VARCHAR({length})"
    return kind


def _name(field: pa.Field[Any]) -> str:
    """The column's: what the bookkeeping hands over is named without quotes, which is upper case."""
    return field.name.upper() if _is_position(field) else field.name


def _stored_as(field: pa.Field[Any]) -> Query:
    return sql.SQL((field.metadata or {}).get(STORED_AS, b"NUMBER(20,0)").decode())


def _is_position(field: pa.Field[Any]) -> bool:
    return STORED_AS not in (field.metadata or {}) and "$" not in field.name


def _in_decimals(rows: pa.Table) -> pa.Table:
    """Rows in which the bookkeeping's positions are numbers that Parquet has, under the names of their columns."""
    for at, field in enumerate(rows.schema):
        if _is_position(field):
            rows = rows.set_column(at, _name(field), rows.column(at).cast(pa.decimal128(20, 0)))
    return rows
