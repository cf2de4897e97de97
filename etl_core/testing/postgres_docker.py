"""PostgreSQL in a container, for where a Docker engine answers: the embedded server's contract."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from signal import SIGQUIT, Signals
from types import TracebackType
from typing import TYPE_CHECKING, Self

import psycopg

from etl_core.errors import ConfigError, SourceUnavailable
from etl_core.testing.database import connection_url
from etl_core.testing.postgres_process import CLEAN_TIMEOUT, STOP_TIMEOUT, free_port

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_READY_TIMEOUT = 300.0


class DockerPostgres:
    """The image `postgres:VERSION` with `settings`, on a fixed port of this machine, removed at the end.

    Entering it raises ConfigError when testcontainers is not installed or no engine answers.
    """

    def __init__(self, version: str, *, settings: Mapping[str, str]) -> None:
        self._image = f"postgres:{version}"
        self._settings = {**settings, "listen_addresses": "*"}
        self._password = secrets.token_urlsafe(12)
        self._port = free_port()
        self._container: DockerContainer | None = None
        self._version_num = 0

    def __enter__(self) -> Self:
        self._container = self._run()
        self._wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.stop()

    @property
    def version_num(self) -> int:
        """`server_version_num`, such as 180004."""
        return self._version_num

    def dsn(self, database: str = "postgres", **params: str | int) -> str:
        """A superuser's connection URL; `params` are further libpq parameters."""
        own: dict[str, str | int] = {"user": "postgres", "password": self._password, "port": self._port}
        return connection_url(database, {**own, "host": self._running.get_container_host_ip(), **params})

    def local_dsn(self, database: str = "postgres") -> str:
        """The same as `dsn`: a container has no cheaper way in."""
        return self.dsn(database)

    def start(self) -> None:
        """Start the stopped container again: same address, same data."""
        self._running.get_wrapped_container().start()
        self._wait_until_ready()

    def stop(self, patience: float = STOP_TIMEOUT) -> None:
        """Stop cleanly, whatever is still connected, if that takes `patience` seconds at most; else at once."""
        self._running.get_wrapped_container().stop(
            timeout=int(patience)
        )  # the image's stop signal is SIGINT, the fast shutdown

    def restart(self) -> None:
        """Stop cleanly, once every consumer has confirmed what there is, and start again."""
        self.stop(CLEAN_TIMEOUT)
        self.start()

    def crash(self, signal: Signals = SIGQUIT) -> None:
        """End without a clean shutdown and start again. The container's first process is the postmaster."""
        container = self._running.get_wrapped_container()
        container.kill(signal.name)
        container.wait()
        self.start()

    @property
    def _running(self) -> DockerContainer:
        if self._container is None:
            raise RuntimeError("the container was not started")
        return self._container

    def _run(self) -> DockerContainer:
        try:
            from docker.errors import DockerException
            from testcontainers.core.container import DockerContainer
        except ImportError as error:
            raise ConfigError("testcontainers is not installed", hint="pip install testcontainers") from error
        command = ["postgres", *(part for name, value in self._settings.items() for part in ("-c", f"{name}={value}"))]
        try:
            container = DockerContainer(self._image).with_env("POSTGRES_PASSWORD", self._password)
            return container.with_command(command).with_bind_ports(5432, self._port).start()
        except DockerException as error:
            raise ConfigError(
                f"Docker does not run the image {self._image}: {error}",
                field="ETL_PG_SOURCE",
                hint="start a Docker engine that this user may use, or choose ETL_PG_SOURCE=wheel",
            ) from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT
        while True:
            try:
                with psycopg.connect(self.dsn(connect_timeout=2)) as connection:
                    self._version_num = connection.info.server_version
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise SourceUnavailable(f"{self._image} accepts no connection", hint="see docker logs") from error
                time.sleep(0.1)
