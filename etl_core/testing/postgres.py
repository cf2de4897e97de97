"""An embedded PostgreSQL for tests and demos: real, private, gone afterwards.

    from etl_core.testing.postgres import create_database, temporary_postgres

    with temporary_postgres() as server:
        database = create_database(server)
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")

`wal_level` is `logical`, with 100 slots and 100 walsenders. The server listens on 127.0.0.1 (password) and on a unix
socket in a directory of ours (no password). It works as root, who runs it as `nobody`, and as anybody else.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from etl_core.errors import ConfigError, PermanentError
from etl_core.testing.database import Database, Postgres, create_database
from etl_core.testing.postgres_binaries import NOBODY, PostgresBinaries, find_binaries
from etl_core.testing.postgres_process import Postmaster, run_program, stop_stale, wait_until_ready

__all__ = ["Database", "Postgres", "PostgresServer", "create_database", "temporary_postgres"]

USER = "postgres"
START_TIMEOUT = 60.0
_SETTINGS_FILE = "etl.conf"
_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "100",
    "max_replication_slots": "100",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
}
# Safe against a crash of the server, not of the machine. synchronous_commit stays on: without it a crash of the server
# forgets commits that were already reported.
_NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer:
    """One PostgreSQL server on `data_dir`, which is initialised when it is new.

    `settings` are lines of postgresql.conf; ALTER SYSTEM overrides them. `durable` is for data that must survive a
    crash of the machine; without it `fsync` is off. `trust` drops the password over TCP. `port` None takes a free one
    at the first start; a restart keeps it.
    """

    def __init__(
        self,
        data_dir: Path,
        binaries: PostgresBinaries,
        *,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        durable: bool = False,
        trust: bool = False,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.binaries = binaries
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._port = port
        self._trust = trust
        self._password = secrets.token_urlsafe(12)
        self._socket_dir: Path | None = None
        self._postmaster: Postmaster | None = None
        self._version_num = 0
        self._owner = os.getpid()

    def __repr__(self) -> str:
        state = f"port {self._port}" if self.is_running else "stopped"
        return f"<PostgresServer {self.binaries.version} {self.data_dir} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port, also in the socket's name."""
        if self._port is None:
            raise PermanentError("the server was never started, it has no port yet")
        return self._port

    @property
    def socket_dir(self) -> Path:
        """The directory of the unix socket, for `host=` in a connection string."""
        if self._socket_dir is None:
            raise PermanentError("the server is not running, it has no socket")
        return self._socket_dir

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data_dir / "server.log"

    @property
    def version_num(self) -> int:
        """`server_version_num`, such as 180004."""
        return self._version_num

    @property
    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._postmaster is not None and self._postmaster.is_running

    def dsn(self, database: str = "postgres", **params: str | int) -> str:
        """A superuser's URL over TCP. `params` are libpq parameters; `host=server.socket_dir` takes the socket."""
        query = {key: str(value) for key, value in params.items()}
        host = query.pop("host", "127.0.0.1")
        user = query.pop("user", USER)
        password = query.pop(
            "password", None if self._trust or host.startswith("/") or user != USER else self._password
        )
        port = query.pop("port", str(self.port))
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        if host.startswith("/"):
            query = {"host": host, "port": port, **query}
            location = ""
        else:
            location = f"{host}:{port}"
        tail = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return f"postgresql://{login}@{location}/{quote(database, safe='')}{tail}"

    def start(self) -> None:
        """Start, initialising a new data directory first. Returns when connections are accepted."""
        if self.is_running:
            return
        if not (self.data_dir / "PG_VERSION").is_file():
            self._initialise()
        stop_stale(self.data_dir)
        self._write_settings()
        self._socket_dir = self._socket_dir or _socket_directory()
        self._launch()
        atexit.register(self._stop_at_exit)
        with psycopg.connect(self.dsn(host=str(self.socket_dir)), autocommit=True) as connection:
            self._version_num = connection.info.server_version
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(USER), sql.Literal(self._password))
            )

    def stop(self) -> None:
        """Stop cleanly, whatever is still connected. Nothing of the server but `data_dir` remains."""
        if self._postmaster is not None:
            self._postmaster.stop()
            self._postmaster = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        atexit.unregister(self._stop_at_exit)

    def restart(self) -> None:
        """Stop cleanly and start again: same port, same data."""
        if self._postmaster is not None:
            self._postmaster.stop()
        self.start()

    def crash(self, signal_number: Literal[signal.Signals.SIGQUIT, signal.Signals.SIGKILL] = signal.SIGQUIT) -> None:
        """End without a clean shutdown and start again: the server recovers from its WAL, connections are lost.

        SIGQUIT is the server's immediate shutdown; SIGKILL takes every process of it away at once.
        """
        if self._postmaster is not None:
            if signal_number == signal.SIGKILL:
                self._postmaster.kill()
            else:
                self._postmaster.quit()
        self.start()

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:  # a forked child is not the owner
            self.stop()

    def _initialise(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        _give_to_server(self.data_dir)
        run_program(
            [
                self.binaries.path("initdb"),
                "--pgdata",
                self.data_dir,
                "--username",
                USER,
                "--encoding=UTF8",
                "--locale=C",
                "--auth=trust",
                "--no-sync",
            ]
        )
        with (self.data_dir / "postgresql.conf").open("a") as configuration:
            configuration.write(f"include_if_exists '{_SETTINGS_FILE}'\n")

    def _write_settings(self) -> None:
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in self._settings.items()]
        (self.data_dir / _SETTINGS_FILE).write_text("".join(lines))
        (self.data_dir / _SETTINGS_FILE).chmod(0o644)
        # The socket's directory is closed to other users, so what comes through it is us.
        method = "trust" if self._trust else "scram-sha-256"
        (self.data_dir / "pg_hba.conf").write_text(
            "".join(
                f"{kind} {database} all {address} {how}\n"
                for kind, address, how in (("local", "", "trust"), ("host", "127.0.0.1/32", method))
                for database in ("all", "replication")
            )
        )

    def _launch(self) -> None:
        chosen = self._port
        for _ in range(10):
            port = chosen if chosen is not None else _free_port()
            offset = self.log.stat().st_size if self.log.exists() else 0
            postmaster = Postmaster(
                [self.binaries.path("postgres"), "-D", self.data_dir, "-p", str(port), "-k", str(self.socket_dir)],
                data_dir=self.data_dir,
                socket_dir=self.socket_dir,
                log=self.log,
            )
            try:
                ready = wait_until_ready(postmaster, self.data_dir, timeout=START_TIMEOUT)
            except BaseException:
                postmaster.kill()
                raise
            if ready:
                self._postmaster, self._port = postmaster, port
                return
            postmaster.kill()
            said = self.log.read_bytes()[offset:].decode(errors="replace")
            if "could not bind" not in said or chosen is not None:
                break
        tail = " ".join(said.split())[-500:]
        raise PermanentError(f"PostgreSQL {self.binaries.version} on {self.data_dir} does not start: {tail}")


@contextlib.contextmanager
def temporary_postgres(
    binaries: PostgresBinaries | None = None, *, settings: Mapping[str, str] | None = None, trust: bool = False
) -> Iterator[PostgresServer]:
    """A server on a new directory that is removed afterwards. `binaries` None: ETL_PG_SOURCE and ETL_PG_VERSION."""
    binaries = binaries or find_binaries(os.environ.get("ETL_PG_SOURCE", "auto"), os.environ.get("ETL_PG_VERSION"))
    directory = Path(tempfile.mkdtemp(prefix="etl-pg-"))
    try:
        _give_to_server(directory)
        with PostgresServer(directory / "data", binaries, settings=settings, trust=trust) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _give_to_server(directory: Path) -> None:
    """Make the server's user the owner of `directory`; as root, check that it can get there."""
    if os.geteuid() != 0:
        return
    closed = next((parent for parent in directory.parents if not _may_pass(parent)), None)
    if closed is not None:
        raise ConfigError(
            f"as root the server runs as user {NOBODY}, who may not enter {closed}",
            hint="put the data directory somewhere every user may enter, such as under /var/tmp",
        )
    os.chown(directory, NOBODY, NOBODY)


def _may_pass(directory: Path) -> bool:
    status = directory.stat()
    return bool(status.st_mode & 0o001) or (status.st_uid == NOBODY and bool(status.st_mode & 0o100))


def _socket_directory() -> Path:
    """A new directory with a short name: a unix socket's path has room for 107 bytes."""
    base = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="etl-", dir=base if len(base) < 60 else "/tmp"))  # noqa: S108
    _give_to_server(directory)
    return directory


def _free_port() -> int:
    """A port nobody listens on, below the range from which systems take ports for outgoing connections.

    A port of that range could be taken by any program's connection while the server restarts.
    """
    while True:
        port = random.randrange(20000, 32768)  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
