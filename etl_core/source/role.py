"""The role that replicates: the SQL that makes one with the rights it needs, and no others.

https://www.postgresql.org/docs/current/logical-replication-security.html
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from etl_core.identifiers import TableName
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_MAY_CREATE_ROLES = """
SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user
"""


def may_create_roles(conn: Connection) -> bool:
    """Whether the connected role has more rights than replication needs, and can give them to another."""
    return bool(_value(conn, _MAY_CREATE_ROLES))


def role_statements(conn: Connection, role: str, tables: Sequence[TableName]) -> list[str]:
    """The SQL that creates `role`, if it does not exist, and lets it read `tables`. A password is not in it."""
    name = sql.Identifier(role)
    exists = _value(conn, "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s)", (role,))
    create = "ALTER ROLE {} LOGIN REPLICATION" if exists else "CREATE ROLE {} LOGIN REPLICATION"
    namespaces = sorted({table.namespace for table in tables})
    composed = [
        sql.SQL(create).format(name),
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(_listed([(namespace,) for namespace in namespaces]), name),
        sql.SQL("GRANT SELECT ON {} TO {}").format(_listed([(one.namespace, one.name) for one in tables]), name),
    ]
    return [statement.as_string(conn) for statement in composed]


def _listed(names: Sequence[tuple[str, ...]]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*name) for name in names)


def _value(conn: Connection, query: str, parameters: Sequence[object] = ()) -> object:
    try:
        row = conn.execute(query.encode(), parameters).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return None if row is None else row[0]
