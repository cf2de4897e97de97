"""What becomes of a commit whose answer is lost, of two at once, and of a process that is killed: a real catalog."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from etl_core.batch import TableChanges
from etl_core.destination.iceberg.destination import IcebergDestination
from etl_core.errors import DestinationUnavailable, WatermarkConflict
from etl_core.lsn import Lsn
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish, stream_at
from etl_core.testing.servers.seaweedfs import SeaweedFS

A, B = orders(16_400, "a"), orders(16_401, "b")
ROW, NEW = (1, "a", "b", 1), (2, "c", "d", 2)


class Fault(Enum):
    """What a gateway between the writer and the catalog does to a commit."""

    LOST = "the catalog applies it, and the connection is closed"
    FAILED = "the catalog applies it, and 500 is answered"
    REFUSED = "the catalog is not told, and 500 is answered"
    DROPPED = "the catalog is not told, and the connection is closed"


class Gateway:
    """Passes everything on to the catalog; the next commit meets `fault`."""

    def __init__(self, uri: str) -> None:
        self.fault: Fault | None = None
        self.commits: list[bytes] = []
        self._host = urlsplit(uri).netloc
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_it(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else None
                is_commit = self.path.endswith("/transactions/commit") and body is not None
                fault, status, told = None, 500, b"{}"
                if is_commit and body is not None:
                    gateway.commits.append(body)
                    fault, gateway.fault = gateway.fault, None
                if fault not in (Fault.REFUSED, Fault.DROPPED):
                    status, told = gateway.pass_on(self.command, self.path, dict(self.headers), body)
                    assert fault is None or status == 204, told
                if fault in (Fault.LOST, Fault.DROPPED):
                    self.close_connection = True
                    return
                status = 500 if fault is Fault.FAILED else status
                self.send_response_only(status)
                self.send_header("content-type", "application/json")
                if status != 204:
                    self.send_header("content-length", str(len(told)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(told)

            do_GET = do_POST = do_DELETE = do_HEAD = handle_it

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"

    def pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
        upstream = http.client.HTTPConnection(self._host, timeout=300)
        try:
            passed = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
            upstream.request(method, path, body, passed)
            answer = upstream.getresponse()
            return answer.status, answer.read()
        finally:
            upstream.close()


@pytest.fixture
def gateway(seaweedfs: SeaweedFS) -> Iterator[Gateway]:
    gateway = Gateway(seaweedfs.uri)
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


@pytest.fixture
def make(seaweedfs: SeaweedFS, tmp_path: Path) -> Callable[[str], IcebergDestination]:
    """A destination of one warehouse, whose catalog is asked at an address."""
    access = seaweedfs.access()
    tokens = f"{seaweedfs.uri}/v1/oauth/tokens"
    return lambda uri: IcebergDestination(replace(access, uri=uri, oauth2_server_uri=tokens), "shop", tmp_path)


def test_a_commit_whose_answer_is_lost_loses_nothing(
    make: Callable[[str], IcebergDestination], gateway: Gateway, seaweedfs: SeaweedFS
) -> None:
    """DuckDB's extension alone would remove the files that the catalog has just made the tables' state."""
    writer = make(gateway.uri)
    writer.prepare()
    publish(writer, A, [ROW])
    publish(writer, B, [ROW])
    writer.write(batch(expected=100, new=100, stream=100))
    at = 100
    for fault in Fault:
        both = [changes(table, inserts=[(at, "a", fault.name, 1)]) for table in (A, B)]
        gateway.commits.clear()
        gateway.fault = fault
        applied = fault in (Fault.LOST, Fault.FAILED)
        move = partial(batch, *both, expected=at, new=at + 10, stream=at + 10, stream_from=at)
        if applied:
            writer.write(move())  # the tables have the snapshots, so it is known
        else:
            with pytest.raises(DestinationUnavailable, match="did not answer whether it applied"):
                writer.write(move())
            assert writer.positions().stream == stream_at(at)
            writer.write(move())
        at += 10
        assert len([body for body in gateway.commits if len(json.loads(body)["table-changes"]) > 1]) == 2 - applied
        assert writer.positions().tables == {A.table_id: Lsn(at), B.table_id: Lsn(at)}
    other = make(seaweedfs.uri)
    assert other.positions() == writer.positions()
    for table in (A, B):
        assert len(contents(other, table)) == 5
    writer.close()
    other.close()


def test_of_two_writers_that_expect_the_same_one_is_refused(
    make: Callable[[str], IcebergDestination], gateway: Gateway, seaweedfs: SeaweedFS
) -> None:
    first, second = make(gateway.uri), make(seaweedfs.uri)  # two addresses: they do not take turns
    first.prepare()
    publish(first, A, [ROW])
    first.write(batch(expected=100, new=100, stream=100))
    meet = threading.Barrier(2, timeout=300)

    def parts(name: str) -> Iterator[TableChanges]:
        meet.wait()  # both have passed the fence
        yield changes(A, inserts=[(2, name, name, 2)])

    refused: list[Exception] = []

    def write(writer: IcebergDestination, name: str) -> None:
        try:
            writer.write(replace(batch(tables=[A.table_id], expected=100, new=110), parts=parts(name)))
        except (DestinationUnavailable, WatermarkConflict) as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=one) for one in ((first, "first"), (second, "second"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(refused) == 1
    assert "another writer has changed" in str(refused[0])
    assert len(contents(first, A)) == 2
    assert first.positions().tables == second.positions().tables == {A.table_id: Lsn(110)}
    with pytest.raises(WatermarkConflict):
        second.write(batch(changes(A, inserts=[NEW]), expected=100, new=110))
    first.close()
    second.close()
