"""How SQLite spells what a table and its bookkeeping need.

A column is declared as `"REAL double"`: SQLite reads the first word, and the second tells a column of another type.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, LiteralString

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql.dialect import Query
from etl_core.destination.sql.driver import DriverDialect
from etl_core.destination.sql.plain import to_plain
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.arrow import arrow_type

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NOWHERE = TableName("", "")


class SqliteDialect(DriverDialect):
    """See Dialect."""

    product = "SQLite"
    rows = sql.Identifier("temp", "etl$rows")
    placeholder = sql.SQL("?")
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        "CREATE TABLE IF NOT EXISTS {watermarks} (pipeline TEXT, table_id INTEGER, namespace TEXT, name TEXT, lsn TEXT,"
        " attnums TEXT, updated_at TEXT)",
        "CREATE TABLE IF NOT EXISTS {streams} (pipeline TEXT, lsn TEXT, updated_at TEXT, incarnation TEXT)",
    )
    stored_types: ClassVar[Mapping[type, str]] = {int: "INTEGER", float: "REAL", bytes: "BLOB", str: "TEXT"}
    row_id = "rowid"
    finds_keys_by_in = True

    def temporary(self, name: str) -> Query:
        return sql.Identifier("temp", name)

    def fold(self, name: str) -> str:
        return name.translate(_LOWER)

    def type_name(self, column: Column) -> str:
        kind: Any = arrow_type(column)
        told = f"decimal of scale {kind.scale}" if pa.types.is_decimal(kind) else str(kind)  # one text, however precise
        told = re.sub("int", "i", told, flags=re.IGNORECASE)  # INT anywhere would make it a column of integers
        return sql.Identifier(f"{super().type_name(column)} {told}").as_string(None)

    def carried(self, value: Query, stored: str, column: Column) -> Query | None:
        wanted = self.type_name(column)
        if wanted == '"TEXT string"' and re.match('"INTEGER u?i|"TEXT decimal', stored):
            return sql.SQL("CAST({} AS TEXT)").format(value)
        bits = re.fullmatch(r'"INTEGER (u?)i(\d+)"', wanted)
        if bits is None or not re.fullmatch(r'"INTEGER u?i\d+"|"TEXT string"', stored):
            return super().carried(value, stored, column)
        size = 1 << int(bits[2]) - (not bits[1])
        query = "CASE WHEN CAST(CAST({v} AS INTEGER) AS TEXT) = CAST({v} AS TEXT) AND CAST({v} AS INTEGER)"
        query += " BETWEEN {low} AND {high} THEN CAST({v} AS INTEGER) END"
        return sql.SQL(query).format(v=value, low=sql.Literal(0 if bits[1] else -size), high=sql.Literal(size - 1))

    def moment(self, moment: datetime, column: Column) -> Query:
        values = pa.array([moment], arrow_type(column))
        return sql.Literal(to_plain(values, column, _NOWHERE)[0].as_py())

    def same(self, left: Query, right: Query, column: Column) -> Query:  # noqa: ARG002
        return sql.SQL("{} = {}").format(left, right)  # which an index finds

    def dump_attnums(self, attnums: Mapping[str, int]) -> str:
        return json.dumps(attnums)

    def load_attnums(self, stored: Any) -> Mapping[str, int]:
        return dict(json.loads(stored))


DIALECT = SqliteDialect()
