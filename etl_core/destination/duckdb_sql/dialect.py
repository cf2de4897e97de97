"""How DuckDB spells what a table and its bookkeeping need.

LSNs are UBIGINT, so that they compare as numbers. Writers of one file take turns, so the bookkeeping has no keys.

DuckDB 1.5 refuses to commit an ALTER of a table whose rows the same transaction deleted or updated, so a schema change
in the middle of a transaction rebuilds the table instead.

A PRIMARY KEY (an ART index) on the tables themselves was measured at 4.8 against 2.9 µs a change on a 2 M-row table
(DuckDB 2.0; 4.1 against 3.0 on 1.5), most of it in building and checkpointing the index. Deletes gain nothing from it,
as DuckDB joins by scanning the key column with or without one, and 1.5 does not take back the space of deleted rows of
a table that has one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar, LiteralString

import pyarrow as pa
from psycopg import sql

from etl_core.destination.duckdb_sql.types import duckdb_type, is_cast, tagged_field, text_form, type_change
from etl_core.destination.sql.dialect import Dialect, Query, VersionsDialect
from etl_core.destination.sql.type_change import TypeChange
from etl_core.schema.table import Column

_EXACT = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL\(\d+,\d+\)(\[\])?|VARCHAR|FLOAT|DOUBLE")
"""Types between which DuckDB's cast gives the same value, if it can be cast back to what it was."""
_ALIKE = re.compile(r"\b(FLOAT|DOUBLE|INTERVAL|TIME WITH TIME ZONE)\b")
"""Types with values that DuckDB calls equal and prints differently, such as -0 and 0, or a month and 30 days."""
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class DuckDBVersions(VersionsDialect):
    """See VersionsDialect."""

    def position(self, lsn: Query, seq: Query) -> Query:
        return sql.SQL("CAST({} AS HUGEINT) * 4294967296 + {}").format(lsn, seq)

    def lists(self, names: Query, name: str) -> Query:
        return sql.SQL("coalesce(list_contains({}, {}), FALSE)").format(names, sql.Literal(name))

    def carried(
        self,
        value: Query,
        name: str,
        number: int,  # noqa: ARG002
        kind: Query,
        is_sent: Query,
        is_moved: Query,
        place: Query,
        by_key: Query,
    ) -> Query:
        return sql.SQL(
            "last_value(CASE WHEN {} THEN struct_pack(value := {}, moved := CAST(NULL AS HUGEINT)) WHEN {} THEN"
            " struct_pack(value := CAST(NULL AS {}), moved := {}) END IGNORE NULLS) OVER ({}) AS {}"
        ).format(is_sent, value, is_moved, kind, place, by_key, sql.Identifier(name))

    def value(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.SQL("struct_extract({}, 'value')").format(sql.Identifier(alias, name))

    def moved(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.SQL("struct_extract({}, 'moved')").format(sql.Identifier(alias, name))

    def next_known(self, value: Query, is_known: Query, partition: Query, order: Query) -> Query:
        return sql.SQL(
            "struct_extract(first_value(CASE WHEN {} THEN struct_pack(value := {}) END IGNORE NULLS) OVER"
            " (PARTITION BY {} ORDER BY {} ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING), 'value')"
        ).format(is_known, value, partition, order)

    def renamed(self, names: Query, now: Mapping[str, str | None]) -> Query:
        gone = [sql.Literal(name) for name, new in now.items() if new is None]
        cases = [
            sql.SQL("WHEN {} THEN {}").format(sql.Literal(name), sql.Literal(new))
            for name, new in now.items()
            if new is not None
        ]
        called = sql.SQL("CASE x {} ELSE x END").format(sql.SQL(" ").join(cases)) if cases else sql.SQL("x")
        stays = sql.SQL("x NOT IN ({})").format(sql.SQL(", ").join(gone)) if gone else sql.SQL("TRUE")
        return sql.SQL("nullif([{} FOR x IN {} IF {}], [])").format(called, names, stays)


class DuckDBDialect(Dialect):
    """See Dialect."""

    product = "DuckDB"
    rows = sql.Identifier("etl_rows_7d41c9")
    placeholder = sql.SQL("?")
    bookkeeping: ClassVar[tuple[LiteralString, ...]] = (
        "CREATE SCHEMA IF NOT EXISTS {namespace}",
        """
        CREATE TABLE IF NOT EXISTS {watermarks} (
            pipeline VARCHAR NOT NULL, table_id UINTEGER NOT NULL, namespace VARCHAR NOT NULL, name VARCHAR NOT NULL,
            lsn UBIGINT, attnums STRUCT(name VARCHAR, attnum SMALLINT)[] NOT NULL, updated_at TIMESTAMPTZ NOT NULL)
        """,
        """
        CREATE TABLE IF NOT EXISTS {streams} (
            pipeline VARCHAR NOT NULL, lsn UBIGINT NOT NULL, updated_at TIMESTAMPTZ NOT NULL)
        """,
        # A column that came later: a file of before has none until then.
        "ALTER TABLE {streams} ADD COLUMN IF NOT EXISTS incarnation VARCHAR",
        """
        CREATE TABLE IF NOT EXISTS {logs} (
            pipeline VARCHAR NOT NULL, table_id UINTEGER NOT NULL, since UBIGINT, namespace VARCHAR, name VARCHAR,
            views VARCHAR)
        """,
    )
    alters_changed_tables = False
    replaces_by_select = True
    row_id: ClassVar[str | None] = "rowid"
    versions: ClassVar[VersionsDialect | None] = DuckDBVersions()

    def temporary(self, name: str) -> Query:
        return sql.Identifier("temp", "main", name)

    def fold(self, name: str) -> str:
        return name.translate(_LOWER)

    def type_name(self, column: Column) -> str:
        return duckdb_type(column)

    def type_change(self, stored: str, column: Column) -> TypeChange:
        return type_change(stored, self.type_name(column))

    def cast_in(self, value: Query, column: Column) -> Query:
        # JSON comes under its own name (see types).
        stored = self.type_name(column)
        return sql.SQL("CAST({} AS {})").format(value, sql.SQL(stored)) if is_cast(stored) else value

    def cast_out(self, value: Query, column: Column) -> Query:
        form = text_form(self.type_name(column))
        return value if form is None else sql.SQL("CAST({} AS {})").format(value, sql.SQL(form))

    def carried(self, value: Query, stored: str, column: Column) -> Query | None:
        wanted = self.type_name(column)
        if (stored, wanted) == ("JSON", "VARCHAR"):
            return sql.SQL("CAST({} AS VARCHAR)").format(value)
        same = super().carried(value, stored, column)
        if same is not None or not (_EXACT.fullmatch(stored) and _EXACT.fullmatch(wanted)):
            return same
        cast = sql.SQL("TRY_CAST({} AS {})").format(value, sql.SQL(wanted))
        back: Query = sql.SQL("TRY_CAST({} AS {})").format(cast, sql.SQL(stored))
        if stored == "VARCHAR" and wanted.startswith("DECIMAL"):
            value, back = _without_last_zeros(value), _without_last_zeros(back)  # which a DECIMAL does not tell apart
        return sql.SQL("CASE WHEN {} = {} THEN {} END").format(back, value, cast)

    def one_of_each(self, query: Query, key: Query) -> Query:
        return sql.SQL("SELECT DISTINCT ON ({}) * FROM ({}) AS k").format(key, query)

    def told_apart(self, value: Query, column: Column) -> Query | None:
        return sql.SQL("CAST({} AS VARCHAR)").format(value) if _ALIKE.search(self.type_name(column)) else None

    def arrow_field(self, column: Column) -> pa.Field[Any]:
        return tagged_field(column, self.type_name(column))

    def dump_attnums(self, attnums: Mapping[str, int]) -> list[dict[str, object]]:
        return [{"name": name, "attnum": attnum} for name, attnum in attnums.items()]

    def load_attnums(self, stored: Any) -> Mapping[str, int]:
        return {entry["name"]: entry["attnum"] for entry in stored}


def _without_last_zeros(text: Query) -> Query:
    return sql.SQL("CASE WHEN contains({t}, '.') THEN rtrim(rtrim({t}, '0'), '.') ELSE {t} END").format(t=text)


DIALECT = DuckDBDialect()
