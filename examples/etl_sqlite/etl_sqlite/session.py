"""Statements in a transaction of a SQLite file.

SQLite has no namespaces: a relation is called `namespace.name`, and %2E stands for a dot within one of the two.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql.additions import StoredColumn
from etl_core.destination.sql.dialect import Query
from etl_core.destination.sql.driver import DriverSession
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema
from etl_sqlite.dialect import DIALECT
from etl_sqlite.failures import explain_table, is_absent

_TEXTS = {"nan": "NaN", "-0.0": "minus 0"}
_NUMBERS = {"NaN": math.nan, "minus 0": -0.0}
"""Floats that SQLite takes for NULL and for 0: they are texts in their column."""


class SqliteSession(DriverSession):
    """See Session."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, DIALECT)

    def plain_values(self, values: pa.Array[Any]) -> list[Any]:
        found = super().plain_values(values)
        return [_TEXTS.get(repr(value), value) for value in found] if pa.types.is_floating(values.type) else found

    def stored_values(self, values: Sequence[Any], kind: type) -> Sequence[Any]:
        return [_NUMBERS.get(value, value) for value in values] if kind is float else values

    def identifier(self, *names: str) -> Query:
        return sql.Identifier("main", _joined(*names))

    def create_namespace(self, namespace: str) -> None:
        """A namespace is a part of a name."""

    def columns(self, name: TableName) -> Sequence[StoredColumn]:
        query = sql.SQL("SELECT name, type, dflt_value FROM pragma_table_info(?, 'main')")
        found = self.fetch(query, [_joined(name.namespace, name.name)])
        return [StoredColumn(column, sql.Identifier(kind).as_string(None), default) for column, kind, default in found]

    def relations(self, *, views: bool) -> Sequence[tuple[str, str]]:
        query = sql.SQL("SELECT name FROM main.sqlite_schema WHERE type IN ('table', {})")
        found = [name.split(".") for (name,) in self.fetch(query.format("view" if views else "table"))]
        return [(unquote(names[0]), unquote(names[1])) for names in found if len(names) == 2]

    def rename(self, before: TableName, name: TableName) -> int:
        self.will_alter(before)
        names = [_joined(before.namespace, before.name), "etl$renamed", _joined(name.namespace, name.name)]
        for old, new in pairwise(names):  # by way of a third name, as two may differ by case alone
            self.execute(sql.SQL("ALTER TABLE main.{} RENAME TO {}").format(*map(sql.Identifier, (old, new))))
        return 0

    def will_alter(self, name: TableName) -> None:
        self.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(self.identifier(name.namespace, name.name, "key")))

    def settle_key(self, schema: TableSchema) -> None:
        names = schema.name.namespace, schema.name.name
        key = sql.SQL(", ").join(map(sql.Identifier, schema.key))
        if schema.key:
            query = sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})")
            self.execute(query.format(self.identifier(*names, "key"), sql.Identifier(_joined(*names)), key))

    @contextmanager
    def table_errors(self, name: TableName) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain_table(error, name) from None

    def is_absent(self, error: Exception) -> bool:
        return is_absent(error)


def _joined(*names: str) -> str:
    return ".".join(name.replace("%", "%25").replace(".", "%2E") for name in names)
