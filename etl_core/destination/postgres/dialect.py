"""How PostgreSQL spells what a table and its bookkeeping need.

Rows come as text, most of it the source's own (`EVERY_VALUE`) and the rest by `texts`, in a temporary table whose
columns have the stored types, so that each value is parsed once and exactly. Keys are compared by `=`, which an index
serves; rows without a key by the text of the whole row, which hashes, whatever types it has.

An lsn is numeric(20): bigint has 63 bits for a number.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, LiteralString

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from etl_core.destination.postgres.types import TypeNames, carried, is_enum, is_ordered, type_change, type_name
from etl_core.destination.postgres.versions import FUNCTIONS, LOGS, PostgresVersions
from etl_core.destination.sql.dialect import Dialect, Query, Values
from etl_core.destination.sql.texts import as_texts
from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column

STORED_AS = b"etl.stored_as"
"""The key in a handed over field's metadata that has the type of its column in the temporary table."""


class PostgresDialect(Dialect):
    """See Dialect."""

    product = "PostgreSQL"
    rows = sql.Identifier("pg_temp", "etl$rows")
    placeholder = sql.SQL("%s")
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        # Two that create it at once would refuse each other.
        "SELECT pg_advisory_xact_lock(5498107)",
        "CREATE SCHEMA IF NOT EXISTS {namespace}",
        """
        CREATE TABLE IF NOT EXISTS {watermarks} (
            pipeline text NOT NULL, table_id bigint NOT NULL, namespace text NOT NULL, name text NOT NULL,
            lsn numeric(20), attnums jsonb NOT NULL, updated_at timestamptz NOT NULL, PRIMARY KEY (namespace, name))
        """,
        """
        CREATE TABLE IF NOT EXISTS {streams} (
            pipeline text PRIMARY KEY, lsn numeric(20) NOT NULL, updated_at timestamptz NOT NULL, incarnation text)
        """,
        LOGS,
        *FUNCTIONS,
    )
    reserved = frozenset({"information_schema", "pg_catalog", "pg_toast"})
    row_id = "ctid"
    versions = PostgresVersions()
    views_hold_columns = True
    longest_name = 63

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def known(self) -> TypeNames:
        """The types of the database that are not built in, as the session that this thread is in knows them."""
        known: TypeNames = getattr(self._of_thread, "known", {})
        return known

    @known.setter
    def known(self, known: TypeNames) -> None:
        self._of_thread.known = known

    def temporary(self, name: str) -> Query:
        return sql.Identifier("pg_temp", name)

    def fold(self, name: str) -> str:
        return name

    def type_name(self, column: Column) -> str:
        return type_name(column, self.known)

    def type_change(self, stored: str, column: Column) -> TypeChange:
        return type_change(stored, column, self.known)

    def cast_in(self, value: Query, column: Column) -> Query:
        return sql.SQL("CAST({} AS {})").format(value, sql.SQL(self.type_name(column)))

    def cast_out(self, value: Query, column: Column) -> Query:  # noqa: ARG002 - rows are read as text
        return value

    def carried(self, value: Query, stored: str, column: Column) -> Query | None:
        same = super().carried(value, stored, column)
        return same if same is not None else carried(value, stored, self.type_name(column))

    def arrow_field(self, column: Column) -> pa.Field[Any]:
        return pa.field(column.name, pa.string(), metadata={STORED_AS: self.type_name(column).encode()})

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:
        if isinstance(values, pa.ChunkedArray):
            return pa.chunked_array([as_texts(chunk, column, table) for chunk in values.chunks], pa.string())
        return as_texts(values, column, table)

    def dump_attnums(self, attnums: Mapping[str, int]) -> Jsonb:
        return Jsonb(dict(attnums))

    def load_attnums(self, stored: Any) -> Mapping[str, int]:
        return dict(stored)

    def same(self, left: Query, right: Query, column: Column) -> Query:
        if is_enum(column, self.known):  # it is stored as text if the type came later; an enum is cast at no cost
            return sql.SQL("{} = {}").format(self.cast_in(left, column), self.cast_in(right, column))
        if is_ordered(column, self.known):
            return sql.SQL("{} = {}").format(left, right)
        return sql.SQL("CAST({} AS text) = CAST({} AS text)").format(left, right)

    def one_of_each(self, query: Query, key: Query) -> Query:
        return sql.SQL("SELECT DISTINCT ON ({}) * FROM ({}) AS k").format(key, query)

    def row_values(self, alias: str, columns: Sequence[Column]) -> list[Query]:
        names = sql.SQL(", ").join(sql.Identifier(alias, column.name) for column in columns)
        return [sql.SQL("CAST(ROW({}) AS text)").format(names)]

    def same_row(self, left: Query, right: Query) -> Query:
        return sql.SQL("{} = {}").format(left, right)
