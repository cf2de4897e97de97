"""A strict `BigQueryWrite` gRPC server in this process, for change data capture on the default stream.

It keeps tables in memory, applies UPSERT and DELETE by primary key and `_CHANGE_SEQUENCE_NUMBER`, refuses what Google's
documents forbid (`bigquery_write_rules`), and fails on demand. An emulator that takes everything would prove nothing.

Invariants, from https://cloud.google.com/bigquery/docs/change-data-capture and
https://cloud.google.com/bigquery/docs/write-api-best-practices:

- of two changes of a key the one with the larger sequence number wins, whichever came first; of equal ones the later;
- a DELETE is remembered, so that an older UPSERT that comes after it loses (for two days: `forget_deletes`);
- a request is applied whole or, if one of its rows is wrong, not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types as storage
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from etl_core.testing.servers.bigquery_write_rules import (
    Refused,
    Type,
    check_key,
    check_schema,
    message_class,
    read_change,
    read_row,
)

MAX_REQUEST_BYTES = 10_000_000
"""https://cloud.google.com/bigquery/quotas#write-api-limits: an AppendRows request stays below 10 MB."""

_METHOD = "AppendRows"
_SERVICE = "google.cloud.bigquery.storage.v1.BigQueryWrite"

Kind = Literal["lose answer", "reset", "quota", "quota answer", "not found", "twice", "late", "silent"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the `request`-th request (from 1, of all connections).

    lose answer: applied, then the connection breaks · reset: it breaks, nothing applied · quota: RESOURCE_EXHAUSTED,
    as a status or in an answer · not found: the stream is not known (yet) · twice: applied two times · late: the
    connection breaks, and the rows are applied when `deliver_late` says so · silent: applied, never answered.
    """

    kind: Kind
    request: int


@dataclass(slots=True)
class _Table:
    columns: dict[str, Type]
    key: tuple[str, ...]
    # key → (sequence number, arrival, row or None for a delete)
    records: dict[tuple[Any, ...], tuple[tuple[int, ...], int, dict[str, Any] | None]] = field(default_factory=dict)


_Change = tuple[tuple[Any, ...], tuple[int, ...], "dict[str, Any] | None"]


@dataclass(slots=True)
class _Connection:
    """What a stream of requests has established: the table, and how its rows are parsed."""

    stream: str = ""
    message: Any = None


class BigQueryWriteServer:
    """Serves from `with` until its end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tables: dict[str, _Table] = {}
        self._faults: dict[int, Fault] = {}
        self._late: list[tuple[_Table, list[_Change]]] = []
        self._arrivals = 0
        self._stopped = threading.Event()
        self.requests: list[int] = []
        """The size of every request that arrived, in bytes."""
        self.connections = 0
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.stream_stream_rpc_method_handler(
            self._append_rows,
            request_deserializer=storage.AppendRowsRequest.pb().FromString,
            response_serializer=storage.AppendRowsResponse.pb().SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.stop(None).wait()

    def create_table(
        self, path: str, columns: Mapping[str, str], key: Sequence[str], rows: pa.Table | None = None
    ) -> None:
        """`path` as `projects/…/datasets/…/tables/…`, `columns` by name with their type in SQL. Replaces the table.

        `rows` are there from a load job or the copy: they have no sequence number, so every change of their key wins.
        """
        table = _Table({name: Type.parse(sql) for name, sql in columns.items()}, tuple(key))
        for row in [] if rows is None else rows.to_pylist():
            table.records[tuple(row[name] for name in key)] = ((), 0, row)
        with self._lock:
            self._tables[path] = table

    def add_column(self, path: str, name: str, sql: str) -> None:
        """As ALTER TABLE ADD COLUMN does: rows that are there have NULL."""
        with self._lock:
            table = self._tables[path]
            table.columns[name] = Type.parse(sql)
            for _, _, row in table.records.values():
                if row is not None:
                    row[name] = None

    def drop_table(self, path: str) -> None:
        """Changes for it are refused from now on."""
        with self._lock:
            del self._tables[path]

    def read(self, path: str, schema: pa.Schema) -> pa.Table:
        """The rows that a query would return, in any order, as Arrow has them in `schema`."""
        with self._lock:
            rows = [row for _, _, row in self._tables[path].records.values() if row is not None]
        return pa.Table.from_pylist(rows, schema=schema)

    def inject(self, *faults: Fault) -> None:
        """Faults at requests that are yet to come."""
        with self._lock:
            self._faults |= {fault.request: fault for fault in faults}

    def deliver_late(self) -> None:
        """Applies what the fault `late` held back: requests overtaken by everything that was sent since."""
        with self._lock:
            for table, changes in self._late:
                self._apply(table, changes)
            self._late.clear()

    def forget_deletes(self) -> None:
        """Two days pass: BigQuery no longer knows which keys were deleted, and with which sequence number."""
        with self._lock:
            for table in self._tables.values():
                for key in [key for key, (_, _, row) in table.records.items() if row is None]:
                    del table.records[key]

    def _append_rows(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        connection = _Connection()
        with self._lock:
            self.connections += 1
        for request in requests:
            with self._lock:
                self.requests.append(request.ByteSize())
                fault = self._faults.pop(len(self.requests), None)
            kind = None if fault is None else fault.kind
            if kind == "reset":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was reset")
            if kind == "quota":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Exceeds append throughput quota")
            if kind == "not found":
                context.abort(grpc.StatusCode.NOT_FOUND, "Requested entity was not found: the stream")
            if kind == "quota answer":
                yield _failed(code_pb2.RESOURCE_EXHAUSTED, "Exceeds append throughput quota")
                continue
            answer = self._handle(request, connection, kind, context)
            if kind in ("lose answer", "late"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was reset")
            if kind == "silent":
                self._stopped.wait()
            yield answer

    def _handle(self, request: Any, connection: _Connection, kind: Kind | None, context: grpc.ServicerContext) -> Any:
        try:
            with self._lock:
                table = self._establish(request, connection)
                changes, wrong = _read_changes(request, table, connection.message)
                if wrong:
                    return _row_errors(wrong)
                if kind == "late":
                    self._late.append((table, changes))
                else:
                    for _ in range(2 if kind == "twice" else 1):
                        self._apply(table, changes)
        except Refused as refused:
            _abort(context, refused)
        except KeyError:
            context.abort(grpc.StatusCode.NOT_FOUND, "Requested entity was not found: the table")
        return storage.AppendRowsResponse.pb()(append_result={}, write_stream=connection.stream)

    def _establish(self, request: Any, connection: _Connection) -> _Table:
        """Checks what belongs to the request as a whole; returns its table."""
        if request.ByteSize() >= MAX_REQUEST_BYTES:
            raise Refused("the request is not below 10 MB")
        if request.HasField("offset"):
            raise Refused("the default stream takes no offset")
        if request.HasField("arrow_rows"):
            raise Refused("change data capture takes protobuf only, not Arrow")
        if not connection.stream and not request.write_stream:
            raise Refused("the first request must name the write stream")
        if request.write_stream not in ("", connection.stream):
            if connection.stream:
                raise Refused("this server keeps one stream per connection")
            connection.stream = request.write_stream
        path, _, name = connection.stream.partition("/streams/")
        if name != "_default":
            raise Refused("change data capture takes the default stream only")
        table = self._tables[path]
        check_key(table.columns, table.key)
        if request.proto_rows.HasField("writer_schema"):
            connection.message = message_class(request.proto_rows.writer_schema.proto_descriptor)
        if connection.message is None:
            raise Refused("the first request must have the writer's schema")
        check_schema(connection.message.DESCRIPTOR, table.columns, table.key)
        return table

    def _apply(self, table: _Table, changes: Sequence[_Change]) -> None:
        for key, sequence, row in changes:
            self._arrivals += 1
            before = table.records.get(key)
            if before is None or before[0] <= sequence:
                table.records[key] = (sequence, self._arrivals, row)


def _read_changes(request: Any, table: _Table, message: Any) -> tuple[list[_Change], dict[int, str]]:
    """The changes of a request, and what is wrong with which row."""
    changes: list[_Change] = []
    wrong: dict[int, str] = {}
    for at, data in enumerate(request.proto_rows.rows.serialized_rows):
        try:
            parsed = message.FromString(data)
            change, sequence = read_change(parsed)
            row = read_row(parsed, table.columns, table.key)
        except (Refused, DecodeError) as error:
            wrong[at] = str(error)
            continue
        key = tuple(row[name] for name in table.key)
        changes.append((key, sequence, row if change == "UPSERT" else None))
    return changes, wrong


def _failed(code: int, message: str) -> Any:
    return storage.AppendRowsResponse.pb()(error=status_pb2.Status(code=code, message=message))


def _row_errors(wrong: Mapping[int, str]) -> Any:
    answer = _failed(code_pb2.INVALID_ARGUMENT, "Errors found while processing rows")
    for index, message in wrong.items():
        answer.row_errors.add(index=index, code=storage.RowError.RowErrorCode.FIELDS_ERROR, message=message)
    return answer


def _abort(context: grpc.ServicerContext, refused: Refused) -> None:
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(refused))
    if refused.extra_field:
        code = storage.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS
        detail = any_pb2.Any()
        detail.Pack(storage.StorageError.pb()(code=code, error_message=str(refused)))
        status.details.append(detail)
    context.abort_with_status(rpc_status.to_status(status))
