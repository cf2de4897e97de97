"""Replication slots: created with or without a snapshot, looked at, dropped.

Creating one waits for every transaction that is writing at that moment, anywhere on the server: the wait says who it is
for, and can be stopped. Nothing here drops a slot on its own account; who owns a slot is the state store's business.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from etl_core.errors import SlotInUse, Stopped
from etl_core.lsn import Lsn
from etl_core.source.command import CommandStopped, check_result, is_good, result_sqlstate, run_command
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_FIRST_REPORT_S = 0.5
_REPORT_EVERY_S = 1.0
_DROP_RETRY_S = 0.05
_DUPLICATE_OBJECT = "42710"

# Visible without any right: pid, application name and transaction id. Age and query only to members of the
# backend's role and to pg_read_all_stats. Of a query only the command word is taken: the rest may hold values.
_WRITERS = b"""
SELECT pid,
       extract(epoch FROM pg_catalog.clock_timestamp() - xact_start)::float8 AS age,
       application_name,
       state,
       pg_catalog.upper(pg_catalog.substring(query, '^[[:space:]]*([A-Za-z]+)')) AS command,
       NULL::text AS gid
FROM pg_catalog.pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> %(pid)s AND (xact_start IS NULL OR xact_start <= %(since)s)
UNION ALL
SELECT NULL, extract(epoch FROM pg_catalog.clock_timestamp() - prepared)::float8, NULL, 'prepared', NULL, gid
FROM pg_catalog.pg_prepared_xacts
WHERE prepared <= %(since)s
ORDER BY 2 DESC NULLS LAST
"""

# As jsonb, because 16 and 17 added columns.
_STATUS = """
SELECT pg_catalog.to_jsonb(s),
       pg_catalog.pg_wal_lsn_diff(
           CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                ELSE pg_catalog.pg_current_wal_flush_lsn() END, s.confirmed_flush_lsn)::bigint
FROM pg_catalog.pg_replication_slots s
"""
_WAL_LIMIT = b"SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'"
_ONE = _STATUS + "WHERE s.slot_name = %s"
_NAMED = _STATUS + "WHERE s.slot_name = ANY(%s) ORDER BY s.slot_name"
_UNREAD = (
    _STATUS
    + """WHERE pg_catalog.starts_with(s.slot_name::text, 'etl_') AND s.plugin = 'pgoutput' AND NOT s.temporary
    AND NOT s.active AND s.database = pg_catalog.current_database()
ORDER BY s.slot_name"""
)


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """A new slot. A change is in its stream if its transaction's commit ends after `consistent_point`.

    `snapshot_name`, None unless exported, lives as long as the connection that created the slot runs nothing else.
    """

    name: str
    consistent_point: Lsn
    snapshot_name: str | None


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that the creation of a slot waits for.

    `pid` is None and `gid` its name for a prepared transaction. `age` is in seconds; it and `command` (the first
    word of its statement) are None where we may not see them.
    """

    pid: int | None
    age: float | None
    application_name: str | None
    state: str | None
    command: str | None
    gid: str | None = None

    def __str__(self) -> str:
        who = f"prepared transaction {self.gid}" if self.pid is None else f"pid {self.pid}"
        said = [f"open for {self.age:.0f} s" if self.age is not None else None, self.application_name, self.state]
        return f"{who} ({', '.join(part for part in (*said, self.command) if part)})"


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """A row of `pg_replication_slots`. Bytes; None where the server does not know or its version does not say.

    `bytes_behind` is the WAL between `confirmed_flush_lsn` and the end. `wal_status` is reserved, extended, unreserved
    or lost; `safe_wal_size` the WAL that may still be written before it is lost, None without a limit.
    """

    name: str
    plugin: str | None
    database: str | None
    temporary: bool
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str | None
    safe_wal_size: int | None
    two_phase: bool
    invalidation_reason: str | None
    inactive_since: str | None
    bytes_behind: int | None
    database_oid: int | None = None

    @property
    def bytes_kept(self) -> int | None:
        """The WAL that the server keeps because of this slot, from `restart_lsn` to the end."""
        if self.bytes_behind is None or self.confirmed_flush_lsn is None or self.restart_lsn is None:
            return None
        return self.bytes_behind + self.confirmed_flush_lsn - self.restart_lsn

    @property
    def is_lost(self) -> bool:
        """Whether WAL the slot needs is gone, so that reading it would fail."""
        return self.wal_status == "lost" or self.invalidation_reason is not None


def create_slot(
    conn: Connection,
    name: str,
    *,
    export_snapshot: bool,
    temporary: bool = False,
    observer: Connection | None = None,
    on_wait: Callable[[Sequence[Blocker]], None] | None = None,
    stop: threading.Event | None = None,
) -> CreatedSlot:
    """Creates a logical slot with `pgoutput` on a replication connection. A temporary one ends with the connection.

    While it waits, `on_wait` gets, about every second, whom for, as `observer` (an ordinary connection) sees it.
    Setting `stop` cancels the wait: raises Stopped, and no slot is left. Raises SlotInUse if there is one of that name,
    SourceUnavailable or SourceRefused (no right, no free slot, wal_level).
    """
    statement = _create_statement(conn, name, export_snapshot, temporary)
    try:
        result = run_command(conn, statement, stop or threading.Event(), _Reporter(conn, observer, on_wait))
    except CommandStopped as stopped:
        # The answer and our cancelling it may have crossed.
        if stopped.result is not None and is_good(stopped.result):
            drop = sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name))
            check_result(run_command(conn, drop.as_bytes(conn), threading.Event()))
        raise Stopped(f"the creation of replication slot {name} was stopped") from None
    if result_sqlstate(result) == _DUPLICATE_OBJECT:
        raise SlotInUse(
            f"replication slot {name} exists already",
            hint=f"if no pipeline of that name runs: {drop_statement(name)}",
        )
    check_result(result)
    row = [(result.get_value(0, column) or b"").decode() for column in range(result.nfields)]
    return CreatedSlot(row[0], Lsn.parse(row[1]), row[2] if export_snapshot else None)


def copy_slot(conn: Connection, source: str, name: str) -> Lsn:
    """Creates the logical slot `name` where `source`, which may be in use, is confirmed; returns that position.

    Waits for no transaction. Raises SourceRefused (no right, a lost slot), SourceUnavailable (no free slot).
    """
    try:
        row = conn.execute(
            "SELECT lsn::text FROM pg_catalog.pg_copy_logical_replication_slot(%s, %s, false)", (source, name)
        ).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    assert row is not None  # noqa: S101 - one row, or an error
    return Lsn.parse(row[0])


def wal_limit(conn: Connection) -> int | None:
    """How many bytes of WAL the server keeps for a slot; None where it keeps all of it."""
    try:
        row = conn.execute(_WAL_LIMIT).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    megabytes = -1 if row is None else int(row[0])
    return None if megabytes < 0 else megabytes * 2**20


def slot_status(conn: Connection, name: str) -> SlotStatus | None:
    """The slot as of now, None if there is none."""
    try:
        row = conn.execute(_ONE, (name,)).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    return _status(*row) if row else None


def slot_statuses(conn: Connection, names: Collection[str]) -> list[SlotStatus]:
    """Those of these slots that there are, by name."""
    try:
        return [_status(*row) for row in conn.execute(_NAMED, (list(names),)).fetchall()]
    except psycopg.Error as error:
        raise translate(error) from None


def unread_slots(conn: Connection) -> list[SlotStatus]:
    """The slots of pipelines, of whichever, on this database that nobody reads at the moment, by name."""
    try:
        return [_status(*row) for row in conn.execute(_UNREAD).fetchall()]
    except psycopg.Error as error:
        raise translate(error) from None


def find_writers(conn: Connection) -> list[Blocker]:
    """The transactions that creating a slot now would wait for, oldest first; those of unknown age last."""
    try:
        return _read_writers(conn, conn.info.backend_pid, _now(conn))
    except psycopg.Error as error:
        raise translate(error) from None


def drop_slot(conn: Connection, name: str, *, timeout: float = 10.0) -> bool:
    """Drops the slot; False if there is none. `conn` must be in autocommit mode.

    A walsender whose client just left lives on for a moment, and is waited for at most `timeout` seconds; then
    SlotInUse. The caller makes sure that the slot is its own.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            conn.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))
        except psycopg.errors.UndefinedObject:
            return False
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() >= deadline:
                raise translate(error) from None
            time.sleep(_DROP_RETRY_S)
        except psycopg.Error as error:
            raise translate(error) from None
        else:
            return True


def drop_statement(name: str) -> str:
    """The SQL that drops the slot, for hints."""
    return sql.SQL("SELECT pg_drop_replication_slot({})").format(sql.Literal(name)).as_string(None)


def _create_statement(conn: Connection, name: str, export_snapshot: bool, temporary: bool) -> bytes:
    if conn.info.server_version >= 150000:
        option = "(SNAPSHOT 'export')" if export_snapshot else "(SNAPSHOT 'nothing')"
    else:
        option = "EXPORT_SNAPSHOT" if export_snapshot else "NOEXPORT_SNAPSHOT"
    kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
    statement = sql.SQL("CREATE_REPLICATION_SLOT {} {} pgoutput {}")
    return statement.format(sql.Identifier(name), sql.SQL(kind), sql.SQL(option)).as_bytes(conn)


def _now(conn: Connection) -> datetime:
    row = conn.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM
    now: datetime = row[0]
    return now


def _read_writers(conn: Connection, own_pid: int, since: datetime) -> list[Blocker]:
    rows = conn.execute(_WRITERS, {"pid": own_pid, "since": since}).fetchall()
    return [Blocker(*row) for row in rows]


class _Reporter:
    """Tells, about every second, whom the creation of a slot waits for."""

    def __init__(
        self, conn: Connection, observer: Connection | None, on_wait: Callable[[Sequence[Blocker]], None] | None
    ) -> None:
        self._pid = conn.info.backend_pid
        # When the wait began: transactions that begin later are not waited for; short ones come and go.
        self._since: datetime | None = None
        self._observer = observer
        self._on_wait = on_wait
        self._due = time.monotonic() + _FIRST_REPORT_S

    def __call__(self) -> None:
        if self._observer is None or self._on_wait is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _REPORT_EVERY_S
        try:
            if self._since is None:
                self._since = _now(self._observer)
            blockers = _read_writers(self._observer, self._pid, self._since)
        except psycopg.Error:
            self._observer = None  # the wait goes on without a report
        else:
            self._on_wait(blockers)


def _status(slot: dict[str, Any], bytes_behind: int | None) -> SlotStatus:
    return SlotStatus(
        name=slot["slot_name"],
        plugin=slot["plugin"],
        database=slot["database"],
        temporary=slot["temporary"],
        active=slot["active"],
        active_pid=slot["active_pid"],
        restart_lsn=_lsn(slot["restart_lsn"]),
        confirmed_flush_lsn=_lsn(slot["confirmed_flush_lsn"]),
        wal_status=slot["wal_status"],
        safe_wal_size=slot["safe_wal_size"],
        two_phase=bool(slot.get("two_phase")),
        invalidation_reason=slot.get("invalidation_reason"),
        inactive_since=slot.get("inactive_since"),
        bytes_behind=bytes_behind,
        database_oid=int(slot["datoid"]) if slot["datoid"] else None,  # jsonb has OIDs as text
    )


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
