"""A batch's changes of one table as BigQuery's change data capture: UPSERT and DELETE rows on the default stream.

https://cloud.google.com/bigquery/docs/change-data-capture

**No transaction, but an order.** Every change has a sequence number, and of the changes of one key BigQuery keeps the
one with the largest, whenever it arrived. Ours has three sections, compared one after the other as numbers:

    the watermark that the batch begins at / the attempt / twice the part's number, and one more if it is an UPSERT

- The watermark: a later batch wins over an earlier one. It is where the batch begins, not where it ends: a try that
  failed ended somewhere, and the next one, cut at other LSNs, must win over it wherever that was.
- The attempt grows with every try to write a batch, over restarts too (`change_streams` says how). A batch that is
  read again may be cut into other parts, and a part has what a key was in the middle of the batch: the later try is
  right.
- The part's number: within one try the later part wins. An update that moves a row to a key and one that leaves the
  same key meet as DELETE and UPSERT of one part, and the row stays.

**Why sending again changes nothing.** A request whose answer was lost is sent again as it was: same key, same number,
same row. Whether BigQuery applied it never, once or twice, early or late, the key ends as the largest number says.

**Where the watermark goes.** Data first: the watermark moves from W to E when every request of the batch is answered. A
crash in between leaves some changes of (W, E] in the table with the watermark W. Each of them is of a key k that some
transaction T in (W, E] touched. The batch is read again from W: the try that contains T begins at W with a later
attempt, or beyond W, so what it says of k outranks whatever the lost try said or is still going to say. So once the
watermark has reached E, the table is as the source was. Until then a reader may see single keys as they were later:
this method never shows whole transactions, and `verify` may look only at a table whose last batch has been answered. A
second writer with a stale view does no harm for the same reason: its numbers are smaller.

**What this rests on.**

- *Every key that a try touches is sent.* A key that is inserted and deleted within one batch must be among its
  `deletes`, though a destination with transactions never needs it there: a lost try may have ended between the two,
  and left the row.
- *Deletes are remembered*: for two days, says BigQuery. A request delivered later than that could bring a row back.
- *A table that is copied again is a new table*, without the numbers of the old one and without its late requests. A
  process that stood still from before the copy until after it, with rows in its hands, could send them to the new
  table: nothing stops it, and they stay until their keys change. `docs/destinations/bigquery.md` names it among the
  limits.

**What cannot go this way** is said by `needs_merge`. BigQuery refuses DML (MERGE, DELETE, TRUNCATE) on a table that
has had changes streamed to it until they are all applied, so the two methods do not take turns: a table for which
there is a reason in every batch is a MERGE table from the beginning, and one that meets a reason later is copied
again.
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

from etl_core.batch import TableChanges
from etl_core.destination.bigquery.method import key_refused
from etl_core.destination.bigquery.protobuf import ChangeType, RowEncoder
from etl_core.destination.bigquery.types import to_bigquery
from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

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


def needs_merge(changes: TableChanges) -> str | None:
    """Why these changes cannot be sent as change data capture, as the end of "because …"; None if they can."""
    reason = key_refused(changes.schema)
    if reason is not None:
        return reason
    if changes.truncate:
        return "the source truncated the table, and a change of rows cannot"
    if changes.partials:
        return "rows have unchanged TOAST values, which only the table itself holds"
    return None


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


class CdcWriter:
    """Sends changes of one table in one version of its schema, over a connection that it keeps until `close`.

    `path` is `projects/…/datasets/…/tables/…`, `names` what BigQuery calls the schema's columns. A request that fails
    for a while is sent again after each of `waits`; `patience` is how long an answer may take; both in seconds. One
    thread at a time. Columns outside the key must be NULLABLE in BigQuery: a DELETE has only the key.
    """

    def __init__(
        self,
        client: BigQueryWriteClient,
        path: str,
        schema: TableSchema,
        names: Sequence[str],
        *,
        waits: Sequence[float] = (0.2, 0.5, 1, 2, 4, 8, 16, 32),
        patience: float = 60,
    ) -> None:
        self._client = client
        self._stream = f"{path}/streams/_default"
        self._schema = schema
        self._encoder = RowEncoder(schema.columns, names)
        self._waits = tuple(waits)
        self._patience = patience
        self._room = MAX_REQUEST_BYTES - _ENVELOPE_BYTES - self._encoder.descriptor.ByteSize()
        self._connection: _Connection | None = None

    def write(self, changes: TableChanges, watermark: Lsn, attempt: int, part: int) -> Sent:
        """Sends `changes`, part `part` (from 0) of a batch that begins at `watermark`; returns when all is answered.

        `watermark` is the one the batch expects the table to have; `attempt` is larger than in every earlier try to
        write to the table, in this process or another. Raises DestinationUnavailable if it may succeed later (some of
        it may be applied: harmless, see above), ValueOutOfRange before anything is sent, RowsRefused and other
        TableErrors, DestinationError.
        """
        reason = needs_merge(changes)
        if reason is not None:
            raise TableError(
                f"changes of {self._schema.name} cannot be streamed, because {reason}",
                table=str(self._schema.name),
                hint=f"copy it again: etl resync {self._schema.name}",
            )
        if changes.schema.columns != self._schema.columns:
            raise ValueError("a writer sends changes of the schema it was made for")
        columns, name = self._schema.columns, self._schema.name
        key = [column for column in columns if column.name in self._schema.key]
        deletes = to_bigquery(changes.deletes, key, name)
        present = [column.name for column in columns]
        arriving = pa.concat_tables([changes.inserts.select(present), changes.upserts.select(present)])
        rows = to_bigquery(arriving, columns, name)
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
                        f"a row of {self._schema.name} is larger than the {MAX_REQUEST_BYTES:,} bytes of a request",
                        table=str(self._schema.name),
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
        raise _error(failure, request, self._schema)


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


def _error(failure: _Failure, request: _Request, schema: TableSchema) -> EtlError:
    """Codes and numbers only: BigQuery's own sentences may quote a value."""
    table = str(schema.name)
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
