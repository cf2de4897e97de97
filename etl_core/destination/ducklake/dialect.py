"""How a table and its bookkeeping are spelled in DuckLake, where that is not as in a DuckDB file.

DuckLake has no BIT, no ENUM and no array of a fixed length, so they are text and lists. It has types whose values do
not all survive, so they are text as well: Parquet keeps of a time with time zone the moment in UTC, and of an interval
milliseconds and nothing negative; what is written as JSON is not always read back.

A table whose rows the same transaction changed can be altered, as one of a DuckDB file cannot.
"""

from __future__ import annotations

import re
from typing import ClassVar, LiteralString

from psycopg import sql

from etl_core.destination.duckdb_sql.dialect import DuckDBDialect
from etl_core.destination.duckdb_sql.negative_zero import refuse_negative_zero
from etl_core.destination.duckdb_sql.types import duckdb_type
from etl_core.destination.sql.dialect import Query, Values
from etl_core.identifiers import TableName
from etl_core.schema.table import Column

_AS_TEXT = re.compile(r"(JSON|BIT|TIME WITH TIME ZONE|ENUM\(.*\))((\[\])*)", re.DOTALL)
"""Types whose Arrow values are text already."""
_INTERVAL = re.compile(r"(?<![\w\"])INTERVAL(?![\w\"])")
_FIXED = re.compile(r"(FLOAT|DOUBLE)\[\d+\]")


class DuckLakeDialect(DuckDBDialect):
    """See Dialect."""

    product = "DuckLake"
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        "CREATE SCHEMA IF NOT EXISTS {namespace}",
        """
        CREATE TABLE IF NOT EXISTS {watermarks} (
            pipeline VARCHAR NOT NULL, table_id UINTEGER NOT NULL, namespace VARCHAR NOT NULL, name VARCHAR NOT NULL,
            lsn UBIGINT, attnums STRUCT(name VARCHAR, attnum SMALLINT)[] NOT NULL, updated_at TIMESTAMPTZ NOT NULL)
        """,
        """
        CREATE TABLE IF NOT EXISTS {streams} (
            pipeline VARCHAR NOT NULL, lsn UBIGINT NOT NULL, updated_at TIMESTAMPTZ NOT NULL, incarnation VARCHAR)
        """,
        """
        CREATE TABLE IF NOT EXISTS {logs} (
            pipeline VARCHAR NOT NULL, table_id UINTEGER NOT NULL, since UBIGINT, namespace VARCHAR, name VARCHAR,
            views VARCHAR)
        """,
        "CREATE TABLE IF NOT EXISTS {namespace}.turns (transactions BIGINT NOT NULL, compacted_at TIMESTAMPTZ)",
        "INSERT INTO {namespace}.turns SELECT 0, NULL WHERE NOT EXISTS (SELECT 1 FROM {namespace}.turns)",
    )
    alters_changed_tables = True
    replaces_by_select = False

    def type_name(self, column: Column) -> str:
        stored = duckdb_type(column)
        text = _AS_TEXT.fullmatch(stored)
        return f"VARCHAR{text[2]}" if text else _FIXED.sub(r"\1[]", _INTERVAL.sub("VARCHAR", stored))

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:
        refuse_negative_zero(values, column, table, self.product)
        return values

    def cast_in(self, value: Query, column: Column) -> Query:
        if _is_converted(column):
            return sql.SQL("CAST({} AS {})").format(value, sql.SQL(self.type_name(column)))
        return super().cast_in(value, column)

    def cast_out(self, value: Query, column: Column) -> Query:
        if _is_converted(column):
            return sql.SQL("CAST({} AS {})").format(value, sql.SQL(duckdb_type(column)))
        return super().cast_out(value, column)


def _is_converted(column: Column) -> bool:
    """Whether the Arrow values are of a type that DuckDB has and DuckLake does not keep."""
    of_duckdb = duckdb_type(column)
    return not _AS_TEXT.fullmatch(of_duckdb) and bool(_INTERVAL.search(of_duckdb) or _FIXED.search(of_duckdb))


DIALECT = DuckLakeDialect()
