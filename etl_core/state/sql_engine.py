"""Connections of the SQL stores: from a URL to an engine, and how a transaction begins on either database.

A writing transaction is alone in its pipeline (SQLite: in the file), so that what it read still holds when it
writes. Nothing depends on the session's settings: they are set for the transaction, as a pooler in between demands.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import zlib
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    cast,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from etl_core.errors import ConfigError
from etl_core.silence import SilentServer, WatchedConnection

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5
"""Seconds; libpq takes whole ones."""
LOCK_TIMEOUT = 5.0
"""Seconds to wait for another writer. Writes take milliseconds: who waits longer meets a process that hangs."""
STATEMENT_TIMEOUT = 15.0
"""Seconds a statement may run, and a session may idle inside a transaction, in PostgreSQL."""
SILENCE = 20.0
"""Seconds to wait for an answer. By then the server has ended the statement, if it ever got it: a connection that is
still silent leads nowhere, such as through a tunnel whose far side is gone."""

_POSTGRESQL = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_SQLITE = frozenset({"sqlite", "sqlite+pysqlite"})

# Two-key advisory locks. The first key is ours in the database; the second tells pipelines apart.
_ADVISORY_WRITE = 0x65746C  # "etl"
_ADVISORY_MIGRATE = 0x65746D


def open_engine(url: str, pipeline: str) -> tuple[Engine, str]:
    """An engine that has not connected yet, and the store's location for messages (no user, no password).

    Raises ConfigError for a URL that cannot be a state store's.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The reason is not passed on: it may quote the URL.
        raise _wrong_url("the URL of the state store cannot be read") from None
    if parsed.drivername in _SQLITE:
        return _open_sqlite(parsed)
    if parsed.drivername in _POSTGRESQL:
        return _open_postgresql(parsed, pipeline)
    raise _wrong_url(f"a state store cannot be kept in {parsed.drivername}")


def _wrong_url(message: str) -> ConfigError:
    return ConfigError(
        message, field="state.url", hint="write sqlite:///path/to/file.db or postgresql://user@host:5432/database"
    )


def _open_sqlite(url: URL) -> tuple[Engine, str]:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.query:
        raise _wrong_url("a state store in SQLite needs a file, and takes no parameters")
    # Absolute, so that a later change of the working directory does not change the store.
    path = Path(url.database).absolute()
    if not path.parent.is_dir():
        raise ConfigError(
            f"the directory of the state store does not exist: {path.parent}",
            field="state.url",
            hint="create the directory, or change the path in the URL",
        )
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        # Without isolation_level the driver begins no transaction behind our back, in every version of Python.
        connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _make_durable)
    return engine, str(path)


def _make_durable(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # FULL: a slot's name must not be forgotten by a power failure. The price is the disk's sync at every commit:
    # saving progress took 0.7 ms on an idle disk, 7 ms on a busy one, against 0.3 and 0.5 ms with NORMAL.
    connection.execute("PRAGMA synchronous = FULL")


def _open_postgresql(url: URL, pipeline: str) -> tuple[Engine, str]:
    settings = {
        "connect_timeout": CONNECT_TIMEOUT,
        "client_encoding": "UTF8",
        "application_name": f"etl {pipeline} state",
        # A server that vanished without a word is noticed in seconds, not after two hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={
            **{name: value for name, value in settings.items() if name not in url.query},
            # Prepared statements do not survive a pooler in transaction mode.
            "prepare_threshold": None,
        },
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        # One idle connection is kept, and threads do not wait for each other.
        pool_size=1,
        max_overflow=30,
        hide_parameters=True,
    )
    event.listen(engine, "do_connect", _connect)
    host = url.host or url.query.get("host") or "the local socket"
    port = url.port or url.query.get("port") or 5432
    return engine, f"{host}:{port}/{url.database or ''}"


class StoreConnection(WatchedConnection):
    """A connection that says it when it is given up: a new one takes its place, so that there may be no error."""

    silence = statement_silence = SILENCE

    def give_up(self, silent: SilentServer) -> None:
        _log.warning("the state store does not answer: %s; trying again on a new connection", silent)
        super().give_up(silent)


def _connect(
    _dialect: Dialect, _entry: ConnectionPoolEntry, positional: tuple[Any, ...], keywords: dict[str, Any]
) -> WatchedConnection:
    connection = StoreConnection.connect(*positional, **keywords)
    # Said with every BEGIN, as default_transaction_read_only can be set for the role or the database.
    connection.read_only = False
    return connection


def begin_read(connection: Connection) -> None:
    """Before a reading transaction of one statement. SQLite's driver runs that without a transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(*_settings()))


def begin_write(connection: Connection, pipeline: str) -> None:
    """Before a writing transaction: waits until no other writes for the pipeline."""
    if connection.dialect.name == "postgresql":
        second_key = zlib.crc32(pipeline.encode()) - 0x8000_0000
        connection.execute(select(*_settings(), _advisory_lock(_ADVISORY_WRITE, second_key)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def begin_migration(connection: Connection) -> None:
    """Before the migrations' transaction: waits until no other process migrates."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(*_settings(), _advisory_lock(_ADVISORY_MIGRATE, 0)))
    else:
        _switch_to_wal(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _settings() -> tuple[ColumnElement[str], ...]:
    """For this transaction: limits, which stand before the lock, whose wait they bound; and how values are printed."""
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT,
        "lock_timeout": LOCK_TIMEOUT,
        # A process that stopped inside a transaction would keep the pipeline's lock until TCP gives up.
        "idle_in_transaction_session_timeout": STATEMENT_TIMEOUT,
    }
    settings = {
        **{name: f"{round(seconds * 1000)}ms" for name, seconds in limits.items()},
        # The driver reads dates in no other style, and takes the time zone for that of the values.
        "DateStyle": "ISO, MDY",
        "TimeZone": "UTC",
    }
    return tuple(func.set_config(name, value, True) for name, value in settings.items())


def _advisory_lock(first_key: int, second_key: int) -> ColumnElement[None]:
    return func.pg_advisory_xact_lock(cast(first_key, Integer), cast(second_key, Integer))


def _switch_to_wal(connection: Connection) -> None:
    """Write-ahead logging: readers and a writer do not wait for each other. The file remembers it.

    Where another process is about to write (it may be switching too), SQLite fails here at once, whatever its timeout:
    so the waiting is ours.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except DBAPIError as error:
            code = getattr(error.orig, "sqlite_errorcode", 0)
            if code & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
