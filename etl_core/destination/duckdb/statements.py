"""The SQL a table needs, composed with every identifier quoted.

DuckDB quotes identifiers as PostgreSQL does, so psycopg's composition serves. Names have three parts: with two, a
namespace called like the file would be ambiguous.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, LiteralString

import duckdb
import pyarrow as pa
from psycopg import sql

from etl_core.destination.duckdb.types import duckdb_type, is_cast, text_form, without_offsets
from etl_core.identifiers import TableName
from etl_core.schema.table import Column

if TYPE_CHECKING:
    from etl_core.destination.duckdb.additions import AddedColumn, AddedIndex, Additions

Query = sql.Composable

# The name under which `execute_with` hands Arrow rows over.
_ROWS = sql.Identifier("etl_rows_7d41c9")

NAMESPACE = "_etl"
"""The schema of our bookkeeping."""
RELATIONS = """
    SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()
    UNION ALL
    SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal
"""
_LENGTHS = {"VARCHAR": "strlen", "JSON": "strlen", "BLOB": "octet_length"}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold(name: str) -> str:
    """Equal for names that are the same to DuckDB."""
    return name.translate(_LOWER)


def text(query: Query) -> str:
    """The statement to execute."""
    return query.as_string(None)


def execute_with(connection: duckdb.DuckDBPyConnection, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
    """Runs a statement that changes rows and reads the Arrow rows (`_ROWS` below); returns how many it changed.

    DuckDB finds the Python variable by its name (a replacement scan). Registering the rows would create a view, which a
    transaction keeps, with the rows, until it ends. A table of that name would be found first, hence the odd name.
    """
    etl_rows_7d41c9 = without_offsets(rows) if isinstance(rows, pa.Table) else rows  # noqa: F841
    return int(connection.execute(text(query)).fetchall()[0][0])


def database_of(connection: duckdb.DuckDBPyConnection) -> str:
    """The name under which DuckDB attached the file: the part before the first dot of the file's name, or like it."""
    return str(connection.execute("SELECT current_database()").fetchall()[0][0])


def bookkeeping(database: str, query: LiteralString) -> str:
    """`query` with the names of the bookkeeping in place of `{namespace}`, `{watermarks}` and `{streams}`."""
    tables = {name: sql.Identifier(database, NAMESPACE, name) for name in ("watermarks", "streams")}
    return text(sql.SQL(query).format(namespace=sql.Identifier(database, NAMESPACE), **tables))


def note_merge(database: str) -> Query:
    """A change, so that a checkpoint has something to do."""
    table = sql.Identifier(database, NAMESPACE, "merged")
    return sql.SQL("CREATE OR REPLACE TABLE {} AS SELECT now() AS at").format(table)


def table_identifier(database: str, name: TableName) -> sql.Identifier:
    return sql.Identifier(database, name.namespace, name.name)


def existing_tables(connection: duckdb.DuckDBPyConnection) -> set[tuple[str, str]]:
    """Namespace and name, folded, of each table in the file; not of views."""
    query = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()"
    return {(fold(namespace), fold(name)) for namespace, name in connection.execute(query).fetchall()}


def count_rows(connection: duckdb.DuckDBPyConnection, database: str, name: TableName) -> int:
    """How many rows the table has."""
    query = sql.SQL("SELECT count(*) FROM {}").format(table_identifier(database, name))
    return int(connection.execute(text(query)).fetchall()[0][0])


def create_schema(database: str, namespace: str) -> Query:
    return sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(database, namespace))


def create_or_replace(table: Query, columns: Sequence[Column], additions: Additions | None = None) -> Query:
    """An empty table in place of what is there, with a person's columns and constraints."""
    defaults = dict(additions.defaults) if additions else {}
    not_null = additions.not_null if additions else ()
    defined = [_definition(c.name, _type(c), defaults.get(c.name), c.name in not_null) for c in columns]
    if additions:
        defined += [_definition(c.name, _word(c.type), c.default, c.name in not_null) for c in additions.columns]
        defined += [_word(constraint) for constraint in additions.constraints]
    return sql.SQL("CREATE OR REPLACE TABLE {} ({})").format(table, sql.SQL(", ").join(defined))


def _definition(name: str, kind: Query, default: str | None, is_not_null: bool) -> Query:
    parts = [sql.Identifier(name), kind]
    if default is not None:
        parts.append(sql.SQL("DEFAULT ({})").format(_word(default)))
    if is_not_null:
        parts.append(sql.SQL("NOT NULL"))
    return sql.SQL(" ").join(parts)


def create_indexes(database: str, name: TableName, indexes: Sequence[AddedIndex]) -> list[Query]:
    """The statements that create indexes, with their comments.

    Not by DuckDB's own text of them: its name of the table has two parts, and the first could be the file.
    """
    table, made = table_identifier(database, name), list[Query]()
    for index in indexes:
        create = sql.SQL("CREATE UNIQUE INDEX {} ON {} ({})" if index.is_unique else "CREATE INDEX {} ON {} ({})")
        expressions = sql.SQL(", ").join(map(_word, index.expressions))
        made.append(create.format(sql.Identifier(index.name), table, expressions))
        if index.comment is not None:
            place = sql.Identifier(database, name.namespace, index.name)
            made.append(sql.SQL("COMMENT ON INDEX {} IS {}").format(place, sql.Literal(index.comment)))
    return made


def write_comments(database: str, name: TableName, additions: Additions) -> list[Query]:
    """The statements that give a table its comments."""
    made: list[Query] = []
    if additions.comment is not None:
        table = table_identifier(database, name)
        made.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(additions.comment)))
    for column, about in additions.comments:
        place = sql.Identifier(database, name.namespace, name.name, column)
        made.append(sql.SQL("COMMENT ON COLUMN {} IS {}").format(place, sql.Literal(about)))
    return made


def keep(result: str, table: Query, columns: Sequence[tuple[str, str]]) -> Query:
    """Puts columns of all rows into temporary table `result`: (name in `table`, name in `result`)."""
    chosen = [sql.SQL("{} AS {}").format(sql.Identifier(there), sql.Identifier(name)) for there, name in columns]
    return sql.SQL("CREATE OR REPLACE TEMP TABLE {} AS SELECT {} FROM {}").format(
        sql.Identifier(result), sql.SQL(", ").join(chosen), table
    )


def insert_carrying(
    table: Query, columns: Sequence[Column], key: Sequence[Column], added: Sequence[AddedColumn], source: str
) -> Query:
    """Inserts the Arrow rows, with the values that rows of the same key have in `added` in temporary table `source`."""
    return sql.SQL("INSERT INTO {} BY NAME {}").format(table, _carrying(columns, key, added, temporary(source)))


def carry(
    result: str, table: Query, columns: Sequence[Column], key: Sequence[Column], added: Sequence[AddedColumn]
) -> Query:
    """Puts the Arrow rows into temporary table `result`, with the values that rows of their key in `table` have."""
    return sql.SQL("CREATE OR REPLACE TEMP TABLE {} AS {}").format(
        sql.Identifier(result), _carrying(columns, key, added, table)
    )


def _carrying(columns: Sequence[Column], key: Sequence[Column], added: Sequence[AddedColumn], source: Query) -> Query:
    there = sql.Identifier("etl$there")
    values = sql.SQL(", ").join(
        sql.SQL("CASE WHEN t.{} THEN t.{} ELSE CAST({} AS {}) END AS {}").format(
            there,
            sql.Identifier(c.name),
            _word("NULL" if c.default is None else c.default),
            _word(c.type),
            sql.Identifier(c.name),
        )
        for c in added
    )
    read = sql.SQL(", ").join(sql.Identifier(name) for name in (*(c.name for c in key), *(c.name for c in added)))
    same = sql.SQL(" AND ").join(
        sql.SQL("t.{} IS NOT DISTINCT FROM {}").format(sql.Identifier(c.name), _cast(sql.Identifier("p", c.name), c))
        for c in key
    )
    keys = sql.SQL(", ").join(sql.Identifier(c.name) for c in key)
    return sql.SQL(
        "SELECT {}, {} FROM {} AS p LEFT JOIN (SELECT DISTINCT ON ({}) {}, TRUE AS {} FROM {}) AS t ON {}"
    ).format(_converted(columns, sql.Identifier("p")), values, _ROWS, keys, read, there, source, same)


def insert(table: Query, columns: Sequence[Column]) -> Query:
    """Inserts the Arrow rows by column name."""
    return sql.SQL("INSERT INTO {} BY NAME SELECT {} FROM {}").format(table, _converted(columns, _ROWS), _ROWS)


def insert_all(table: Query, source: str) -> Query:
    """Inserts the rows of a table that already has the stored types."""
    return sql.SQL("INSERT INTO {} BY NAME SELECT * FROM {}").format(table, sql.Identifier(source))


def move_watermarks(database: str, pipeline: str) -> Query:
    """Sets the watermarks in the Arrow rows (table_id, lsn)."""
    return sql.SQL(
        "UPDATE {} AS w SET lsn = m.lsn, updated_at = now() FROM {} AS m "
        "WHERE w.table_id = m.table_id AND w.pipeline = {}"
    ).format(sql.Identifier(database, NAMESPACE, "watermarks"), _ROWS, sql.Literal(pipeline))


def delete_all(table: Query) -> Query:
    return sql.SQL("DELETE FROM {}").format(table)


def delete_keys(table: Query, key: Sequence[Column]) -> Query:
    """Deletes the rows whose key stands in the Arrow rows; a key may stand there twice."""
    same = [
        sql.SQL("t.{} IS NOT DISTINCT FROM k.{}").format(sql.Identifier(c.name), sql.Identifier(c.name)) for c in key
    ]
    return sql.SQL("DELETE FROM {} AS t WHERE EXISTS (SELECT 1 FROM (SELECT {} FROM {}) AS k WHERE {})").format(
        table, _converted(key, _ROWS), _ROWS, sql.SQL(" AND ").join(same)
    )


def complete(
    result: str,
    table: Query,
    known: Sequence[Column],
    unchanged: Sequence[Column],
    key: Sequence[Column],
    origins: Sequence[str],
    added: Sequence[AddedColumn] = (),
) -> Query:
    """Puts the Arrow rows into temporary table `result`, their `unchanged` and `added` columns read from `table`.

    `origins` are the names that the columns of the origin key have in the Arrow rows, in the order of `key`.
    """
    names = [*(column.name for column in unchanged), *(column.name for column in added)]
    kept = sql.SQL(", ").join(sql.Identifier("t", name) for name in names)
    same = [
        sql.SQL("t.{} IS NOT DISTINCT FROM {}").format(
            sql.Identifier(column.name), _cast(sql.Identifier("p", origin), column)
        )
        for column, origin in zip(key, origins, strict=True)
    ]
    return sql.SQL("CREATE OR REPLACE TEMP TABLE {} AS SELECT {}, {} FROM {} AS p JOIN {} AS t ON {}").format(
        sql.Identifier(result),
        _converted(known, sql.Identifier("p")),
        kept,
        _ROWS,
        table,
        sql.SQL(" AND ").join(same),
    )


def temporary(name: str) -> sql.Identifier:
    return sql.Identifier("temp", "main", name)


def drop_temporary(name: str) -> Query:
    return sql.SQL("DROP TABLE {}").format(temporary(name))


def text_sizes(table: Query, columns: Sequence[Column]) -> Query | None:
    """One row: the number of rows and the bytes in each column of text and bytea. None without such a column."""
    sizes = [
        sql.SQL("coalesce(sum({}({})), 0)").format(_word(_LENGTHS[duckdb_type(c)]), sql.Identifier(c.name))
        for c in columns
        if duckdb_type(c) in _LENGTHS
    ]
    return sql.SQL("SELECT count(*), {} FROM {}").format(sql.SQL(", ").join(sizes), table) if sizes else None


def describe(table: Query) -> Query:
    """A row per column: name, type, nullable, key, default."""
    return sql.SQL("DESCRIBE {}").format(table)


def add_column(table: Query, column: Column) -> Query:
    return sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(table, sql.Identifier(column.name), _type(column))


def drop_column(table: Query, name: str) -> Query:
    return sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(table, sql.Identifier(name))


def rename_column(table: Query, before: str, name: str) -> Query:
    return sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(table, sql.Identifier(before), sql.Identifier(name))


def change_type(table: Query, column: Column) -> Query:
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(table, sql.Identifier(column.name), _type(column))


def fill(table: Query, columns: Sequence[Column]) -> Query:
    """Sets `columns` of every row to the values in the one Arrow row."""
    values = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(c.name), _cast(sql.Identifier("f", c.name), c)) for c in columns
    )
    return sql.SQL("UPDATE {} SET {} FROM {} AS f").format(table, values, _ROWS)


def insert_rebuilt(table: Query, added: Sequence[Column], source: str) -> Query:
    """Inserts the rows of temporary table `source`; the columns in `added` have the values in the one Arrow row."""
    values = [sql.SQL("{} AS {}").format(_cast(sql.Identifier("f", c.name), c), sql.Identifier(c.name)) for c in added]
    return sql.SQL("INSERT INTO {} BY NAME SELECT {} FROM {} AS t CROSS JOIN {} AS f").format(
        table, sql.SQL(", ").join([sql.SQL("t.*"), *values]), temporary(source), _ROWS
    )


def rebuild(table: Query, columns: Sequence[Column], origins: Mapping[str, str], added: Sequence[Column]) -> Query:
    """The table anew with `columns`; those in `added` have the values in the one Arrow row.

    `origins` are the names that the others have in the table.
    """
    new = {column.name for column in added}
    chosen = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(
            _cast(sql.Identifier("f", c.name), c)
            if c.name in new
            else sql.SQL("CAST({} AS {})").format(sql.Identifier("t", origins[c.name]), _type(c)),
            sql.Identifier(c.name),
        )
        for c in columns
    )
    return sql.SQL("CREATE OR REPLACE TABLE {} AS SELECT {} FROM {} AS t CROSS JOIN {} AS f").format(
        table, chosen, table, _ROWS
    )


def select(table: Query, columns: Sequence[Column]) -> Query:
    """The rows, with text where the Arrow type is text."""
    chosen = []
    for column in columns:
        form = text_form(column)
        name = sql.Identifier(column.name)
        chosen.append(name if form is None else sql.SQL("CAST({} AS {}) AS {}").format(name, _word(form), name))
    return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(chosen), table)


def _converted(columns: Sequence[Column], relation: sql.Identifier) -> Query:
    """The select list that turns Arrow values into stored ones."""
    return sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(
            _cast(sql.SQL("{}.{}").format(relation, sql.Identifier(c.name)), c), sql.Identifier(c.name)
        )
        for c in columns
    )


def _cast(value: Query, column: Column) -> Query:
    # JSON comes under its own name (see types).
    if not is_cast(column):
        return value
    return sql.SQL("CAST({} AS {})").format(value, _type(column))


def _type(column: Column) -> Query:
    return _word(duckdb_type(column))


def _word(known: str) -> Query:
    # Type names of the table in `types`, and what DuckDB's own catalog says of a table; never a name from the source.
    return sql.SQL(known)
