"""How Snowflake spells what a table and its bookkeeping need.

Names are quoted as they are at the source, lower case included. An lsn is NUMBER(20,0). No keys are declared, as
Snowflake enforces none: writers take turns (`session`).

Temporary tables are plain tables of a schema that one connection has for itself, and have no schema in their names:
CREATE TEMPORARY TABLE would commit the transaction.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, LiteralString

import pyarrow as pa
from psycopg import sql

from etl_core.destination.snowflake.types import (
    carried,
    handed_over_as,
    snowflake_type,
    some_value,
    to_snowflake,
    type_change,
)
from etl_core.destination.snowflake.versions import SnowflakeVersions
from etl_core.destination.sql.dialect import Dialect, Query, Values
from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column

STORED_AS = b"etl.stored_as"
"""The key in a handed over field's metadata that has the type of its column in the staging table."""
_TEMPORAL = ("DATE", "TIME")


class SnowflakeDialect(Dialect):
    """See Dialect."""

    product = "Snowflake"
    rows = sql.Identifier("etl$rows")
    placeholder = sql.SQL("?")
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        "CREATE SCHEMA IF NOT EXISTS {namespace}",
        """
        CREATE TABLE IF NOT EXISTS {watermarks} (
            pipeline VARCHAR NOT NULL, table_id NUMBER(10,0) NOT NULL, namespace VARCHAR NOT NULL,
            name VARCHAR NOT NULL, lsn NUMBER(20,0), attnums VARCHAR NOT NULL, updated_at TIMESTAMP_TZ(6) NOT NULL)
        """,
        """
        CREATE TABLE IF NOT EXISTS {streams} (
            pipeline VARCHAR NOT NULL, lsn NUMBER(20,0) NOT NULL, updated_at TIMESTAMP_TZ(6) NOT NULL,
            incarnation VARCHAR)
        """,
        """
        CREATE TABLE IF NOT EXISTS {logs} (
            pipeline VARCHAR NOT NULL, table_id NUMBER(10,0) NOT NULL, since NUMBER(20,0), namespace VARCHAR,
            name VARCHAR, views VARCHAR)
        """,
    )
    reserved = frozenset({"INFORMATION_SCHEMA"})
    longest_name = 255
    alters_in_place = False
    versions = SnowflakeVersions()

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def temporary(self, name: str) -> Query:
        # Another one each time: the transaction holds those that it has filled.
        return sql.Identifier(f"{name}${next(self._numbers)}")

    def fold(self, name: str) -> str:
        return name

    def type_name(self, column: Column) -> str:
        return snowflake_type(column)

    def type_change(self, stored: str, column: Column) -> TypeChange:
        return type_change(stored, column)

    def cast_in(self, value: Query, column: Column) -> Query:
        stored = snowflake_type(column)
        if stored == "BINARY":
            return sql.SQL("TO_BINARY({}, 'HEX')").format(value)
        if stored == "TIMESTAMP_TZ(6)":  # which comes with its offset of hours alone
            value = sql.SQL("{} || ':00'").format(value)
        return sql.SQL("CAST({} AS {})").format(value, sql.SQL(stored)) if stored.startswith(_TEMPORAL) else value

    def cast_out(self, value: Query, column: Column) -> Query:
        stored = snowflake_type(column)
        if stored == "TIMESTAMP_TZ(6)":
            utc = sql.SQL("CAST(CONVERT_TIMEZONE('UTC', {}) AS TIMESTAMP_NTZ(6))").format(value)
            return sql.SQL("CAST({} AS VARCHAR) || '+00'").format(utc)
        is_text = stored.startswith((*_TEMPORAL, "NUMBER"))
        return sql.SQL("CAST({} AS VARCHAR)").format(value) if is_text else value

    def carried(self, value: Query, stored: str, column: Column) -> Query | None:
        return carried(value, stored, column)

    def arrow_field(self, column: Column) -> pa.Field[Any]:
        arrow, stored = handed_over_as(column)
        return pa.field(column.name, arrow, metadata={STORED_AS: stored.encode()})

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:
        return to_snowflake(values, column, table)

    def one_of_each(self, query: Query, key: Query) -> Query:
        return sql.SQL('SELECT * FROM ({}) AS "k" QUALIFY row_number() OVER (PARTITION BY {} ORDER BY {}) = 1').format(
            query, key, key
        )

    def told_apart(self, value: Query, column: Column) -> Query | None:
        # -0 and 0 are equal, and are half a circle apart.
        return sql.SQL("ATAN2({}, -1)").format(value) if snowflake_type(column) == "FLOAT" else None

    def row_values(self, alias: str, columns: Sequence[Column]) -> list[Query]:
        """See Dialect. None of them is NULL, so that `=` compares them: which are is the last one."""
        nulls = [sql.SQL("IFF({} IS NULL, '1', '0')").format(sql.Identifier(alias, column.name)) for column in columns]
        values: list[Query] = []
        for column in columns:
            value, nothing = sql.Identifier(alias, column.name), sql.SQL(some_value(column))
            told = [value, self.told_apart(value, column)]
            values += [sql.SQL("COALESCE({}, {})").format(each, nothing) for each in told if each is not None]
        return [*values, sql.SQL(" || ").join(nulls)]

    def same_row(self, left: Query, right: Query) -> Query:
        return sql.SQL("{} = {}").format(left, right)

    def dump_attnums(self, attnums: Mapping[str, int]) -> str:
        return json.dumps(dict(attnums))

    def load_attnums(self, stored: Any) -> Mapping[str, int]:
        return dict(json.loads(stored))

    def same(self, left: Query, right: Query, column: Column) -> Query:  # noqa: ARG002
        # A correlated subquery is found to be a join by `=` alone.
        return sql.SQL("{} = {}").format(left, right)
