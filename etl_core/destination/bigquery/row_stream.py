"""Rows on their way to the default stream of one table, as change data capture: requests, answers, what is sent again.

What the rows' order rests on is in `cdc`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np
import pyarrow as pa
from google.api_core.gapic_v1 import routing_header
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1 import types as storage
from grpc_status import rpc_status

from etl_core.destination.bigquery.protobuf import ChangeType, RowEncoder
from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError
from etl_core.lsn import Lsn

MAX_REQUEST_BYTES = 10_000_000
"""https://cloud.google.com/bigquery/quotas#write-api-limits: a request stays below."""

# Of a request beside its rows and the schema: tags, lengths and the stream's name, which is below 2,000 characters.
_ENVELOPE_BYTES = 4_096
# Requests that are sent before the first of them is answered: enough to hide the way there and back.
_IN_FLIGHT = 4

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_EXTRA_FIELDS = storage.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS
_REFUSED = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
# A table or a column that has just been made is not known at once, so NOT_FOUND is one of them.
_RETRIED = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


class RowsRefused(TableError):
    """BigQuery refused rows, and with them their request. `rows` are their numbers within `change`'s rows."""

    def __init__(self, message: str, *, table: str, change: ChangeType, rows: tuple[int, ...], hint: str) -> None:
        super().__init__(message, table=table, hint=hint)
        self.change = change
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Sent:
    """What went to BigQuery and was answered. `requests` counts one that was sent again once."""

    rows: int = 0
    requests: int = 0
    bytes: int = 0


def sequence_number(watermark: Lsn, attempt: int, part: int, change: ChangeType) -> str:
    """`_CHANGE_SEQUENCE_NUMBER` of a part's changes: three hexadecimal numbers, without zeros: each row has it."""
    return f"{watermark:X}/{attempt:X}/{2 * part + (change == 'UPSERT'):X}"


@dataclass(frozen=True, slots=True)
class _Request:
    """Serialized rows, and which they are: rows `first` and following of those with this change type."""

    data: bytes
    change: ChangeType
    first: int
    rows: int


class RowStream:
    """Sends rows of table `name` as `encoder` encodes them, over a connection that it keeps until `close`.

    `path` is `projects/…/datasets/…/tables/…`. A request that fails for a while is sent again after each of `waits`;
    `patience` is how long an answer may take; both in seconds. One thread at a time. Columns outside the key must be
    NULLABLE in BigQuery: a DELETE has only the key.
    """

    def __init__(
        self,
        client: BigQueryWriteClient,
        path: str,
        name: str,
        encoder: RowEncoder,
        *,
        waits: Sequence[float] = (0.2, 0.5, 1, 2, 4, 8, 16, 32),
        patience: float = 60,
    ) -> None:
        self._client = client
        self._stream = f"{path}/streams/_default"
        self._name = name
        self._encoder = encoder
        self._waits = tuple(waits)
        self._patience = patience
        self._room = MAX_REQUEST_BYTES - _ENVELOPE_BYTES - encoder.descriptor.ByteSize()
        self._connection: _Connection | None = None

    def send(self, deletes: pa.Table, rows: pa.Table, watermark: Lsn, attempt: int, part: int) -> Sent:
        """Sends keys and whole rows, both as `to_bigquery` returns them; returns when all is answered.

        The numbers are those of `sequence_number`. Raises DestinationUnavailable if it may succeed later (some of it
        may be applied), RowsRefused and other TableErrors, DestinationError.
        """
        return self._send(
            chain(
                self._requests(deletes, "DELETE", sequence_number(watermark, attempt, part, "DELETE")),
                self._requests(rows, "UPSERT", sequence_number(watermark, attempt, part, "UPSERT")),
            )
        )

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _requests(self, rows: pa.Table, change: ChangeType, sequence: str) -> Iterator[_Request]:
        """Each has as many of the encoded rows as fit."""
        first = 0
        for encoded in self._encoder.encode(rows, change, sequence):
            at = 0
            while at < len(encoded):
                start = encoded.offsets[at]
                end = int(np.searchsorted(encoded.offsets, start + self._room, side="right")) - 1
                if end == at:
                    raise TableError(
                        f"a row of {self._name} is larger than the {MAX_REQUEST_BYTES:,} bytes of a request",
                        table=self._name,
                        hint="use method: load_merge, or leave the large column out of the publication",
                    )
                yield _Request(bytes(encoded.data[start : encoded.offsets[end]]), change, first + at, end - at)
                at = end
            first += len(encoded)

    def _send(self, requests: Iterator[_Request]) -> Sent:
        """Keeps up to _IN_FLIGHT requests on their way; after a failure those that are not answered go again."""
        unanswered: deque[_Request] = deque()
        failures = 0
        sent = Sent()
        try:
            while True:
                while len(unanswered) < _IN_FLIGHT and (request := next(requests, None)) is not None:
                    connection = self._connected(unanswered)
                    unanswered.append(request)
                    connection.send(request)
                if not unanswered:
                    return sent
                failure = self._connected(unanswered).answer()
                if failure is None:
                    done = unanswered.popleft()
                    sent = Sent(sent.rows + done.rows, sent.requests + 1, sent.bytes + len(done.data))
                    failures = 0
                    continue
                self.close()
                if not failure.retried or failures == len(self._waits):
                    self._raise(failure, unanswered[0])
                time.sleep(self._waits[failures])
                failures += 1
        except BaseException:
            self.close()  # answers that are still to come belong to nobody
            raise

    def _connected(self, again: Iterable[_Request]) -> _Connection:
        """The connection; a new one begins with the requests `again`."""
        if self._connection is None:
            self._connection = _Connection(self._client, self._stream, self._encoder.schema, self._patience)
            for request in again:
                self._connection.send(request)
        return self._connection

    def _raise(self, failure: _Failure, request: _Request) -> NoReturn:
        raise _error(failure, request, self._name)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a request was not applied, or why nobody knows whether it was."""

    code: grpc.StatusCode
    extra_fields: bool = False
    rows: tuple[int, ...] = ()

    @property
    def retried(self) -> bool:
        return not self.rows and (self.code in _RETRIED or self.extra_fields)


class _Connection:
    """One AppendRows call: requests go in through a queue that gRPC's thread empties, answers come in order."""

    def __init__(self, client: BigQueryWriteClient, stream: str, schema: Any, patience: float) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._patience = patience
        self._first: Any = storage.AppendRowsRequest.pb()(write_stream=stream)
        self._first.proto_rows.writer_schema.CopyFrom(storage.ProtoSchema.pb(schema))
        # The stub itself: the client's method waits for the first answer before it returns.
        append_rows: Any = client.transport.append_rows
        to_metadata: Any = routing_header.to_grpc_metadata
        self._call = append_rows(iter(self._queue.get, None), metadata=(to_metadata({"write_stream": stream}),))

    def send(self, request: _Request) -> None:
        message, self._first = self._first or storage.AppendRowsRequest.pb()(), None
        message.proto_rows.rows.ParseFromString(request.data)
        self._queue.put(message)

    def answer(self) -> _Failure | None:
        """Waits for the answer to the oldest request: None if its rows are applied."""
        watchdog = threading.Timer(self._patience, self._call.cancel)
        watchdog.name = "append-rows-watchdog"
        watchdog.start()
        try:
            answer = storage.AppendRowsResponse.pb(next(self._call))
        except StopIteration:
            return _Failure(grpc.StatusCode.UNAVAILABLE)
        except grpc.RpcError as error:
            return _broken(error)
        finally:
            watchdog.cancel()
            watchdog.join()
        if answer.row_errors:
            code = _CODES.get(answer.error.code, grpc.StatusCode.INVALID_ARGUMENT)
            return _Failure(code, rows=tuple(error.index for error in answer.row_errors))
        if answer.HasField("error"):
            code = _CODES.get(answer.error.code, grpc.StatusCode.UNKNOWN)
            return _Failure(code, _has_extra_fields(answer.error.details))
        return None

    def close(self) -> None:
        self._queue.put(None)
        self._call.cancel()


def _broken(error: Any) -> _Failure:
    status = rpc_status.from_call(error)
    return _Failure(error.code(), status is not None and _has_extra_fields(status.details))


def _has_extra_fields(details: Any) -> bool:
    """Whether the writer's schema has a column that BigQuery does not know, or not yet."""
    for detail in details:
        storage_error = storage.StorageError.pb()()
        if detail.Unpack(storage_error) and storage_error.code == _EXTRA_FIELDS:
            return True
    return False


def _error(failure: _Failure, request: _Request, table: str) -> EtlError:
    """Codes and numbers only: BigQuery's own sentences may quote a value."""
    if failure.rows:
        rows = tuple(request.first + index for index in failure.rows)
        shown = ", ".join(map(str, rows[:5])) + (" …" if len(rows) > 5 else "")
        return RowsRefused(
            f"BigQuery refused {len(rows)} of {request.rows} {request.change} rows of {table} (number {shown})",
            table=table,
            change=request.change,
            rows=rows,
            hint=f"compare the table's columns in BigQuery with the source, then copy it again: etl resync {table}",
        )
    if failure.extra_fields:
        return TableError(
            f"the table of {table} in BigQuery lacks a column of the source",
            table=table,
            hint=f"it was changed from outside; copy it again: etl resync {table}",
        )
    if failure.code is grpc.StatusCode.NOT_FOUND:
        return TableError(
            f"BigQuery has no table for {table}", table=table, hint=f"it was dropped; copy it again: etl resync {table}"
        )
    if failure.code in _REFUSED:
        return DestinationError(
            f"BigQuery does not let us write to the table of {table} ({failure.code.name})",
            hint="grant roles/bigquery.dataEditor on the dataset to the account that the credentials belong to",
        )
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return DestinationUnavailable(
            f"the Storage Write API's quota is used up, at table {table}",
            hint="raise max_age for larger and fewer batches, or ask Google for a larger AppendRows throughput quota",
        )
    if failure.retried:
        return DestinationUnavailable(f"BigQuery did not answer for table {table} ({failure.code.name})")
    return TableError(
        f"BigQuery refused the changes of {table} ({failure.code.name})",
        table=table,
        hint=f"its primary key or columns were changed from outside; copy it again: etl resync {table}",
    )
