"""Which server this is and where its WAL ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from etl_core.lsn import Lsn
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

# pg_control_checkpoint() would do for the timeline, but lags behind a promotion until the next checkpoint.
_INFO = """
SELECT pg_catalog.current_setting('server_version_num')::int AS version_num,
       pg_catalog.current_setting('server_version') AS version,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_identifier,
       CASE WHEN pg_catalog.pg_is_in_recovery()
            THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())
            ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))
                 ::bit(32)::int END AS timeline,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_flush_lsn() END::text AS flush_lsn,
       pg_catalog.current_setting('wal_level') AS wal_level,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       pg_catalog.pg_encoding_to_char(d.encoding) AS server_encoding,
       d.datname::text AS database,
       d.oid::bigint AS database_oid,
       CURRENT_USER::text AS user_name
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""

_WAL_RATE = """
SELECT wal_bytes / extract(epoch FROM pg_catalog.clock_timestamp() - stats_reset)
FROM pg_catalog.pg_stat_wal
WHERE stats_reset < pg_catalog.clock_timestamp() - interval '1 min'
"""
_TRY_LOCK = "SELECT pg_catalog.pg_try_advisory_lock(%s, pg_catalog.hashtext(%s))"
_UNLOCK = "SELECT pg_catalog.pg_advisory_unlock(%s, pg_catalog.hashtext(%s))"
# An advisory lock's second key is shown as an unsigned number.
_TURN_HOLDER = """
SELECT l.pid, a.backend_start, a.application_name
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND l.classid::bigint = %s AND l.objid::bigint = (pg_catalog.hashtext(%s)::bigint + 4294967296) %% 4294967296
"""
_APPLICATION_NAMES = """
SELECT DISTINCT application_name FROM pg_catalog.pg_stat_activity
WHERE pg_catalog.starts_with(application_name, %s)
"""

_SESSION_PIDS = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = %s"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server says of itself.

    `system_identifier` and `timeline` are what IDENTIFY_SYSTEM gives. `flush_lsn` is the end of durable WAL, on a
    standby of replayed WAL. `version_num` is `server_version_num`, such as 180004.
    """

    version_num: int
    version: str
    system_identifier: str
    timeline: int
    flush_lsn: Lsn
    wal_level: str
    in_recovery: bool
    server_encoding: str
    database: str
    user: str
    database_oid: int


def server_info(conn: Connection) -> ServerInfo:
    """One query, on an ordinary or a replication connection."""
    try:
        with conn.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(_INFO).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    assert row is not None  # noqa: S101 - the database we are connected to exists
    return ServerInfo(
        version_num=row["version_num"],
        version=row["version"],
        # SQL has no unsigned 64-bit type; IDENTIFY_SYSTEM prints it unsigned.
        system_identifier=str(int(row["system_identifier"]) % 2**64),
        timeline=row["timeline"],
        flush_lsn=Lsn.parse(row["flush_lsn"] or "0/0"),
        wal_level=row["wal_level"],
        in_recovery=row["in_recovery"],
        server_encoding=row["server_encoding"],
        database=row["database"],
        user=row["user_name"],
        database_oid=row["database_oid"],
    )


def current_lsn(conn: Connection) -> Lsn:
    """The end of durable WAL: every transaction committed (and reported) before this call ends at or before it.

    With `synchronous_commit = off` a commit can be reported before its WAL is durable.
    """
    try:
        row = conn.execute("SELECT pg_catalog.pg_current_wal_flush_lsn()::text").fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    assert row is not None  # noqa: S101 - a SELECT without FROM
    return Lsn.parse(row[0])


def server_time(conn: Connection) -> datetime:
    """The server's clock."""
    found: datetime = _rows(conn, "SELECT pg_catalog.clock_timestamp()", ())[0][0]
    return found.astimezone(UTC)


def average_wal_rate(conn: Connection) -> float | None:
    """Bytes of WAL a second that the server has written since its statistics were reset; None soon after that."""
    try:
        row = conn.execute(_WAL_RATE).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return None if row is None or row[0] is None else float(row[0])


class Turn(IntEnum):
    """What one process of a pipeline does at a time: the first key of an advisory lock in the source's database."""

    PREPARE = 0x65746C70
    HOLD = 0x65746C68
    STREAM = 0x65746C73


def try_turn(conn: Connection, turn: Turn, pipeline: str) -> bool:
    """Whether this session could take the turn.

    It has it until `end_turn`, or until `conn` is closed, also by the end of the process.
    """
    return bool(_rows(conn, _TRY_LOCK, (int(turn), pipeline))[0][0])


def end_turn(conn: Connection, turn: Turn, pipeline: str) -> None:
    """Gives back the turn that this session has."""
    _rows(conn, _UNLOCK, (int(turn), pipeline))


@dataclass(frozen=True, slots=True)
class TurnHolder:
    """The session that has a turn. `since` is when it began, by the server's clock; None where we may not see it.

    `name` is its `application_name`, None if it has just ended.
    """

    pid: int
    since: datetime | None
    name: str | None = None


def turn_holder(conn: Connection, turn: Turn, pipeline: str) -> TurnHolder | None:
    """Who has the turn now; None if nobody has."""
    rows = _rows(conn, _TURN_HOLDER, (int(turn), pipeline))
    return TurnHolder(*rows[0]) if rows else None


def limit_lock_waits(conn: Connection, seconds: int) -> None:
    """Statements of this session that wait longer for a lock fail, as a TransientError."""
    _rows(conn, "SELECT pg_catalog.set_config('lock_timeout', %s, false)", (f"{seconds}s",))


def application_names(conn: Connection, prefix: str) -> list[str]:
    """The names of the sessions of this server that begin with `prefix`."""
    return [name for (name,) in _rows(conn, _APPLICATION_NAMES, (prefix,))]


def session_pids(conn: Connection, name: str) -> set[int]:
    """The process ids of the sessions of this server with that `application_name`."""
    return {pid for (pid,) in _rows(conn, _SESSION_PIDS, (name,))}


def _rows(conn: Connection, query: LiteralString, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    try:
        return conn.execute(query, parameters).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None


def running_database(connection: Connection) -> str:
    """Equal for two connections to one database of one running server, whatever address they came by."""
    query = (
        "SELECT pg_catalog.pg_postmaster_start_time()::text, oid::text FROM pg_catalog.pg_database"
        " WHERE datname = pg_catalog.current_database()"
    )
    try:
        rows = connection.execute(query).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
    return " ".join(rows[0])
