"""Every request to BigQuery, REST and gRPC, is lost the first time it is sent, or the answer to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import requests

_KINDS = {"AppendRows": "stream_stream", "ReadRows": "unary_stream"}


class LostOnce:
    """From its making on for REST; between the client and an endpoint of the Storage API for gRPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
        self._before = before
        self._lock = threading.Lock()
        self.seen: set[tuple[str, bytes]] = set()
        """What was sent, as (URL and HTTP's method, or gRPC's method; the request)."""
        real = requests.Session.request

        def request(session: requests.Session, method: str, url: str, data: Any = None, **keywords: Any) -> Any:
            is_first = self._is_first(f"{url}/{method}", str(data).encode())
            if is_first and before:
                raise requests.exceptions.ConnectionError
            answer = real(session, method, url, data=data, **keywords)
            if is_first:
                raise requests.exceptions.ConnectionError
            return answer

        monkeypatch.setattr(requests.Session, "request", request)

    @contextmanager
    def storage(self, endpoint: str) -> Iterator[str]:
        """An endpoint that passes on to `endpoint` what it does not lose."""
        server = grpc.server(futures.ThreadPoolExecutor(8))
        with grpc.insecure_channel(endpoint) as channel:
            server.add_generic_rpc_handlers((_PassOn(self, channel),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            try:
                yield f"127.0.0.1:{port}"
            finally:
                server.stop(None).wait()

    def passed_on(self, call: Any, method: str, request: bytes, context: Any) -> list[bytes]:
        """The answers to a request of gRPC; its caller gets UNAVAILABLE instead when it is lost."""
        is_first = self._is_first(method, request)
        if is_first and self._before:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        try:
            answers = call(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if is_first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        return list(answers)

    def _is_first(self, what: str, request: bytes) -> bool:
        with self._lock:
            is_first = (what, request) not in self.seen
            self.seen.add((what, request))
        return is_first


class _PassOn(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
    """Bytes in, bytes out. A call that streams has one request."""

    def __init__(self, losses: LostOnce, channel: grpc.Channel) -> None:
        self._losses = losses
        self._channel = channel

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata
        kind = _KINDS.get(method.rpartition("/")[2], "unary_unary")
        call = getattr(self._channel, kind)(method)

        def send(request: bytes) -> list[bytes]:
            if kind == "stream_stream":
                return list(call(iter([request]), metadata=metadata))
            answer = call(request, metadata=metadata)
            return [answer] if kind == "unary_unary" else list(answer)

        def append(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            for request in requests:
                yield from self._losses.passed_on(send, method, request, context)

        def read(request: bytes, context: Any) -> Iterator[bytes]:
            yield from self._losses.passed_on(send, method, request, context)

        def ask(request: bytes, context: Any) -> bytes:
            return self._losses.passed_on(send, method, request, context)[0]

        behaviour = {"stream_stream": append, "unary_stream": read, "unary_unary": ask}[kind]
        return getattr(grpc, f"{kind}_rpc_method_handler")(behaviour)
