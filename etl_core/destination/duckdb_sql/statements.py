"""The SQL that only DuckDB needs, or spells so: what a table is made of.

DuckDB quotes identifiers as PostgreSQL does, so psycopg's composition serves. Names have three parts: with two, a
namespace called like the file would be ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psycopg import sql

from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.identifiers import TableName
from etl_core.schema.table import Column

if TYPE_CHECKING:
    from etl_core.destination.duckdb_sql.additions import AddedIndex, DuckDBAdditions


def text(query: Query) -> str:
    """The statement to execute."""
    return query.as_string(None)


def table_identifier(database: str, name: TableName) -> sql.Identifier:
    return sql.Identifier(database, name.namespace, name.name)


def create_or_replace(dialect: Dialect, table: Query, columns: Sequence[Column], additions: DuckDBAdditions) -> Query:
    """An empty table in place of what is there, with a person's columns and constraints."""
    defaults, not_null = dict(additions.defaults), additions.not_null
    defined = [
        _definition(c.name, _word(dialect.type_name(c)), defaults.get(c.name), c.name in not_null) for c in columns
    ]
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


def drop_index(database: str, namespace: str, index: str) -> Query:
    return sql.SQL("DROP INDEX {}").format(sql.Identifier(database, namespace, index))


def rename_table(database: str, before: TableName, name: str) -> Query:
    """Within its namespace: DuckDB has no SET SCHEMA."""
    table = table_identifier(database, before)
    return sql.SQL("ALTER TABLE {} RENAME TO {}").format(table, sql.Identifier(name))


def insert_whole(table: Query, source: Query) -> Query:
    """All rows of a table that has the same columns in the same order."""
    return sql.SQL("INSERT INTO {} SELECT * FROM {}").format(table, source)


def write_comments(database: str, name: TableName, additions: DuckDBAdditions) -> list[Query]:
    """The statements that give a table its comments."""
    made: list[Query] = []
    if additions.comment is not None:
        table = table_identifier(database, name)
        made.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(additions.comment)))
    for column, about in additions.comments:
        place = sql.Identifier(database, name.namespace, name.name, column)
        made.append(sql.SQL("COMMENT ON COLUMN {} IS {}").format(place, sql.Literal(about)))
    return made


def _word(known: str) -> Query:
    # Type names of the table in `types`, and what DuckDB's own catalog says of a table; never a name from the source.
    return sql.SQL(known)
