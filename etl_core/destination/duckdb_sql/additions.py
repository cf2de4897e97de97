"""What people have added to a table of ours in DuckDB: columns, defaults, constraints, indexes, comments.

See `etl_core.destination.sql.additions`. Views need nothing: DuckDB binds them when they are read. What cannot be kept
is found before anything is lost: the additions are read again from the new table, and differ.
"""

# ruff: noqa: S608 what is put into the statements is a constant

from __future__ import annotations

import string
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import duckdb

from etl_core.destination.duckdb_sql import statements
from etl_core.destination.duckdb_sql.dialect import DIALECT
from etl_core.destination.sql.additions import Additions, StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.statements import drop
from etl_core.errors import TableError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.table import TableSchema

_SAME = " AND ".join(
    f"translate({column}, '{string.ascii_uppercase}', '{string.ascii_lowercase}') = ?"
    for column in ("schema_name", "table_name")
)
"""The table may be spelled otherwise there than it is called now."""
_COLUMNS = f"""
    SELECT column_name, data_type, nullif(column_default, 'NULL'), comment FROM duckdb_columns()
    WHERE database_name = ? AND {_SAME} ORDER BY column_index
"""
_CONSTRAINTS = f"""
    SELECT constraint_type, constraint_text, constraint_column_names FROM duckdb_constraints()
    WHERE database_name = ? AND {_SAME}
"""
_INDEXES = f"""
    SELECT index_name, is_unique, expressions::VARCHAR[], sql, comment FROM duckdb_indexes()
    WHERE database_name = ? AND {_SAME} AND sql IS NOT NULL ORDER BY index_name
"""
_COMMENT = f"""
    SELECT comment FROM duckdb_tables() WHERE database_name = ? AND {_SAME}
"""


@dataclass(frozen=True, slots=True)
class AddedIndex:
    """`sql` is DuckDB's text of it, which also shows a kind of index that an extension brings."""

    name: str
    is_unique: bool
    expressions: tuple[str, ...]
    sql: str
    comment: str | None


@dataclass(frozen=True, slots=True)
class DuckDBAdditions(Additions):
    """All of one table."""

    defaults: tuple[tuple[str, str], ...] = ()
    """(column of ours, default)."""
    not_null: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    """CHECK, UNIQUE, PRIMARY KEY and FOREIGN KEY, as they stand in CREATE TABLE."""
    indexes: tuple[AddedIndex, ...] = ()
    comment: str | None = None
    comments: tuple[tuple[str, str], ...] = ()
    """(column, comment)."""

    def __bool__(self) -> bool:
        return self != DuckDBAdditions()

    def __str__(self) -> str:
        named = [f"column {column.name}" for column in self.columns]
        named += [f"default of {column}" for column, _ in self.defaults]
        named += [f"NOT NULL of {column}" for column in self.not_null]
        named += [f"a constraint ({constraint.partition('(')[0].strip()})" for constraint in self.constraints]
        named += [f"index {index.name}" for index in self.indexes]
        if self.comment is not None or self.comments:
            named.append("comments")
        return ", ".join(named)

    def renamed(self, names: Mapping[str, str]) -> DuckDBAdditions:
        """See Additions.

        An expression that names such a column stays as it is, and does not fit any more.
        """
        return replace(
            self,
            defaults=tuple((names.get(column, column), default) for column, default in self.defaults),
            not_null=tuple(sorted(names.get(column, column) for column in self.not_null)),
            comments=tuple((names.get(column, column), text) for column, text in self.comments),
        )

    @property
    def hold_columns(self) -> bool:
        return bool(self.indexes or self.constraints or self.not_null)


def read_additions(
    connection: duckdb.DuckDBPyConnection, database: str, name: TableName, ours: Collection[str]
) -> DuckDBAdditions:
    """The additions to the table, in the connection's transaction; none if the table is not there."""
    at = [database, DIALECT.fold(name.namespace), DIALECT.fold(name.name)]
    columns = connection.execute(_COLUMNS, at).fetchall()
    constraints = connection.execute(_CONSTRAINTS, at).fetchall()
    indexes = connection.execute(_INDEXES, at).fetchall()
    comment = connection.execute(_COMMENT, at).fetchall()
    return DuckDBAdditions(
        tuple(StoredColumn(column, kind, default) for column, kind, default, _ in columns if column not in ours),
        tuple((column, default) for column, _, default, _ in columns if column in ours and default is not None),
        tuple(sorted(names[0] for kind, _, names in constraints if kind == "NOT NULL")),
        tuple(sorted(text for kind, text, _ in constraints if kind != "NOT NULL")),
        tuple(AddedIndex(index, unique, tuple(of), text, about) for index, unique, of, text, about in indexes),
        comment[0][0] if comment else None,
        tuple((column, text) for column, _, _, text in columns if text is not None),
    )


@contextmanager
def made_anew(
    connection: duckdb.DuckDBPyConnection,
    dialect: Dialect,
    database: str,
    schema: TableSchema,
    additions: DuckDBAdditions,
) -> Iterator[Query]:
    """See Session."""
    name = schema.name
    table = statements.table_identifier(database, name)
    later = [index for index in additions.indexes if not index.is_unique]

    def run(made: Iterable[Query]) -> None:
        for statement in made:
            connection.execute(statements.text(statement))

    try:
        run([statements.create_or_replace(dialect, table, schema.columns, additions)])
        # A unique index that came after the rows would find two of a kind in the commit, too late to name the table.
        run(statements.create_indexes(database, name, [index for index in additions.indexes if index.is_unique]))
        yield table
        run(statements.create_indexes(database, name, later))
        run(statements.write_comments(database, name, additions))
    except (duckdb.ConstraintException, duckdb.CatalogException, duckdb.BinderException, duckdb.DependencyException):
        if not additions:
            raise
        raise _cannot_keep(name, additions) from None
    if additions and read_additions(connection, database, name, schema.column_names) != additions:
        raise _cannot_keep(name, additions)


def rename(
    connection: duckdb.DuckDBPyConnection, dialect: Dialect, database: str, before: TableName, name: TableName
) -> int:
    """See Session. An index keeps a table from being renamed and is made anew, as the table is in another namespace."""
    additions = read_additions(connection, database, before, ())
    if DIALECT.fold(before.namespace) == DIALECT.fold(name.namespace):
        for index in additions.indexes:
            connection.execute(statements.text(statements.drop_index(database, before.namespace, index.name)))
        connection.execute(statements.text(statements.rename_table(database, before, name.name)))
        for statement in statements.create_indexes(database, name, additions.indexes):
            connection.execute(statements.text(statement))
        return 0
    source = statements.table_identifier(database, before)
    with made_anew(connection, dialect, database, TableSchema(TableId(0), name, (), ()), additions) as table:
        answer = connection.execute(statements.text(statements.insert_whole(table, source))).fetchall()
    connection.execute(statements.text(drop(source)))
    return int(answer[0][0])


def _cannot_keep(name: TableName, additions: DuckDBAdditions) -> TableError:
    return TableError(
        f"{name} cannot be made anew with what was added to it in DuckDB: {additions}; a constraint refuses rows, or "
        "needs a column that is gone",
        table=str(name),
        hint=f"save and drop in DuckDB what does not fit any more, then copy the table again: etl resync {name}",
    )
