"""The HTTP endpoint of a process: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts it anew."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from etl_core.config_telemetry import EVERYWHERE, ListenAddress
from etl_core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class Endpoint:
    """Listens from its creation on, in threads of its own; the end of the `with` block ends it.

    `/healthz` is 200 as long as the process lives. `/readyz` is 503, with `not_ready()`'s sentence, while that gives
    one. Neither they nor `/metrics` show a row value or a secret.
    """

    def __init__(
        self, address: ListenAddress, registry: CollectorRegistry, not_ready: Callable[[], str | None]
    ) -> None:
        """Raises ConfigError if the address is taken or is none of this host."""
        self._metrics = make_wsgi_app(registry)
        self._not_ready = not_ready
        host = address.host if address.host != EVERYWHERE or socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
        server = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, address.port, self._answer, server, _Quiet)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served at {address}: {error.strerror or error}",
                field="metrics.prometheus",
                hint="another pipeline of this host may have the port: give each its own",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environment.get("PATH_INFO"):
            case "/metrics":
                found: Iterable[bytes] = self._metrics(environment, start)
                return found
            case "/healthz":
                start("200 OK", [_TEXT])
                return [b"ok\n"]
            case "/readyz":
                reason = self._not_ready()
                start("200 OK" if reason is None else "503 Service Unavailable", [_TEXT])
                return [f"{reason or 'ok'}\n".encode()]
            case _:
                start("404 Not Found", [_TEXT])
                return [b"/metrics, /healthz, /readyz\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is every address, of both kinds
        super().server_bind()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is no news."""
