"""The SQL that only PostgreSQL needs, or spells so: its catalog, and what a table is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from etl_core.destination.postgres.dialect import PostgresDialect
from etl_core.destination.postgres.types import is_ordered
from etl_core.destination.sql import statements
from etl_core.destination.sql.dialect import Query
from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema.change_log import keeps_log
from etl_core.schema.deleted_rows import keeps_deleted
from etl_core.schema.table import Column, TableSchema

# A column that is computed from others cannot be written, and computes itself anew.
COLUMNS = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), pg_catalog.pg_get_expr(d.adbin, d.adrelid)
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  AND c.relkind IN ('r', 'p')
ORDER BY a.attnum
"""
RELATIONS = """
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind::text = ANY (%s) AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema'
"""
INDEXES = """
SELECT i.relname::text, x.indisprimary,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = x.indrelid AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1]))
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND x.indpred IS NULL AND x.indexprs IS NULL AND x.indisvalid
"""
# Rows of tables that inherit from it would be deleted with its own.
REFERENCES = """
SELECT NULL, i.inhrelid::regclass::text FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'r'
UNION ALL
SELECT k.conname::text, k.conrelid::regclass::text FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND k.contype = 'f' AND k.confdeltype IN ('c', 'n', 'd')
"""

# What others may do with a view.
GRANTS = """
SELECT DISTINCT a.privilege_type::text, r.rolname::text, a.is_grantable FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'v' AND a.grantee <> c.relowner
"""
# A foreign key is one of both its tables; constraint triggers are among the constraints.
DEFERRED = """
SELECT DISTINCT n.nspname::text, c.relname::text, s.nspname::text, k.conname::text FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_namespace s ON s.oid = k.connamespace
CROSS JOIN LATERAL (VALUES (k.conrelid), (k.confrelid)) AS r (id)
JOIN pg_catalog.pg_class c ON c.oid = r.id
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.condeferred
"""


@dataclass(frozen=True, slots=True)
class Index:
    """An index on whole columns, in no order."""

    name: str
    is_primary: bool
    columns: Sequence[str]

    def is_on(self, columns: Sequence[str]) -> bool:
        return sorted(self.columns) == sorted(columns)


def create(dialect: PostgresDialect, table: Query, columns: Sequence[Column]) -> Query:
    defined = [
        sql.SQL("{} {}").format(sql.Identifier(column.name), statements.type_name(dialect, column))
        for column in columns
    ]
    return sql.SQL("CREATE TABLE {} ({})").format(table, sql.SQL(", ").join(defined))


def alter(
    dialect: PostgresDialect,
    table: Query,
    columns: Sequence[Column],
    there: Mapping[str, str],
    theirs: Collection[str],
) -> list[Query]:
    """Gives a table without rows the `columns`. `there` are those it has, with their types; `theirs` stay."""
    wanted = {column.name: column for column in columns}
    made: list[Query] = []
    for name, stored in there.items():
        if name in theirs:
            continue
        if name not in wanted:
            made.append(statements.drop_column(table, name))
        elif dialect.type_change(stored, wanted[name]) is not TypeChange.NONE or _was_missing(
            dialect, stored, wanted[name]
        ):
            query = sql.SQL(
                "ALTER TABLE {} ALTER COLUMN {column} DROP DEFAULT, ALTER COLUMN {column} TYPE {} USING NULL"
            )
            made.append(query.format(table, statements.type_name(dialect, wanted[name]), column=sql.Identifier(name)))
    made += [statements.add_column(dialect, table, column) for name, column in wanted.items() if name not in there]
    return made


def _was_missing(dialect: PostgresDialect, stored: str, column: Column) -> bool:
    """Whether the column is text because its type was not there when it was made."""
    return stored.replace('"', "") != dialect.type_name(column).replace('"', "") and stored.startswith("text")


def is_unique(schema: TableSchema) -> bool:
    """Whether no two rows have one key: a deleted row may have lost its key's values."""
    return not keeps_deleted(schema) and not keeps_log(schema)


def add_key(dialect: PostgresDialect, schema: TableSchema, *, is_primary: bool) -> Query | None:
    """The statement that has rows found by their key; None for a table without one, or with one of no order."""
    key = [schema.column(name) for name in schema.key]
    if not key or not all(is_ordered(column, dialect.known) for column in key):
        return None
    table = sql.Identifier(schema.name.namespace, schema.name.name)
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in key)
    query = sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})" if is_primary else "CREATE INDEX ON {} ({})")
    return query.format(table, names)


def has_primary_key(dialect: PostgresDialect, schema: TableSchema) -> bool:
    """Whether the pipeline gives the table a primary key."""
    return is_unique(schema) and add_key(dialect, schema, is_primary=True) is not None


def identify_by_row(table: Query) -> Query:
    """Without it PostgreSQL refuses updates and deletes of a published table that has no primary key."""
    return sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(table)


def drop_key(table: Query, index: Index) -> list[Query]:
    """The statements that drop a primary key, and the NOT NULL that it leaves behind."""
    made: list[Query] = [sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table, sql.Identifier(index.name))]
    query = sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL")
    return made + [query.format(table, sql.Identifier(column)) for column in index.columns]


def grant(view: Query, privilege: str, role: str | None, *, is_grantable: bool) -> Query:
    """`privilege` is PostgreSQL's word for it, and no role everyone."""
    query = sql.SQL("GRANT {} ON {} TO {}{}")
    to = sql.SQL("PUBLIC") if role is None else sql.Identifier(role)
    return query.format(sql.SQL(privilege), view, to, sql.SQL(" WITH GRANT OPTION" if is_grantable else ""))


def rename(before: TableName, name: str) -> Query:
    table = sql.Identifier(before.namespace, before.name)
    return sql.SQL("ALTER TABLE {} RENAME TO {}").format(table, sql.Identifier(name))


def move(table: TableName, namespace: str) -> Query:
    query = sql.SQL("ALTER TABLE {} SET SCHEMA {}")
    return query.format(sql.Identifier(table.namespace, table.name), sql.Identifier(namespace))
