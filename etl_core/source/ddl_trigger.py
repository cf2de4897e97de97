"""The event trigger that writes into the WAL what a table has become, and what its messages say. A person's choice.

Without it the columns of a table are told from Relation messages, which come before the next row and have no attribute
numbers, and from the catalog, which may be ahead. With it each ALTER TABLE leaves a logical message in its transaction,
where it happened: names, types and numbers. https://www.postgresql.org/docs/current/event-triggers.html

If the trigger cannot read the catalog its message says so, and the ALTER goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import errors, sql

from etl_core.errors import SourceRefused
from etl_core.identifiers import TableId
from etl_core.protocol.messages import RelationColumn
from etl_core.schema.table import ReplicaIdentity
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

PREFIX: Final = "etl_ddl"
"""Of its messages."""
_UNKNOWN: Final = b"unknown"

INSTALL: Final = """\
CREATE SCHEMA IF NOT EXISTS etl_ddl;
CREATE TABLE IF NOT EXISTS etl_ddl.token (token text NOT NULL);
INSERT INTO etl_ddl.token SELECT gen_random_uuid()::text WHERE NOT EXISTS (SELECT FROM etl_ddl.token);

CREATE OR REPLACE FUNCTION etl_ddl.tell() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $etl$
DECLARE
    altered oid[];
    told bytea;
BEGIN
    BEGIN
        IF TG_EVENT = 'sql_drop' THEN
            altered := ARRAY(
                SELECT objid FROM pg_event_trigger_dropped_objects() WHERE object_type = 'table column');
        ELSE
            altered := ARRAY(
                SELECT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass);
        END IF;
        -- What is altered in a table is altered in its partitions and children, which are not named.
        altered := ARRAY(
            WITH RECURSIVE below(oid) AS (
                SELECT unnest(altered)
                UNION
                SELECT i.inhrelid FROM pg_inherits i JOIN below ON i.inhparent = below.oid
            ) SELECT oid FROM below);
        SELECT convert_to(json_build_object(
            'trigger', (SELECT string_agg(concat_ws(':', evtname, oid, xmin, evtenabled), ' ' ORDER BY evtname)
                        FROM pg_event_trigger WHERE evtname IN ('etl_ddl', 'etl_ddl_drop'))
                       || ' ' || (SELECT token FROM etl_ddl.token),
            'tables', json_agg(json_build_object(
                'id', c.oid::bigint, 'namespace', n.nspname, 'name', c.relname, 'identity', c.relreplident,
                'columns', (
                    SELECT json_agg(json_build_array(
                               a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attgenerated <> '',
                               c.relreplident = 'f' OR EXISTS (
                                   SELECT FROM pg_index i
                                   WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                                     AND a.attnum = ANY (i.indkey)
                                     AND CASE c.relreplident WHEN 'i' THEN i.indisreplident
                                                             WHEN 'd' THEN i.indisprimary ELSE false END))
                           ORDER BY a.attnum)
                    FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))))::text, 'UTF8')
        INTO told
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY (altered) AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
        HAVING count(*) > 0;
    EXCEPTION WHEN OTHERS THEN
        told := 'unknown';
    END;
    IF told IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'etl_ddl', told);
        -- A message is sorted by where it ends, so the next row may come before it if one of them is in a savepoint.
        PERFORM pg_logical_emit_message(true, 'etl_ddl', ''::bytea);
    END IF;
END
$etl$;

DROP EVENT TRIGGER IF EXISTS etl_ddl;
CREATE EVENT TRIGGER etl_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION etl_ddl.tell();
ALTER EVENT TRIGGER etl_ddl ENABLE ALWAYS;
DROP EVENT TRIGGER IF EXISTS etl_ddl_drop;
CREATE EVENT TRIGGER etl_ddl_drop ON sql_drop EXECUTE FUNCTION etl_ddl.tell();
ALTER EVENT TRIGGER etl_ddl_drop ENABLE ALWAYS;
"""
"""The token tells what the trigger wrote from what anybody may write into the WAL. `grant_to` lets a role read it."""

REMOVE: Final = """\
DROP EVENT TRIGGER IF EXISTS etl_ddl;
DROP EVENT TRIGGER IF EXISTS etl_ddl_drop;
DROP SCHEMA IF EXISTS etl_ddl CASCADE;
"""

_STATE = """
SELECT string_agg(concat_ws(':', evtname, oid, xmin, evtenabled), ' ' ORDER BY evtname)
       || ' ' || (SELECT token FROM etl_ddl.token)
FROM pg_catalog.pg_event_trigger WHERE evtname IN ('etl_ddl', 'etl_ddl_drop')
HAVING count(*) = 2 AND bool_and(evtenabled = 'A')
"""


def grant_to(conn: Connection) -> str:
    """The SQL that lets the role of this connection, which is the pipeline's, read what the trigger tells."""
    statement = sql.SQL("\nGRANT USAGE ON SCHEMA etl_ddl TO {r};\nGRANT SELECT ON etl_ddl.token TO {r};\n")
    return statement.format(r=sql.Identifier(conn.info.user)).as_string(conn)


@dataclass(frozen=True, slots=True)
class ToldColumn:
    """A column of a table when it was altered, as a Relation message has it, with its number."""

    attnum: int
    is_generated: bool
    column: RelationColumn


@dataclass(frozen=True, slots=True)
class ToldTable:
    """A table as it was after an ALTER. `trigger` tells the trigger of then from one that was altered since."""

    table_id: TableId
    namespace: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[ToldColumn, ...]
    trigger: str


def trigger_state(conn: Connection) -> str | None:
    """What `ToldTable.trigger` is as long as nobody alters the trigger; None if it is not there, or not always on.

    Or not for this role to read. Works on replication connections.
    """
    try:
        row = conn.execute(_STATE).fetchone()
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege):
        return None
    except psycopg.Error as error:
        raise translate(error) from None
    return row[0] if row else None


def run_statements(conn: Connection, statements: str) -> None:
    """Installs or removes the trigger, in one transaction. Raises SourceRefused without the right to."""
    try:
        with conn.transaction():
            conn.execute(statements.encode())
    except errors.InsufficientPrivilege as error:
        raise SourceRefused(
            f"the event trigger cannot be created or dropped: {error.diag.message_primary}",
            hint="nothing was changed; let a superuser run the SQL above in this database",
        ) from None
    except psycopg.Error as error:
        raise translate(error) from None


def parse_told(content: bytes) -> tuple[ToldTable, ...] | None:
    """The tables that a message is about; None where the trigger could not tell, or somebody else wrote it."""
    if content == _UNKNOWN:
        return None
    if not content:
        return ()
    try:
        told = json.loads(content)
        return tuple(
            ToldTable(
                TableId(table["id"]),
                table["namespace"],
                table["name"],
                ReplicaIdentity(table["identity"]),
                tuple(
                    ToldColumn(attnum, is_generated, RelationColumn(key, name, type_oid, modifier))
                    for attnum, name, type_oid, modifier, is_generated, key in table["columns"] or ()
                ),
                told["trigger"] or "",
            )
            for table in told["tables"]
        )
    except (ValueError, KeyError, TypeError):
        return None
