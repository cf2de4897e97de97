"""The statements that a table needs, the same for every product but for what its `Dialect` spells.

`dialect.rows` are the Arrow rows that `Session.execute_with` is given, under the alias p (f where it is one row that
has a value for each of some columns); t is the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from psycopg import sql

from etl_core.destination.sql.additions import StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.schema.table import Column


def count_rows(table: Query) -> Query:
    return sql.SQL("SELECT count(*) FROM {}").format(table)


def create_schema(namespace: Query) -> Query:
    return sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(namespace)


def select(dialect: Dialect, table: Query, columns: Sequence[Column]) -> Query:
    """The rows in their Arrow types."""
    chosen = [_as(dialect.cast_out(sql.Identifier(c.name), c), c.name) for c in columns]
    return sql.SQL("SELECT {} FROM {}").format(_list(chosen), table)


def create_table(dialect: Dialect, table: Query, columns: Sequence[Column], added: Sequence[StoredColumn]) -> Query:
    """An empty table with our `columns` and a person's."""
    defined = [sql.SQL("{} {}").format(sql.Identifier(c.name), type_name(dialect, c)) for c in columns]
    for c in added:
        default = "" if c.default is None else f" DEFAULT {c.default}"
        defined.append(sql.SQL("{} {}").format(sql.Identifier(c.name), _word(c.type + default)))
    return sql.SQL("CREATE TABLE {} ({})").format(table, _list(defined))


# The rows of a batch and of a copy.


def insert(dialect: Dialect, table: Query, columns: Sequence[Column]) -> Query:
    """Inserts the Arrow rows."""
    names = _names(column.name for column in columns)
    query = sql.SQL('INSERT INTO {} ({}) SELECT {} FROM {} AS "p"')
    return query.format(table, names, converted(dialect, columns), dialect.rows)


def insert_all(table: Query, names: Sequence[str], source: Query) -> Query:
    """Inserts the rows of a table that has columns of these names and of the stored types."""
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(table, _names(names), _names(names), source)


def delete_all(table: Query) -> Query:
    return sql.SQL("DELETE FROM {}").format(table)


def delete_keys(dialect: Dialect, table: Query, key: Sequence[Column]) -> Query:
    """Deletes the rows whose key stands in the Arrow rows; a key may stand there twice."""
    return sql.SQL('DELETE FROM {} AS "t" WHERE {}').format(table, is_among(dialect, "t", key))


def is_among(dialect: Dialect, alias: str, key: Sequence[Column]) -> Query:
    """Whether the key of a row stands in the Arrow rows. May be NULL instead of false where it has a NULL."""
    if dialect.finds_keys_by_in:
        names = _list([sql.Identifier(alias, c.name) for c in key])
        return sql.SQL('({}) IN (SELECT {} FROM {} AS "p")').format(names, converted(dialect, key), dialect.rows)
    same = [dialect.same(sql.Identifier(alias, c.name), sql.Identifier("k", c.name), c) for c in key]
    query = sql.SQL('EXISTS (SELECT 1 FROM (SELECT {} FROM {} AS "p") AS "k" WHERE {})')
    return query.format(converted(dialect, key), dialect.rows, _all(same))


def complete(
    dialect: Dialect,
    table: Query,
    known: Sequence[Column],
    kept: Sequence[str],
    key: Sequence[Column],
    origins: Sequence[str],
) -> Query:
    """The Arrow rows, with the columns `kept` read from `table`.

    `origins` are the names that the columns of the origin key have in the Arrow rows, in the order of `key`.
    """
    read = [sql.Identifier("t", name) for name in kept]
    same = [
        dialect.same(sql.Identifier("t", column.name), dialect.cast_in(sql.Identifier("p", origin), column), column)
        for column, origin in zip(key, origins, strict=True)
    ]
    return sql.SQL('SELECT {}, {} FROM {} AS "p" JOIN {} AS "t" ON {}').format(
        converted(dialect, known), _list(read), dialect.rows, table, _all(same)
    )


def drop(table: Query) -> Query:
    return sql.SQL("DROP TABLE {}").format(table)


# A person's columns, whose values are carried by key.


def keep(table: Query, columns: Sequence[tuple[str, str]]) -> Query:
    """Columns of all rows: (name in `table`, name in the result)."""
    chosen = [_as(sql.Identifier(there), name) for there, name in columns]
    return sql.SQL("SELECT {} FROM {}").format(_list(chosen), table)


def insert_carrying(
    dialect: Dialect,
    table: Query,
    columns: Sequence[Column],
    key: Sequence[Column],
    added: Sequence[StoredColumn],
    source: Query,
) -> Query:
    """Inserts the Arrow rows, with the values that rows of the same key have in `added` in `source`."""
    names = _names([*(column.name for column in columns), *(column.name for column in added)])
    rows = carry(dialect, columns, key, added, source)
    return sql.SQL("INSERT INTO {} ({}) {}").format(table, names, rows)


def carry(
    dialect: Dialect, columns: Sequence[Column], key: Sequence[Column], added: Sequence[StoredColumn], source: Query
) -> Query:
    """The Arrow rows, with the values that rows of their key in `source` have in `added`."""
    there = sql.Identifier("etl$there")
    values = [
        sql.SQL('CASE WHEN "t".{} THEN "t".{} ELSE CAST({} AS {}) END AS {}').format(
            there,
            sql.Identifier(c.name),
            _word("NULL" if c.default is None else c.default),
            _word(c.type),
            sql.Identifier(c.name),
        )
        for c in added
    ]
    same = [dialect.same(sql.Identifier("t", c.name), dialect.cast_in(sql.Identifier("p", c.name), c), c) for c in key]
    names = _names([*(c.name for c in key), *(c.name for c in added)])
    found = sql.SQL("SELECT {}, TRUE AS {} FROM {}").format(names, there, source)
    return sql.SQL('SELECT {}, {} FROM {} AS "p" LEFT JOIN ({}) AS "t" ON {}').format(
        converted(dialect, columns),
        _list(values),
        dialect.rows,
        dialect.one_of_each(found, _names(c.name for c in key)),
        _all(same),
    )


# Alterations.


def rename_column(table: Query, before: str, name: str) -> Query:
    return sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(table, sql.Identifier(before), sql.Identifier(name))


def change_type(dialect: Dialect, table: Query, column: Column) -> Query:
    query = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DATA TYPE {}")
    return query.format(table, sql.Identifier(column.name), type_name(dialect, column))


def add_column(dialect: Dialect, table: Query, column: Column) -> Query:
    query = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}")
    return query.format(table, sql.Identifier(column.name), type_name(dialect, column))


def drop_column(table: Query, name: str) -> Query:
    return sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(table, sql.Identifier(name))


def fill(dialect: Dialect, table: Query, columns: Sequence[Column]) -> Query:
    """Sets `columns` of every row to the values in the one Arrow row."""
    values = [
        sql.SQL("{} = {}").format(sql.Identifier(c.name), dialect.cast_in(sql.Identifier("f", c.name), c))
        for c in columns
    ]
    return sql.SQL('UPDATE {} SET {} FROM {} AS "f"').format(table, _list(values), dialect.rows)


def rebuild(
    dialect: Dialect, table: Query, columns: Sequence[Column], origins: Mapping[str, str], added: Sequence[Column]
) -> Query:
    """The table anew with `columns`; those in `added` have the values in the one Arrow row.

    `origins` are the names that the others have in the table.
    """
    new = {column.name for column in added}
    chosen = [
        _as(
            dialect.cast_in(sql.Identifier("f", c.name), c)
            if c.name in new
            else sql.SQL("CAST({} AS {})").format(sql.Identifier("t", origins[c.name]), type_name(dialect, c)),
            c.name,
        )
        for c in columns
    ]
    return sql.SQL('CREATE OR REPLACE TABLE {} AS SELECT {} FROM {} AS "t" CROSS JOIN {} AS "f"').format(
        table, _list(chosen), table, dialect.rows
    )


def insert_rebuilt(
    dialect: Dialect, table: Query, stay: Sequence[str], added: Sequence[Column], source: Query
) -> Query:
    """Inserts the columns `stay` of all rows of `source`; those in `added` have the values in the one Arrow row."""
    values: list[Query] = [sql.Identifier("t", name) for name in stay]
    values += [dialect.cast_in(sql.Identifier("f", c.name), c) for c in added]
    return sql.SQL('INSERT INTO {} ({}) SELECT {} FROM {} AS "t" CROSS JOIN {} AS "f"').format(
        table, _names([*stay, *(c.name for c in added)]), _list(values), source, dialect.rows
    )


def type_name(dialect: Dialect, column: Column) -> Query:
    return _word(dialect.type_name(column))


def converted(dialect: Dialect, columns: Sequence[Column]) -> Query:
    """The select list that turns the Arrow rows' values into stored ones."""
    return _list([_as(dialect.cast_in(sql.Identifier("p", c.name), c), c.name) for c in columns])


def _as(value: Query, name: str) -> Query:
    return sql.SQL("{} AS {}").format(value, sql.Identifier(name))


def _names(names: Iterable[str]) -> Query:
    return _list([sql.Identifier(name) for name in names])


def _list(parts: Sequence[Query]) -> Query:
    return sql.SQL(", ").join(parts)


def _all(conditions: Sequence[Query]) -> Query:
    return sql.SQL(" AND ").join(conditions)


def _word(known: str) -> Query:
    # Type names of a dialect, and what the product's own catalog says of a table; never a name from the source.
    return sql.SQL(known)
