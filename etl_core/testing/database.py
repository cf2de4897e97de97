"""A database of one's own on a test server, dropped with everything that holds on to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGQUIT, Signals
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import psycopg
from psycopg import errors, sql

_DROP_TIMEOUT = 300.0


class Postgres(Protocol):
    """A running PostgreSQL of the tests, whatever provides it."""

    @property
    def version_num(self) -> int:
        """`server_version_num`, such as 180004."""

    def dsn(self, database: str = "postgres", **params: str | int) -> str:
        """A superuser's connection URL over TCP; `params` are further libpq parameters."""

    def local_dsn(self, database: str = "postgres") -> str:
        """A superuser's cheapest way in from here, for the tests' own housekeeping."""

    def stop(self) -> None:
        """Stop cleanly, whatever is still connected."""

    def start(self) -> None:
        """Start again: same address, same data."""

    def restart(self) -> None:
        """Stop cleanly and start again."""

    def crash(self, signal: Signals = SIGQUIT) -> None:
        """End without a clean shutdown (SIGQUIT, or SIGKILL for the hardest end) and start again."""


@dataclass(frozen=True, slots=True)
class Database:
    """One database on `server`. Every `execute` is a connection of its own, so a restart in between does no harm.

    `parameters` are further libpq parameters of `dsn`: another host or port for the same server.
    """

    server: Postgres
    name: str
    parameters: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def dsn(self) -> str:
        """A superuser's connection URL to this database."""
        return self.server.dsn(self.name, **self.parameters)

    def execute(
        self, query: str | sql.SQL | sql.Composed, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run `query` (several statements without `params`) in autocommit; the rows of the last one, or []."""
        return _execute(self.server.local_dsn(self.name), query, params)

    def drop(self) -> None:
        """End every connection, drop the database's replication slots, then the database."""
        maintenance = self.server.local_dsn()
        name = sql.Identifier(self.name)
        # A consumer that reconnects at once would win the race against the slot's removal.
        _execute(maintenance, sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        deadline = time.monotonic() + _DROP_TIMEOUT
        while not self._drop_slots(maintenance):
            if time.monotonic() > deadline:
                raise TimeoutError(f"replication slots of database {self.name} stay active")
            time.sleep(0.02)
        _execute(maintenance, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def _drop_slots(self, maintenance: str) -> bool:
        """One attempt; True when the database has no slot left. A walsender outlives its connection for a moment."""
        _execute(maintenance, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self.name,))
        for (slot,) in _execute(
            maintenance, "SELECT slot_name FROM pg_replication_slots WHERE database = %s", (self.name,)
        ):
            try:
                _execute(maintenance, "SELECT pg_drop_replication_slot(%s)", (slot,))
            except errors.UndefinedObject:
                continue
            except errors.ObjectInUse:
                return False
        return True


def create_database(server: Postgres, name: str | None = None) -> Database:
    """A new, empty database on `server`; `name` is unique by default."""
    name = name or f"test_{secrets.token_hex(6)}"
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    _execute(server.local_dsn(), statement)
    return Database(server, name)


def connection_url(database: str, params: Mapping[str, str | int]) -> str:
    """The URL to `database`. libpq takes every parameter after the `?`; login and address go where people look first.

    An address that is a unix socket's directory has no place before the path.
    """
    query = {key: str(value) for key, value in params.items()}
    user, password = (quote(query.pop(key, ""), safe="") for key in ("user", "password"))
    login = f"{user}:{password}" if password else user
    location = "" if query["host"].startswith("/") else f"{query.pop('host')}:{query.pop('port')}"
    tail = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return f"postgresql://{login}@{location}/{quote(database, safe='')}{tail}"


def _execute(
    dsn: str, query: str | sql.SQL | sql.Composed, params: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Tests write their SQL themselves; psycopg's LiteralString guards against the input of others.
        statement = query.encode() if isinstance(query, str) else query
        cursor = connection.execute(statement, params)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []
