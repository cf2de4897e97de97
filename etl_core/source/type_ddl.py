"""The statements that make a type of the source in another database: what `pg_dump` would write of it."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql

from etl_core.schema.table import PgType, TypeKind
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_EXTENSION = """
SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = %s AND d.deptype = 'e'
  AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
"""
# What format_type and pg_get_constraintdef print can be run: nothing is in the search path of our sessions.
_BODIES: dict[TypeKind, LiteralString] = {
    TypeKind.ENUM: """
        SELECT 'ENUM ('
                   || pg_catalog.string_agg(pg_catalog.quote_literal(enumlabel), ', ' ORDER BY enumsortorder) || ')'
        FROM pg_catalog.pg_enum WHERE enumtypid = %s
    """,
    TypeKind.COMPOSITE: """
        SELECT '(' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' '
                   || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) || ')'
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid
        WHERE t.oid = %s AND a.attnum > 0 AND NOT a.attisdropped
    """,
    TypeKind.DOMAIN: """
        SELECT pg_catalog.concat_ws(' ', pg_catalog.format_type(t.typbasetype, t.typtypmod),
                   (SELECT pg_catalog.string_agg('CONSTRAINT ' || pg_catalog.quote_ident(c.conname) || ' '
                               || pg_catalog.pg_get_constraintdef(c.oid), ' ' ORDER BY c.conname)
                    FROM pg_catalog.pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c'))
        FROM pg_catalog.pg_type t WHERE t.oid = %s
    """,
    TypeKind.RANGE: """
        SELECT 'RANGE (subtype = ' || pg_catalog.format_type(r.rngsubtype, -1) || ', multirange_type_name = '
                   || pg_catalog.format_type(r.rngmultitypid, -1) || ')'
        FROM pg_catalog.pg_range r WHERE r.rngtypid = %s
    """,
}


def create_type(conn: Connection, pg_type: PgType) -> str | None:
    """The statements that make the type where it is not; None for one that comes with others, or is not there.

    A domain's NOT NULL is left out: a log of changes has rows without values. Raises EtlError.
    """
    try:
        if (row := conn.execute(_EXTENSION, (pg_type.oid,)).fetchone()) is not None:
            return sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(row[0])).as_string(conn)
        query = _BODIES.get(pg_type.kind)
        row = None if query is None else conn.execute(query, (pg_type.oid,)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    if row is None or row[0] is None:
        return None
    what = sql.SQL("DOMAIN" if pg_type.kind is TypeKind.DOMAIN else "TYPE")
    statement = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}; CREATE {} {} AS {}").format(
        sql.Identifier(pg_type.namespace), what, sql.Identifier(pg_type.namespace, pg_type.name), sql.SQL(row[0])
    )
    return statement.as_string(conn)
