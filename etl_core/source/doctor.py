"""The preflight: what on the source would make replication unsafe, and the SQL that mends it.

Reads only, with the rights replication needs anyway, and leaves nothing behind. What it may not see it does not judge.
The server's side is here, publication and tables are in `doctor_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import main_slot_name
from etl_core.source.connection import Connection, connect
from etl_core.source.doctor_tables import NamesNow, as_selected, examine_tables
from etl_core.source.finding import Finding, Severity
from etl_core.source.server import ServerInfo, server_info
from etl_core.source.slot import SlotStatus, drop_statement, find_writers, slot_status
from etl_core.source.sqlstate import translate
from etl_core.source.transport import Transport, transport_of
from etl_core.table_pattern import TableSelection

__all__ = ["Finding", "Severity", "examine"]

_OLDEST = 140000

# The first minor of each major without the defects below, all of which lose or delay changes of logical decoding.
_GOOD_MINORS: tuple[tuple[Mapping[int, int], str], ...] = (
    ({14: 15, 15: 10, 16: 6, 17: 2}, "a slot's restart_lsn can go back, so that WAL it needs is removed"),
    ({14: 18, 15: 13, 16: 9, 17: 5}, "changes made by transactions open while a publication was altered can be missed"),
    ({14: 19, 15: 14, 16: 10, 17: 6}, "logical decoding can run out of memory when many transactions run beside DDL"),
)

_SETTINGS = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name IN ('max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size', 'wal_sender_timeout',
               'idle_replication_slot_timeout')
"""

_COUNTS = """
SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots),
       (SELECT count(*) FROM pg_catalog.pg_stat_replication),
       pg_catalog.pg_backend_pid()
"""

# Slots and walsenders for the stream and for one table's copy.
_NEEDED = 2
_OLD_TRANSACTION_S = 300.0
_SHORTEST_SENDER_TIMEOUT_MS = 15_000
_LOW_HEADROOM = 0.2


@dataclass(frozen=True, slots=True)
class _Server:
    """What the checks of the server look at."""

    info: ServerInfo
    settings: Mapping[str, int]
    slots_used: int
    senders_used: int
    slot_name: str
    slot: SlotStatus | None


def examine(
    conninfo: str,
    *,
    pipeline: str,
    publication: str,
    selection: TableSelection | None = None,
    allow_append_only: bool = False,
    names_now: NamesNow = as_selected,
) -> list[Finding]:
    """All findings, server first, then publication and tables; a source that cannot be reached is one `unsafe` finding.

    Replication would be unsafe if any finding is. `selection` None stands for whatever the publication publishes.
    `names_now` gives the tables selected by their names of now: some may be followed under another one.
    """
    try:
        conn = connect(conninfo, pipeline=pipeline, role="doctor")
    except ConfigError:
        raise
    except EtlError as error:
        return [Finding(Severity.UNSAFE, "connection", _sentence(error))]
    with conn:
        findings: list[Finding] = []
        try:
            server = _read_server(conn, pipeline)
            findings.append(check_transport(transport_of(conn)))
            findings += _check_server(server)
            findings += _check_replication_connection(conninfo, pipeline, conn, server.info)
            findings += _check_pooler(conn)
            findings += _check_slot(server)
            findings += _check_transactions(conn)
            findings += examine_tables(
                conn, server.info, publication, selection, allow_append_only=allow_append_only, names_now=names_now
            )
        except EtlError as error:
            findings.append(Finding(Severity.UNSAFE, "connection", _sentence(error)))
        return findings


def _read_server(conn: Connection, pipeline: str) -> _Server:
    name = main_slot_name(pipeline)
    settings = {row[0]: int(row[1]) for row in _rows(conn, _SETTINGS)}
    slots_used, senders_used, _ = _rows(conn, _COUNTS)[0]
    return _Server(server_info(conn), settings, slots_used, senders_used, name, slot_status(conn, name))


def _check_server(server: _Server) -> Iterator[Finding]:
    checks: tuple[Callable[[_Server], Iterator[Finding]], ...] = (
        _check_version,
        _check_wal_level,
        _check_standby,
        _check_encoding,
        _check_room,
        _check_timeouts,
        _check_wal_limit,
    )
    for check in checks:
        yield from check(server)


def check_transport(transport: Transport) -> Finding:
    """What `transport` lets others on the way to another machine do."""
    if transport.is_local or transport.kind == "gssapi":
        return Finding(Severity.OK, "transport", str(transport))
    if transport.kind == "tcp":
        return Finding(
            Severity.WARNING,
            "transport",
            "TCP without TLS to another machine: whoever is on the way can read and change rows;"
            " set source.sslmode to verify-full, and source.sslrootcert to the authority of the server's certificate",
        )
    if not transport.is_verified:
        return Finding(
            Severity.NOTE,
            "transport",
            f"{transport}: the server's certificate is not verified, so another server could take its place;"
            " set source.sslmode to verify-full, and source.sslrootcert to the authority of the server's certificate",
        )
    return Finding(Severity.OK, "transport", str(transport))


def _check_version(server: _Server) -> Iterator[Finding]:
    number, text = server.info.version_num, server.info.version
    if number < _OLDEST:
        yield Finding(Severity.UNSAFE, "version", f"PostgreSQL {text} is too old: 14 is the oldest that is supported")
        return
    major, minor = divmod(number, 10000)
    defects = [(good[major], what) for good, what in _GOOD_MINORS if minor < good.get(major, 0)]
    if not defects:
        yield Finding(Severity.OK, "version", f"PostgreSQL {text}")
        return
    latest = max(good for good, _ in defects)
    why = "; ".join(what for _, what in defects)
    yield Finding(
        Severity.WARNING, "version", f"PostgreSQL {text} has known defects, update to {major}.{latest}: {why}"
    )


def _check_wal_level(server: _Server) -> Iterator[Finding]:
    if server.info.wal_level == "logical":
        yield Finding(Severity.OK, "wal_level", "wal_level is logical")
        return
    yield Finding(
        Severity.UNSAFE,
        "wal_level",
        f"wal_level is {server.info.wal_level}; it must be logical, which takes a restart"
        " (on Amazon RDS set rds.logical_replication = 1, on Cloud SQL cloudsql.logical_decoding = on)",
        "ALTER SYSTEM SET wal_level = 'logical'",
    )


def _check_standby(server: _Server) -> Iterator[Finding]:
    if server.info.in_recovery:
        yield Finding(Severity.UNSAFE, "standby", "this server is a standby; connect to the primary")


def _check_encoding(server: _Server) -> Iterator[Finding]:
    if server.info.server_encoding == "SQL_ASCII":
        yield Finding(
            Severity.WARNING,
            "encoding",
            f"database {server.info.database} is SQL_ASCII, so its text need not be UTF-8; other text stops a table",
        )


def _check_room(server: _Server) -> Iterator[Finding]:
    slots_needed = _NEEDED - (server.slot is not None)
    yield from _room("max_replication_slots", "replication slots", server.slots_used, slots_needed, server)
    senders_needed = _NEEDED - (server.slot is not None and server.slot.active)
    yield from _room("max_wal_senders", "walsenders", server.senders_used, senders_needed, server)


def _room(setting: str, what: str, used: int, needed: int, server: _Server) -> Iterator[Finding]:
    limit = server.settings[setting]
    left = limit - used
    if left >= needed:
        yield Finding(Severity.OK, setting, f"{left} of {limit} {what} are free")
        return
    enough_to_stream = needed - left < _NEEDED
    yield Finding(
        Severity.WARNING if enough_to_stream else Severity.UNSAFE,
        setting,
        f"{left} of {limit} {what} are free; the stream needs one and each table in copy another (takes a restart)",
        f"ALTER SYSTEM SET {setting} = {limit + 10}",
    )


def _check_timeouts(server: _Server) -> Iterator[Finding]:
    idle = server.settings.get("idle_replication_slot_timeout", 0)
    if idle:
        yield Finding(
            Severity.WARNING,
            "idle_replication_slot_timeout",
            f"slots that nobody reads for {idle} s are invalidated, and all tables must then be copied again;"
            " a pipeline that runs in batches, or stands still for a while, loses its slot",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()",
        )
    sender = server.settings["wal_sender_timeout"]
    if 0 < sender < _SHORTEST_SENDER_TIMEOUT_MS:
        yield Finding(
            Severity.WARNING,
            "wal_sender_timeout",
            f"wal_sender_timeout is {sender} ms, which a busy machine can miss; the stream is then cut",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf()",
        )


def _check_wal_limit(server: _Server) -> Iterator[Finding]:
    limit = server.settings["max_slot_wal_keep_size"]  # MB
    if limit < 0:
        yield Finding(
            Severity.NOTE,
            "max_slot_wal_keep_size",
            "WAL is kept for a slot without a limit: a pipeline that stands still fills the server's disk."
            " With a limit it loses its slot instead; choose one that covers the longest stop you expect",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf()",
        )
        return
    left = server.slot.safe_wal_size if server.slot else None
    if left is not None and left < limit * 2**20 * _LOW_HEADROOM:
        yield Finding(
            Severity.WARNING,
            "max_slot_wal_keep_size",
            f"slot {server.slot_name} is lost after {left // 2**20} MB more of WAL (the limit is {limit} MB);"
            " let the pipeline catch up, or raise the limit",
            f"ALTER SYSTEM SET max_slot_wal_keep_size = '{limit * 2}MB'; SELECT pg_reload_conf()",
        )
    else:
        yield Finding(Severity.OK, "max_slot_wal_keep_size", f"up to {limit} MB of WAL are kept for a slot")


def _check_replication_connection(
    conninfo: str, pipeline: str, conn: Connection, info: ServerInfo
) -> Iterator[Finding]:
    """Opens one, which is the only sure test of rights, pg_hba.conf and whatever stands between."""
    try:
        with connect(conninfo, pipeline=pipeline, role="doctor", replication=True) as walsender:
            row = walsender.execute("IDENTIFY_SYSTEM").fetchone()
    except (EtlError, psycopg.Error) as error:
        failure = error if isinstance(error, EtlError) else translate(error)
        statement = sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(info.user))
        # Both versions' words for it; other failures are not mended by the attribute.
        lacks_right = "walsender" in str(failure) or "WAL sender" in str(failure)
        yield Finding(
            Severity.UNSAFE, "replication", _sentence(failure), statement.as_string(conn) if lacks_right else None
        )
        return
    if row is not None and str(row[0]) != info.system_identifier:
        yield Finding(
            Severity.UNSAFE,
            "replication",
            "a replication connection reaches another server than an ordinary one; connect to the primary itself",
        )
        return
    yield Finding(Severity.OK, "replication", f"{info.user} may replicate")


def _check_pooler(conn: Connection) -> Iterator[Finding]:
    # A pooler makes up the process id it greets its clients with.
    if _rows(conn, _COUNTS)[0][2] != conn.info.backend_pid:
        yield Finding(
            Severity.WARNING,
            "pooler",
            "a connection pooler stands between us and PostgreSQL; copies need connections that stay theirs, so connect"
            " to PostgreSQL itself",
        )


def _check_slot(server: _Server) -> Iterator[Finding]:
    slot, name = server.slot, server.slot_name
    if slot is None:
        yield Finding(Severity.OK, "slot", f"slot {name} does not exist yet; it is created at the first start")
        return
    if slot.plugin != "pgoutput" or slot.database != server.info.database:
        yield Finding(
            Severity.UNSAFE,
            "slot",
            f"slot {name} belongs to something else: plugin {slot.plugin}, database {slot.database};"
            " give the pipeline another name",
        )
    elif slot.is_lost:
        why = slot.invalidation_reason or "its WAL was removed"
        yield Finding(
            Severity.UNSAFE,
            "slot",
            f"slot {name} is lost ({why}): changes are missing; drop it and copy all tables again",
            drop_statement(name),
        )
    elif slot.wal_status == "unreserved":
        yield Finding(Severity.WARNING, "slot", f"slot {name} is about to lose WAL it needs; run the pipeline now")
    else:
        behind = "" if slot.bytes_behind is None else f", {slot.bytes_behind // 2**20} MB behind"
        reader = f", read by process {slot.active_pid}" if slot.active else ""
        yield Finding(Severity.OK, "slot", f"slot {name} is {slot.wal_status}{behind}{reader}")


def _check_transactions(conn: Connection) -> Iterator[Finding]:
    """Creating a slot, once for the stream and once per copied table, waits for every writing transaction."""
    for writer in find_writers(conn):
        if writer.age is None or writer.age < _OLD_TRANSACTION_S:
            continue
        if writer.pid is None:
            end: sql.Composable = sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(writer.gid))
        else:
            end = sql.SQL("SELECT pg_terminate_backend({})").format(sql.Literal(writer.pid))
        yield Finding(
            Severity.WARNING,
            "transactions",
            f"{writer} holds up the creation of slots, and so every copy, until it ends",
            end.as_string(conn),
        )


def _sentence(error: EtlError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _rows(conn: Connection, query: str) -> list[tuple[Any, ...]]:
    try:
        return conn.execute(query.encode()).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
