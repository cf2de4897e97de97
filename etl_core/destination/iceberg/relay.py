"""A relay on this machine between DuckDB and the catalog, which tells a commit that failed from one of unknown outcome.

DuckDB's extension removes the files that a transaction wrote when its commit fails, also when only the answer was lost:
after a timeout, a 500, or a lost connection the catalog may have made them the table's current state, and then the
table cannot be read any more (measured with 1.5.5: it sends the commit four times, is refused as its own first one has
moved the table, and removes the files). The bookkeeping would be lost with the data.

So a commit is sent once. What the catalog refuses is passed on. Where the outcome is not known, the tables are asked
whether they have the snapshots of the commit; if that does not tell that it was applied, DuckDB is told that it was,
so that it removes nothing, and `Relay.is_unknown` tells the caller, who reads the positions again. Files of a commit
that was not applied stay in the bucket then; removing orphan files takes them away.

A commit is changed on its way by what `Relay.begin` is given: snapshots say who made them, and those of a compaction
leave files out.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

_COMMIT = "/transactions/commit"
_TIMEOUT = 60.0
"""Seconds to wait for the catalog. DuckDB waits for 30, and asks again three times: it is told the same then."""
_OWN = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "keep-alive"})
"""Headers of one connection, which are not passed on."""
_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_NAMESPACE_PARTS = "\x1f"

Amend: TypeAlias = "Callable[[dict[str, Any]], None]"
"""Changes the body of a commit before it is sent."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes = b""
    kind: str = "application/json"


class Relay:
    """Listens on the loopback interface from `start` on. `uri` is the catalog's."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=ssl.create_default_context()), _NoRedirects()
        )
        self._guard = threading.Lock()
        self._commits: dict[bytes, _Answer] = {}
        self._unknown = False
        self._amend: Amend | None = None
        self._error: Exception | None = None
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        """Returns the address for DuckDB. Idempotent."""
        if self._server is None:
            relay = self

            class Handler(_Handler):
                def answer(self, body: bytes | None) -> _Answer:
                    return relay._answer(self.command, self.path, dict(self.headers.items()), body)

            self._server = _Server(("127.0.0.1", 0), Handler)
            threading.Thread(target=self._server.serve_forever, name="iceberg-relay", daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def begin(self, amend: Amend | None = None) -> None:
        """Forgets the commits of before. Where `amend` raises, a commit is not sent, and DuckDB is refused it."""
        with self._guard:
            self._commits.clear()
            self._unknown = False
            self._amend, self._error = amend, None

    @property
    def is_unknown(self) -> bool:
        """Whether it is not known if a commit since `begin` was applied, though DuckDB was told that it was."""
        return self._unknown

    @property
    def error(self) -> Exception | None:
        """What `amend` raised since `begin`."""
        return self._error

    def stop(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> _Answer:
        passed = {name: value for name, value in headers.items() if name.lower() not in _OWN}
        if method != "POST" or not urlsplit(path).path.endswith(_COMMIT) or body is None:
            try:
                return self._send(method, path, passed, body)
            except (OSError, http.client.HTTPException):
                return _refusal(HTTPStatus.BAD_GATEWAY)
        with self._guard:  # asked again before it is answered: the same commit, which is sent once
            known = hashlib.sha256(body).digest()
            if known not in self._commits:
                answer = self._commit(path, passed, body if self._amend is None else self._amended(body, self._amend))
                if answer is None:
                    return _refusal(HTTPStatus.SERVICE_UNAVAILABLE)
                self._commits[known] = answer
            return self._commits[known]

    def _amended(self, body: bytes, amend: Amend) -> bytes | None:
        """None if it is not to be sent."""
        commit: dict[str, Any] = json.loads(body)
        try:
            amend(commit)
        except Exception as error:
            self._error = error
            return None
        return json.dumps(commit).encode()

    def _commit(self, path: str, headers: Mapping[str, str], body: bytes | None) -> _Answer | None:
        """None if it was not sent."""
        if body is None:
            return _refusal(HTTPStatus.CONFLICT)
        try:
            answer = self._send("POST", path, headers, body)
        except (ConnectionRefusedError, _NoAddress):
            return None
        except (OSError, http.client.HTTPException):
            answer = _refusal(HTTPStatus.GATEWAY_TIMEOUT)
        if answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        is_refused = HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
        is_refused = is_refused and answer.status != HTTPStatus.REQUEST_TIMEOUT
        if self._is_applied(path, headers, body):
            return _Answer(HTTPStatus.NO_CONTENT)
        if is_refused:
            return answer
        self._unknown = True
        return _Answer(HTTPStatus.NO_CONTENT)

    def _is_applied(self, path: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether every table has the snapshot that the commit gives it."""
        prefix = urlsplit(path).path.removesuffix(_COMMIT)
        found = False
        for namespace, name, snapshot in _snapshots(body):
            where = f"{prefix}/namespaces/{quote(namespace, safe='')}/tables/{quote(name, safe='')}"
            try:
                answer = self._send("GET", where, headers, None)
                table: dict[str, Any] = json.loads(answer.body) if answer.status == HTTPStatus.OK else {}
            except (OSError, http.client.HTTPException, ValueError):
                return False
            there = {each.get("snapshot-id") for each in table.get("metadata", {}).get("snapshots", [])}
            if snapshot not in there:
                return False
            found = True
        return found

    def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> _Answer:
        request = urllib.request.Request(self._uri + path, data=body, headers=dict(headers), method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                return _Answer(response.status, response.read(), response.headers.get_content_type())
        except urllib.error.HTTPError as error:
            with error:
                return _Answer(error.code, error.read(), error.headers.get_content_type())
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise error.reason from None
            if isinstance(error.reason, OSError) and "getaddrinfo" in repr(error.reason):
                raise _NoAddress(*error.reason.args) from None
            raise


class _NoAddress(OSError):
    """The catalog's name has no address."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A commit is not sent twice: the redirect is passed on."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """DuckDB has closed a connection: it asks again."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes | None) -> _Answer:
        raise NotImplementedError

    def _handle(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        answer = self.answer(self.rfile.read(length) if length else None)
        self.send_response_only(answer.status)
        self.send_header("content-type", answer.kind)
        if answer.status not in _NO_BODY:
            self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        if answer.status not in _NO_BODY and self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _snapshots(body: bytes) -> Iterator[tuple[str, str, int]]:
    """(namespace, table, snapshot) of each that a commit adds."""
    for change in json.loads(body).get("table-changes", []):
        identifier = change["identifier"]
        for update in change["updates"]:
            if update["action"] == "add-snapshot":
                namespace = _NAMESPACE_PARTS.join(identifier["namespace"])
                yield namespace, identifier["name"], update["snapshot"]["snapshot-id"]


def _refusal(status: HTTPStatus) -> _Answer:
    told = {"error": {"message": "the catalog does not answer", "type": status.phrase, "code": status.value}}
    return _Answer(status, json.dumps(told).encode())
