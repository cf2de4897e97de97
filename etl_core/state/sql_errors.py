"""Errors of the SQL stores' databases, told in our words: what may be tried again, and what a person must mend.

The drivers' texts are read, never passed on: they can hold connection strings and values. The one exception is
the server's own sentence about a missing right, which names an object and nothing else.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from etl_core.errors import ConfigError, EtlError, PermanentError, StateStoreUnavailable
from etl_core.silence import SilentServer


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Raises SQLAlchemy's errors as ours. `place` is the store's location, without user or password."""
    try:
        yield
    except DBAPIError as error:
        raise translate(error, place) from None
    except StatementError as error:
        # A value our column types refuse: a mistake of the caller, in our words already.
        raise (error.orig or error) from None
    except SQLAlchemyError as error:
        raise translate(error, place) from None


def translate(error: SQLAlchemyError, place: str) -> EtlError:
    """The error to raise instead of `error`."""
    store = f"the state store at {place}"
    if isinstance(error, PoolTimeout):
        return StateStoreUnavailable(f"{store} has all its connections in use", hint="use fewer workers")
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return _from_sqlite(cause, store)
    if isinstance(cause, psycopg.Error):
        if cause.sqlstate is None:
            return _from_libpq(cause, store)
        return _from_postgresql(cause.sqlstate, cause, store)
    return PermanentError(f"{store} could not be used ({type(error).__name__})", hint="report this as a defect")


def _from_sqlite(cause: sqlite3.Error, store: str) -> EtlError:
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest is the extended code
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StateStoreUnavailable(
                f"{store} is locked by another process", hint="end what holds a transaction open on the file"
            )
        case sqlite3.SQLITE_FULL:
            return StateStoreUnavailable(f"{store} has no disk space left", hint="free space on its disk")
        case sqlite3.SQLITE_IOERR:
            return StateStoreUnavailable(
                f"{store} cannot be read or written", hint="check its disk: it may be full, or fail"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return PermanentError(
                f"{store} cannot be opened for writing",
                hint="the user who runs this needs to write the file and its directory, and its disk must have room",
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return PermanentError(
                f"{store} is not a readable SQLite file", hint="choose another path, or restore it from a backup"
            )
    if "no such table" in str(cause) or "no such column" in str(cause):
        return _not_migrated(store)
    return PermanentError(f"{store} refused a statement (SQLite error {code})", hint="report this as a defect")


# psycopg gives no SQLSTATE for a connection that was never made: libpq has only the text. The first pattern that occurs
# counts; each has a space or a quote, so that no host's name can look like one.
_CANNOT_CONNECT: tuple[tuple[str, type[EtlError], str, str], ...] = (
    ("too many connections", StateStoreUnavailable, "has no connection left", "raise the limit of connections"),
    ("connection slots are reserved", StateStoreUnavailable, "has no connection left", "raise its max_connections"),
    ("is starting up", StateStoreUnavailable, "is starting up", "wait until it is up"),
    ("is shutting down", StateStoreUnavailable, "is shutting down", "start it again"),
    ("in recovery mode", StateStoreUnavailable, "recovers from a crash", "wait until it is up"),
    ("password authentication failed", PermanentError, "refuses the user or password", "check user and password"),
    ("no password supplied", PermanentError, "asks for a password", "set PGPASSWORD, or put it into ~/.pgpass"),
    ("no pg_hba.conf entry", PermanentError, "does not let this user in from here", "add a line to its pg_hba.conf"),
    ('role ".*" does not exist', PermanentError, "does not know this user", "create the role, or change the URL"),
    ('database ".*" does not exist', PermanentError, "does not exist", "create the database, or change the URL"),
    ("not permitted to log in", PermanentError, "does not let this role log in", "let it: ALTER ROLE … LOGIN"),
    (
        "permission denied for database",
        PermanentError,
        "does not let this role in",
        "let it: GRANT CONNECT ON DATABASE",
    ),
    ("certificate (verify|authentication) failed", PermanentError, "fails its certificate's check", "see sslrootcert"),
    (
        "certificate file",
        PermanentError,
        "needs a certificate file that cannot be used",
        "check sslrootcert and sslcert",
    ),
    ("server certificate for", PermanentError, "has a certificate for another host", "check the host in the URL"),
    ("does not support SSL", PermanentError, "does not speak TLS", "set sslmode=prefer if the network is trusted"),
    ("Connection refused", StateStoreUnavailable, "refuses connections", "check that it runs, and host and port"),
    ("timeout expired|timed out", StateStoreUnavailable, "does not answer in time", "check the network, host and port"),
    ("resolve host|translate host name", StateStoreUnavailable, "has an unknown host name", "check the host, and DNS"),
)


def _from_libpq(cause: psycopg.Error, store: str) -> EtlError:
    if isinstance(cause, SilentServer):
        return StateStoreUnavailable(
            f"{store} does not answer: {cause}; the connection was given up",
            hint="nothing to do if it works again by itself; else check the network, a tunnel or load balancer in it",
        )
    if isinstance(cause, psycopg.ProgrammingError):
        return ConfigError(
            f"{store} has a URL with a parameter libpq does not know",
            field="state.url",
            hint="compare what follows the question mark with libpq's parameter key words",
        )
    if not isinstance(cause, psycopg.OperationalError):
        return PermanentError(f"{store} refused a value ({type(cause).__name__})", hint="report this as a defect")
    text = str(cause)
    for pattern, kind, sentence, hint in _CANNOT_CONNECT:
        if re.search(pattern, text):
            return kind(f"{store} {sentence}", hint=hint)
    return StateStoreUnavailable(f"{store} cannot be reached", hint="check that it runs, and the network to it")


def _from_postgresql(sqlstate: str, cause: psycopg.Error, store: str) -> EtlError:
    """https://www.postgresql.org/docs/current/errcodes-appendix.html"""
    match sqlstate:
        case "42501":
            return PermanentError(
                f"{store} refuses: {cause.diag.message_primary}",
                hint="run migrate as the owner of schema etl, or let the owner run: GRANT USAGE ON SCHEMA etl TO the "
                "role; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO the role",
            )
        case "42P01" | "42703" | "3F000":
            return _not_migrated(store)
        case "25006" | "0A000":  # of a standby, to which BEGIN READ WRITE is a feature it does not have
            return StateStoreUnavailable(
                f"{store} is read-only for now", hint="point the URL at the primary, not at a standby"
            )
        case "55P03" | "57014":
            return StateStoreUnavailable(
                f"{store} is locked by another session", hint="end what holds a transaction open on schema etl"
            )
        case "53100":
            return StateStoreUnavailable(f"{store} has no disk space left", hint="free space on its disk")
    match sqlstate[:2]:
        case "08" | "57" | "25":
            return StateStoreUnavailable(f"{store} ended the connection", hint="check that it runs")
        case "40":
            return StateStoreUnavailable(f"{store} could not serialise a transaction", hint="try again")
        case "53" | "58":
            return StateStoreUnavailable(f"{store} lacks resources (SQLSTATE {sqlstate})", hint="read the server's log")
        case "28":
            return PermanentError(f"{store} refuses the user or password", hint="check user and password")
        case "3D":
            return PermanentError(f"{store} has no such database", hint="create it, or change it in the URL")
    return PermanentError(f"{store} refused a statement (SQLSTATE {sqlstate})", hint="report this as a defect")


def _not_migrated(store: str) -> PermanentError:
    return PermanentError(f"{store} lacks a table or a column", hint="it was not migrated: call migrate() first")
