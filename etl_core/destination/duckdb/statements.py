"""The SQL that only a DuckDB file needs: what makes, compresses and merges it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psycopg import sql

from etl_core.destination.duckdb_sql.types import duckdb_type
from etl_core.destination.sql.dialect import NAMESPACE, Query
from etl_core.schema.table import Column

_LENGTHS = {"VARCHAR": "strlen", "JSON": "strlen", "BLOB": "octet_length"}


def create_file(path: Path, storage_version: str) -> Query:
    """Makes the file, when it is executed in another database."""
    attach = sql.SQL("ATTACH {} AS made (STORAGE_VERSION {})")
    return attach.format(sql.Literal(str(path)), sql.Literal(storage_version))


def note_merge(database: str) -> Query:
    """A change, so that a checkpoint has something to do."""
    table = sql.Identifier(database, NAMESPACE, "merged")
    return sql.SQL("CREATE OR REPLACE TABLE {} AS SELECT now() AS at").format(table)


def text_sizes(table: Query, columns: Sequence[Column]) -> Query | None:
    """One row: the number of rows and the bytes in each column of text and bytea. None without such a column."""
    sizes = [
        sql.SQL("coalesce(sum({}({})), 0)").format(sql.SQL(_LENGTHS[duckdb_type(c)]), sql.Identifier(c.name))
        for c in columns
        if duckdb_type(c) in _LENGTHS
    ]
    return sql.SQL("SELECT count(*), {} FROM {}").format(sql.SQL(", ").join(sizes), table) if sizes else None
