"""Connections to the source: pinned session settings, timeouts, and failures said in one sentence.

A value's text depends on session settings, and a role or a database can change every one of them (`ALTER ROLE … SET`).
What libpq sends in `options` wins over both and reaches a walsender too, before its first command.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-OPTIONS
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any, TypeAlias

import psycopg
from psycopg import conninfo as conninfo_syntax

from etl_core.errors import ConfigError, EtlError, SourceRefused, SourceUnavailable
from etl_core.silence import SILENCE, WatchedConnection
from etl_core.source.sqlstate import translate

Connection: TypeAlias = WatchedConnection

# No value may hold a space: `options` is split at them. Values print as `etl_core.values` reads them.
SESSION_SETTINGS: dict[str, str] = {
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    # A value of type money is printed, and read back by a row filter, as the locale says. C always prints two decimals,
    # whatever the database's own locale says of the same value (`etl_core.source.money`).
    "lc_monetary": "C",
    # Expressions and names that the server prints from its catalog are compared, and used in statements.
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "search_path": "",
    "row_security": "off",
    # A role or database that is read-only by default could not create what replication needs.
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # Compiling expressions costs a COPY seconds at its start and gains nothing.
    "jit": "off",
}

# The person's own values win. A dead peer is noticed within a minute, an unreachable one within ten seconds.
_NETWORK_DEFAULTS: dict[str, str] = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
}

# Texts of libpq and the server (English), with what to do. Whatever is not here may pass by itself.
_REFUSALS: tuple[tuple[str, str], ...] = (
    (
        r"password authentication failed|no password supplied|authentication failed",
        "check the user and the password (configuration, PGPASSWORD or password file)",
    ),
    (
        r"pg_hba\.conf",
        "add a line to pg_hba.conf that lets this host and user into the database, then SELECT pg_reload_conf()",
    ),
    (
        r"to start walsender|to start WAL sender",
        "ALTER ROLE … REPLICATION for this user (Amazon RDS: GRANT rds_replication TO …)",
    ),
    (r'database ".*" does not exist|not currently accepting connections', "check the database's name"),
    (r'role ".*" does not exist|not permitted to log in', "check the user's name, and that it has LOGIN"),
    (r"permission denied for database|CONNECT privilege", "GRANT CONNECT ON DATABASE … to this user"),
    (
        r"unsupported startup parameter|unrecognized configuration parameter|unsupported options",
        "this looks like a connection pooler; connect to PostgreSQL itself, replication needs it anyway",
    ),
    (
        r"does not support SSL|SSL error|certificate|sslmode|ssl=",
        "check sslmode, sslrootcert and the server's certificate",
    ),
)
# A session that waits for its client has said what it had to say, or does not get rid of it. A walsender that waits for
# WAL answers its client, so that silence is no sign of work; but not while it creates a slot (then it is in `startup`).
_WORKS = """
SELECT FROM pg_catalog.pg_stat_activity a
WHERE a.pid = %s AND a.state = 'active'
  AND coalesce(a.wait_event, '') NOT IN ('ClientRead', 'ClientWrite', 'WalSenderWriteData', 'WalSenderMain')
  AND NOT (coalesce(a.wait_event_type, '') = 'Client'
           AND EXISTS (SELECT FROM pg_catalog.pg_stat_replication r WHERE r.pid = a.pid AND r.state <> 'startup'))
"""
_PROBE_TIMEOUT = 10.0

_PORTS = re.compile(r"[0-9,]*")
_BUSY = re.compile(r"too many (clients|connections)|remaining connection slots|max_wal_senders", re.IGNORECASE)


def connect(
    conninfo: str,
    *,
    pipeline: str,
    role: str,
    replication: bool = False,
    autocommit: bool = True,
    silence: float = SILENCE,
) -> Connection:
    """A connection whose settings do not depend on role, database or environment.

    `application_name` is `etl_<pipeline>_<role>`. With `replication` it is a logical walsender of the database:
    replication commands and simple queries (parameters are merged on our side). After `silence` seconds without a word
    it is given up, unless the server says that it works for it.
    Raises ConfigError for a connection string that cannot be read, SourceRefused or SourceUnavailable.
    """
    params = connection_parameters(conninfo, pipeline=pipeline, role=role, replication=replication)
    cursor_factory: type[psycopg.Cursor[tuple[Any, ...]]] = psycopg.ClientCursor if replication else psycopg.Cursor
    try:
        connection = WatchedConnection.connect(
            **params, autocommit=True, prepare_threshold=None, cursor_factory=cursor_factory
        )
    except psycopg.Error as error:
        raise _connect_failure(error, params) from None
    probe = {key: value for key, value in params.items() if key != "replication"}
    probe["application_name"] = f"etl_{pipeline}_probe"
    pid = connection.info.backend_pid
    connection.silence = silence
    connection.is_working = lambda: _is_working(probe, pid, min(silence, _PROBE_TIMEOUT))
    try:
        _check_settings(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def _is_working(params: dict[str, Any], pid: int, timeout: float) -> bool:
    """Whether the server, asked on another connection, still works for the session `pid`. Raises psycopg.Error."""
    try:
        with contextlib.closing(WatchedConnection.connect(**params, autocommit=True)) as probe:
            probe.silence = timeout
            return probe.execute(_WORKS, (pid,)).fetchone() is not None
    except psycopg.OperationalError as error:
        if _BUSY.search(str(error)):
            return True  # it answers, and may be asked again later
        raise


def connection_parameters(conninfo: str, *, pipeline: str, role: str, replication: bool = False) -> dict[str, Any]:
    """The libpq parameters `connect` uses. Holds the password, if the connection string does."""
    try:
        given = conninfo_syntax.conninfo_to_dict(conninfo)
    except psycopg.Error:
        # libpq's message quotes the string, and with it the password.
        raise ConfigError(
            "the connection string of the source cannot be read",
            field="source.dsn",
            hint="write postgresql://user@host:5432/database, or key=value pairs as libpq knows them",
        ) from None
    if not _PORTS.fullmatch(str(given.get("port") or "")) or any(
        "@" in str(given.get(key) or "") for key in ("host", "hostaddr", "dbname")
    ):
        # An unescaped @ or / in a password moves parts of it into the address, which messages show.
        raise ConfigError(
            "the address in the source's connection string is not one",
            field="source.dsn",
            hint="write @ and / in a password as %40 and %2F, or give the password apart from the address",
        )
    own_options = given.get("options") or os.environ.get("PGOPTIONS") or ""
    pinned = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    params: dict[str, Any] = {**_NETWORK_DEFAULTS, **given}
    params |= {
        "options": f"{own_options} {pinned}".strip(),
        "client_encoding": "UTF8",
        "application_name": f"etl_{pipeline}_{role}",
    }
    if replication:
        params["replication"] = "database"
    else:
        params.pop("replication", None)
    return params


def text_encoding(connection: Connection) -> str:
    """The encoding to ask for rows in: UTF8, but SQL_ASCII of a database with that encoding.

    Such a database may hold any bytes. To send them as UTF-8 the server would check them, and one bad value would end
    the stream of all tables; our own check (`etl_core.values`) names the column and stops its table alone.
    """
    return "SQL_ASCII" if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII" else "UTF8"


def _check_settings(connection: Connection) -> None:
    """Raises SourceRefused if something in between dropped `options`, as poolers can be told to do."""
    for name in ("IntervalStyle", "TimeZone"):
        reported = connection.pgconn.parameter_status(name.encode())
        if reported is None or reported.decode() != SESSION_SETTINGS[name]:
            raise SourceRefused(
                f"the session setting {name} does not reach PostgreSQL: a connection pooler drops it",
                hint="connect to PostgreSQL itself, or take `options` out of ignore_startup_parameters",
            )
    if connection.info.server_version >= 170000:
        # Unknown to older servers, which would refuse the connection for it.
        try:
            connection.execute("SET transaction_timeout = 0")
        except psycopg.Error as error:
            raise translate(error) from None


def _connect_failure(error: psycopg.Error, params: dict[str, Any]) -> EtlError:
    reason = _reason(str(error), params.get("password"))
    message = f"cannot connect to {_address(params)}: {reason}"
    for pattern, hint in _REFUSALS:
        if re.search(pattern, reason):
            return SourceRefused(message, hint=hint)
    if _BUSY.search(reason):
        return SourceUnavailable(message, hint="close connections, or raise max_connections or max_wal_senders")
    return SourceUnavailable(message, hint="check that the server runs and that host and port are right")


def _reason(text: str, password: object) -> str:
    """The last failure of libpq's text, without where it happened, which we say ourselves."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if "failed:" in line or "FATAL" in line or "error:" in line]
    reason = (failures or lines or ["unknown reason"])[-1]
    reason = re.sub(r"^.*failed: (?:FATAL:\s*)?", "", reason).rstrip(".")
    if password:
        reason = reason.replace(str(password), "***")
    return reason


def _address(params: dict[str, Any]) -> str:
    host = params.get("host") or params.get("hostaddr") or os.environ.get("PGHOST") or "the local socket"
    port = params.get("port") or os.environ.get("PGPORT") or "5432"
    database = params.get("dbname") or os.environ.get("PGDATABASE")
    user = params.get("user") or os.environ.get("PGUSER")
    return f"{host}:{port}{f', database {database}' if database else ''}{f', as {user}' if user else ''}"
