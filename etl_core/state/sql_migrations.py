"""How the SQL stores' tables came to be: an ordered list of migrations, and the one function that applies it.

A migration that was released is never edited; a change is a new one at the end. Its number is its place, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import DDL, Connection, and_, func, insert, inspect, select
from sqlalchemy.schema import CreateSchema

from etl_core.errors import PermanentError
from etl_core.state.sql_tables import Tables

Migration = tuple[str, ...]
"""Statements in which `%(etl)s` begins a table's name, `%(lsn)s` and `%(time)s` are the types of LSNs and times."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE %(etl)ssources (
            pipeline TEXT NOT NULL PRIMARY KEY,
            system_identifier TEXT NOT NULL,
            timeline BIGINT NOT NULL,
            slot_name TEXT NOT NULL,
            slot_lsn %(lsn)s NOT NULL
        )
        """,
        """
        CREATE TABLE %(etl)stables (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            namespace TEXT NOT NULL,
            name TEXT NOT NULL,
            state TEXT NOT NULL,
            version BIGINT NOT NULL,
            snapshot_lsn %(lsn)s,
            sync_slot TEXT,
            rows_copied BIGINT,
            error TEXT,
            hint TEXT,
            attempts INTEGER NOT NULL,
            retry_at %(time)s,
            updated_at %(time)s NOT NULL,
            PRIMARY KEY (pipeline, table_id)
        )
        """,
        # A line's version is the version its transition gave the table: the order of the history.
        """
        CREATE TABLE %(etl)shistory (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            version BIGINT NOT NULL,
            from_state TEXT,
            to_state TEXT NOT NULL,
            at %(time)s NOT NULL,
            error TEXT,
            PRIMARY KEY (pipeline, table_id, version)
        )
        """,
        # TEXT, not jsonb: jsonb refuses the escape of NUL.
        """
        CREATE TABLE %(etl)sschemas (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            version INTEGER NOT NULL,
            lsn %(lsn)s NOT NULL,
            schema_json TEXT NOT NULL,
            saved_at %(time)s NOT NULL,
            PRIMARY KEY (pipeline, table_id, version)
        )
        """,
        """
        CREATE TABLE %(etl)sprogress (
            pipeline TEXT NOT NULL PRIMARY KEY,
            flushed_lsn %(lsn)s NOT NULL,
            commit_time %(time)s,
            rows BIGINT NOT NULL,
            rows_per_second DOUBLE PRECISION NOT NULL,
            lag_seconds DOUBLE PRECISION,
            updated_at %(time)s NOT NULL
        )
        """,
        """
        CREATE TABLE %(etl)sslots (
            pipeline TEXT NOT NULL,
            name TEXT NOT NULL,
            table_id BIGINT,
            created_at %(time)s NOT NULL,
            PRIMARY KEY (pipeline, name)
        )
        """,
        """
        CREATE TABLE %(etl)spublications (
            pipeline TEXT NOT NULL PRIMARY KEY,
            owned BOOLEAN NOT NULL
        )
        """,
        """
        CREATE TABLE %(etl)sholds (
            pipeline TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL,
            expires_at %(time)s NOT NULL,
            lsn %(lsn)s,
            reached %(lsn)s
        )
        """,
    ),
    ("ALTER TABLE %(etl)sprogress ADD COLUMN written_lsn %(lsn)s",),
    (
        """
        CREATE TABLE %(etl)scopy_offers (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            token TEXT NOT NULL,
            snapshot_name TEXT,
            snapshot_lsn %(lsn)s,
            fingerprint TEXT,
            address TEXT,
            is_over BOOLEAN NOT NULL,
            PRIMARY KEY (pipeline, table_id)
        )
        """,
        """
        CREATE TABLE %(etl)scopy_ranges (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            number INTEGER NOT NULL,
            namespace TEXT NOT NULL,
            name TEXT NOT NULL,
            first_block BIGINT,
            end_block BIGINT,
            size BIGINT NOT NULL,
            taker BIGINT,
            rows BIGINT,
            receipt TEXT,
            PRIMARY KEY (pipeline, table_id, number)
        )
        """,
    ),
    (
        """
        CREATE TABLE %(etl)sstream_errors (
            pipeline TEXT NOT NULL PRIMARY KEY,
            error TEXT NOT NULL,
            hint TEXT,
            at %(time)s NOT NULL
        )
        """,
    ),
    # Which cluster, database and stream things belong to: unknown for what is there already.
    (
        "ALTER TABLE %(etl)ssources ADD COLUMN database TEXT",
        "ALTER TABLE %(etl)ssources ADD COLUMN database_oid BIGINT",
        "ALTER TABLE %(etl)ssources ADD COLUMN address TEXT",
        "ALTER TABLE %(etl)sslots ADD COLUMN system_identifier TEXT",
        "ALTER TABLE %(etl)spublications ADD COLUMN oid BIGINT",
        "ALTER TABLE %(etl)sprogress ADD COLUMN claim TEXT",
    ),
    (
        """
        CREATE TABLE %(etl)sfingerprints (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            lsn %(lsn)s NOT NULL,
            fingerprint_json TEXT NOT NULL,
            has_gap BOOLEAN NOT NULL,
            PRIMARY KEY (pipeline, table_id)
        )
        """,
    ),
    ("ALTER TABLE %(etl)scopy_offers RENAME COLUMN fingerprint TO layout",),
    ("ALTER TABLE %(etl)sstream_errors ADD COLUMN is_permanent BOOLEAN",),
    # What is there was copied as it is at the source.
    (
        """
        CREATE TABLE %(etl)sshapes (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            shape_json TEXT NOT NULL,
            PRIMARY KEY (pipeline, table_id)
        )
        """,
        """
        INSERT INTO %(etl)sshapes (pipeline, table_id, shape_json)
        SELECT pipeline, table_id, '{"actions":{},"include":null,"key_check":null,"rename":{}}' FROM %(etl)stables
        """,
    ),
    # Nothing but first copies and a person's request was there before: whatever is under way goes on.
    (
        "ALTER TABLE %(etl)stables ADD COLUMN is_requested BOOLEAN NOT NULL DEFAULT FALSE",
        "UPDATE %(etl)stables SET is_requested = TRUE WHERE state IN ('i', 'd')",
        "ALTER TABLE %(etl)stables ADD COLUMN waits_for TEXT",
        "ALTER TABLE %(etl)stables ADD COLUMN change TEXT",
        "ALTER TABLE %(etl)stables ADD COLUMN approved TEXT",
    ),
    (
        """
        CREATE TABLE %(etl)sselected_names (
            pipeline TEXT NOT NULL,
            table_id BIGINT NOT NULL,
            namespace TEXT NOT NULL,
            name TEXT NOT NULL,
            PRIMARY KEY (pipeline, table_id)
        )
        """,
    ),
)

_WORDS = {
    "postgresql": {"etl": "etl.", "lsn": 'TEXT COLLATE "C"', "time": "TIMESTAMP WITH TIME ZONE"},
    "sqlite": {"etl": "etl_", "lsn": "TEXT", "time": "TEXT"},
}
_CREATE_MIGRATIONS = """
CREATE TABLE %(etl)smigrations (
    version INTEGER NOT NULL PRIMARY KEY,
    applied_at %(time)s NOT NULL
)
"""


def apply_migrations(
    connection: Connection, tables: Tables, now: datetime, migrations: Sequence[Migration] = MIGRATIONS
) -> int:
    """Brings the database to the last of `migrations`; returns how many were applied.

    Runs inside the caller's transaction, which holds the migration lock. Raises PermanentError if the database is
    newer than `migrations`, or if the role may not create what is missing.
    """
    if not inspect(connection).has_table(tables.migrations.name, schema=tables.migrations.schema):
        if connection.dialect.name == "postgresql":
            _ensure_schema(connection)
        _execute(connection, _CREATE_MIGRATIONS)
    version = connection.scalar(select(func.coalesce(func.max(tables.migrations.c.version), 0))) or 0
    if version > len(migrations):
        raise PermanentError(
            f"the state store has version {version}, this program knows versions up to {len(migrations)}",
            hint="upgrade etl-dagster here to the release that wrote the state store",
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        for statement in statements:
            _execute(connection, statement)
        connection.execute(insert(tables.migrations).values(version=number, applied_at=now))
    return len(migrations) - version


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(DDL(statement, context=_WORDS[connection.dialect.name]))  # type: ignore[no-untyped-call]


def _ensure_schema(connection: Connection) -> None:
    """Creates PostgreSQL's schema `etl` if it is missing. A missing right is named, with the SQL that grants it.

    The rights are asked for first: CREATE SCHEMA IF NOT EXISTS needs its right even where the schema exists.
    """
    role, database, exists, may_create_schema = connection.execute(
        select(
            func.current_user(),
            func.current_database(),
            func.to_regnamespace("etl").is_not(None),
            func.has_database_privilege(func.current_database(), "CREATE"),
        )
    ).one()
    quoted = connection.dialect.identifier_preparer.quote(role)
    if not exists:
        if not may_create_schema:
            raise PermanentError(
                f"role {quoted} may not create the schema etl in database {database}",
                hint=f"let the owner of the database run: CREATE SCHEMA etl AUTHORIZATION {quoted}",
            )
        connection.execute(CreateSchema("etl"))
        return
    if not connection.scalar(
        select(and_(func.has_schema_privilege("etl", "USAGE"), func.has_schema_privilege("etl", "CREATE")))
    ):
        raise PermanentError(
            f"role {quoted} may not create tables in the schema etl of database {database}",
            hint=f"let the owner of the schema run: GRANT USAGE, CREATE ON SCHEMA etl TO {quoted}",
        )
