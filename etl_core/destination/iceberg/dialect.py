"""How an Iceberg table and the bookkeeping are spelled in the DuckDB that writes them.

An lsn is decimal(20,0): Iceberg's long has 63 bits for a number. Attribute numbers are JSON.

Views of versions are not made: another engine would not read DuckDB's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, LiteralString

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from etl_core.destination.duckdb_sql.dialect import DuckDBDialect
from etl_core.destination.duckdb_sql.negative_zero import refuse_negative_zero
from etl_core.destination.iceberg.types import handed_over, iceberg_type, iceberg_type_change
from etl_core.destination.sql.dialect import Query, Values
from etl_core.destination.sql.type_change import TypeChange
from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column


class IcebergDialect(DuckDBDialect):
    """See Dialect."""

    product = "Iceberg"
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        "CREATE SCHEMA IF NOT EXISTS {namespace}",
        """
        CREATE TABLE IF NOT EXISTS {watermarks} (
            pipeline VARCHAR, table_id BIGINT, namespace VARCHAR, name VARCHAR, lsn DECIMAL(20,0), attnums VARCHAR,
            updated_at TIMESTAMPTZ)
        """,
        """
        CREATE TABLE IF NOT EXISTS {streams} (
            pipeline VARCHAR, lsn DECIMAL(20,0), updated_at TIMESTAMPTZ, incarnation VARCHAR)
        """,
    )
    namespace = "etl_bookkeeping"  # some catalogs have no names that begin with _
    alters_changed_tables = True
    replaces_by_select = False
    row_id = None
    versions = None

    def type_name(self, column: Column) -> str:
        return iceberg_type(column)

    def type_change(self, stored: str, column: Column) -> TypeChange:
        return iceberg_type_change(stored, iceberg_type(column))

    def cast_in(self, value: Query, column: Column) -> Query:
        return _cast(value, handed_over(column), iceberg_type(column))

    def cast_out(self, value: Query, column: Column) -> Query:
        return _cast(value, iceberg_type(column), handed_over(column))

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:
        refuse_negative_zero(values, column, table, self.product)
        kind = values.type
        if pa.types.is_date32(kind) or pa.types.is_timestamp(kind):
            limit = 2**31 - 1 if pa.types.is_date32(kind) else 2**63 - 1
            plain: Any = values.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
            found: Any = pc.min_max(plain).as_py()
            if found["max"] == limit or (found["min"] is not None and found["min"] <= -limit):
                raise ValueOutOfRange(
                    f"column {column.name} of {table} has an infinite date or timestamp, which Iceberg does not have",
                    table=str(table),
                    hint=f"types: {{out_of_range: null}} for the column, or leave it out; then: etl resync {table}",
                )
        return values

    def dump_attnums(self, attnums: Mapping[str, int]) -> Any:
        return json.dumps(dict(attnums))

    def load_attnums(self, stored: Any) -> Mapping[str, int]:
        loaded: Mapping[str, int] = json.loads(stored)
        return loaded


def _cast(value: Query, before: str, after: str) -> Query:
    return value if before == after else sql.SQL("CAST({} AS {})").format(value, sql.SQL(after))


DIALECT = IcebergDialect()
