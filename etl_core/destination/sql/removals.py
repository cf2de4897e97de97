"""The statements that remove rows of a table without a key: of equal rows as many as are to go.

Where the product gives every row something that tells it from its equals (`Dialect.row_id`), so many of them are
deleted. Elsewhere all of them are, and those that stay are inserted again from the rows that were there.

A row is found by all its columns, which reads the table once for each part that removes any: measured with 2 M rows of
eight columns in DuckDB, 0.2 s for 1,000 rows and 0.26 s for 100,000. A stored hash of the row would make that 0.01 and
0.04 s; readers would see it, and every inserted row would cost more.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql import statements
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.session import Session
from etl_core.errors import COPIED_AGAIN, CopiedAgain, TableError
from etl_core.schema.table import Column, TableSchema

_NUMBER, _WANTED, _ROW, _NTH = (sql.Identifier(f"etl${name}") for name in ("number", "wanted", "row", "nth"))


def refuses_removals(dialect: Dialect, schema: TableSchema) -> str | None:
    """Why rows of a table without a key cannot be removed, as the end of a sentence; None if they can."""
    if dialect.row_id is None:
        return None
    for name in schema.column_names:
        if dialect.fold(name) == dialect.fold(dialect.row_id):
            return (
                f"its column {name} hides the row numbers of {dialect.product} (columns: {{rename: …}} gives it another"
                " name there)"
            )
    return None


def remove_rows(dialect: Dialect, session: Session, table: Query, schema: TableSchema, rows: pa.Table) -> int:
    """Removes one equal row for each of `rows`, which have the Arrow schema of `dialect`; returns how many.

    Raises CopiedAgain if that many are not there.
    """
    reason = refuses_removals(dialect, schema)
    if reason is not None:
        raise TableError(
            f"rows of {schema.name}, which has no key, cannot be removed: {reason}",
            table=str(schema.name),
            hint=f"add a primary key to it; then: etl resync {schema.name}",
        )
    wanted = dialect.temporary("etl$removed")
    session.put_aside(wanted, _count(dialect, schema.columns), rows)
    if dialect.row_id is None:
        removed = _replace(dialect, session, table, wanted, schema.columns)
    else:
        removed = session.execute(_delete(dialect, table, wanted, schema.columns, sql.Identifier(dialect.row_id)))
    session.drop_temporary(wanted)
    if removed != rows.num_rows:
        raise CopiedAgain(
            f"{schema.name}: {rows.num_rows - removed} of {rows.num_rows} rows to remove are not there, so the table"
            " was changed from outside",
            table=str(schema.name),
            hint=COPIED_AGAIN,
        )
    return removed


def _replace(dialect: Dialect, session: Session, table: Query, wanted: Query, columns: Sequence[Column]) -> int:
    """Deletes the rows that are equal to those `wanted`, and inserts again what is beyond; returns the difference."""
    stay = dialect.temporary("etl$stay")
    kept = session.put_aside(stay, _beyond(dialect, table, wanted, columns))
    deleted = session.execute(_delete_equal(dialect, table, wanted, columns))
    if kept:
        session.execute(statements.insert_all(table, [column.name for column in columns], stay))
    session.drop_temporary(stay)
    return deleted - kept


def _count(dialect: Dialect, columns: Sequence[Column]) -> Query:
    """Each of the Arrow rows once, with its number and how often it was there.

    It is there by what tells rows apart: columns `etl$value0` and so on.
    """
    values = dialect.row_values("v", columns)
    return sql.SQL(
        "SELECT {}, count(*) AS {}, row_number() OVER (ORDER BY count(*)) AS {}"
        ' FROM (SELECT {} FROM {} AS "p") AS "v" GROUP BY {}'
    ).format(
        sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(value, sql.Identifier(_value(at))) for at, value in enumerate(values)
        ),
        _WANTED,
        _NUMBER,
        statements.converted(dialect, columns),
        dialect.rows,
        sql.SQL(", ").join(values),
    )


def _delete(dialect: Dialect, table: Query, wanted: Query, columns: Sequence[Column], row_id: Query) -> Query:
    """Deletes as many rows as are `wanted` of those that are equal to each."""
    return sql.SQL(
        "DELETE FROM {table} WHERE {row_id} IN (SELECT {row} FROM (SELECT t.{row_id} AS {row}, k.{wanted} AS {wanted},"
        " row_number() OVER (PARTITION BY k.{number}) AS {nth} FROM {table} AS t JOIN {counted} AS k ON {same}) AS r"
        " WHERE {nth} <= {wanted})"
    ).format(
        table=table,
        row_id=row_id,
        row=_ROW,
        wanted=_WANTED,
        number=_NUMBER,
        nth=_NTH,
        counted=wanted,
        same=_is_wanted(dialect, columns),
    )


def _beyond(dialect: Dialect, table: Query, wanted: Query, columns: Sequence[Column]) -> Query:
    """Of the rows that are equal to each of those `wanted` what is there beyond that number, as it is stored."""
    return sql.SQL(
        'SELECT {names} FROM (SELECT {values}, "k".{wanted} AS {wanted}, row_number() OVER (PARTITION BY "k".{number}'
        ' ORDER BY "k".{number}) AS {nth} FROM {table} AS "t" JOIN {counted} AS "k" ON {same}) AS "r"'
        " WHERE {nth} > {wanted}"
    ).format(
        names=sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
        values=sql.SQL(", ").join(sql.Identifier("t", column.name) for column in columns),
        wanted=_WANTED,
        number=_NUMBER,
        nth=_NTH,
        table=table,
        counted=wanted,
        same=_is_wanted(dialect, columns),
    )


def _delete_equal(dialect: Dialect, table: Query, wanted: Query, columns: Sequence[Column]) -> Query:
    return sql.SQL('DELETE FROM {} AS "t" WHERE EXISTS (SELECT 1 FROM {} AS "k" WHERE {})').format(
        table, wanted, _is_wanted(dialect, columns)
    )


def _is_wanted(dialect: Dialect, columns: Sequence[Column]) -> Query:
    """Whether the row t is equal to the one k."""
    values = enumerate(dialect.row_values("t", columns))
    return sql.SQL(" AND ").join(dialect.same_row(value, sql.Identifier("k", _value(at))) for at, value in values)


def _value(at: int) -> str:
    return f"etl$value{at}"
