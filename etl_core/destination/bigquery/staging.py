"""Rows on their way into a staging table, through the Storage Write API as Arrow.

A copy uses a pending stream for each writing thread: offsets keep an append that is sent again from being applied
twice, and nothing is seen before the streams are committed together. A batch's rows go to the default stream, which has
no quota of its own but may apply an append twice; they are numbered, and the script that reads them takes each once.
https://cloud.google.com/bigquery/docs/write-api
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
from google.api_core import exceptions
from google.api_core.retry import if_exception_type
from google.cloud.bigquery_storage_v1 import types

from etl_core.destination.bigquery.connection import CALL_SECONDS, STORAGE_RETRY, Clients
from etl_core.destination.bigquery.failures import translated
from etl_core.destination.bigquery.names import Place
from etl_core.errors import DestinationUnavailable
from etl_core.identifiers import TableName

# A table that was created a moment ago may not be known everywhere.
_NEW_TABLE_RETRY = STORAGE_RETRY.with_predicate(
    if_exception_type(
        exceptions.ServiceUnavailable,
        exceptions.DeadlineExceeded,
        exceptions.ResourceExhausted,
        exceptions.NotFound,
    )
)
_REQUEST_BYTES = 8_000_000
"""Below the 10 MB that a request may have, with room for what surrounds the rows."""
_TRIES = 6
_WAIT = 0.5
_PASSING = (
    exceptions.ServiceUnavailable,
    exceptions.InternalServerError,
    exceptions.Aborted,
    exceptions.Unknown,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.ResourceExhausted,
)


class PendingStream:
    """Rows of a copy by one thread; they count when the stream, finished, is committed."""

    def __init__(self, clients: Clients, place: Place, table: TableName) -> None:
        self._clients = clients
        self._table = table
        self._rows = 0
        with translated("opening a write stream", table):
            stream = clients.write().create_write_stream(
                parent=place.path,
                write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING),
                retry=_NEW_TABLE_RETRY,
                timeout=CALL_SECONDS,
            )
        self.name: str = stream.name

    def append(self, rows: pa.RecordBatch) -> None:
        for part in _cut(rows):
            append(self._clients, self.name, part, self._table, offset=self._rows)
            self._rows += part.num_rows

    def finish(self) -> None:
        """No more is appended. Raises DestinationUnavailable if BigQuery has another number of rows than was sent."""
        with translated("finishing a write stream", self._table):
            answer = self._clients.write().finalize_write_stream(
                name=self.name, retry=STORAGE_RETRY, timeout=CALL_SECONDS
            )
        if answer.row_count != self._rows:
            raise DestinationUnavailable(
                f"BigQuery has {answer.row_count:,} of {self._rows:,} rows of {self._table} that one stream was sent"
            )


def commit(clients: Clients, place: Place, streams: Sequence[str], table: TableName) -> None:
    """Makes the rows of finished streams visible, of all or of none."""
    with translated("committing write streams", table):
        answer = clients.write().batch_commit_write_streams(
            types.BatchCommitWriteStreamsRequest(parent=place.path, write_streams=list(streams)),
            retry=STORAGE_RETRY,
            timeout=CALL_SECONDS,
        )
        if answer.stream_errors and not all(_is_committed(clients, stream) for stream in streams):
            raise exceptions.InternalServerError(  # type: ignore[no-untyped-call]
                "; ".join(error.code.name for error in answer.stream_errors)
            )


def _is_committed(clients: Clients, stream: str) -> bool:
    """Whether it was by a request whose answer was lost."""
    found = clients.write().get_write_stream(name=stream, retry=STORAGE_RETRY, timeout=CALL_SECONDS)
    return "commit_time" in found


def append_all(clients: Clients, place: Place, rows: pa.Table, table: TableName) -> None:
    """Appends to the table's default stream, at least once."""
    for batch in rows.to_batches():
        for part in _cut(batch):
            append(clients, f"{place.path}/streams/_default", part, table)


def append(clients: Clients, stream: str, rows: pa.RecordBatch, table: TableName, *, offset: int | None = None) -> None:
    """One request, tried again while its answer does not come; with an offset it is applied once."""
    request = types.AppendRowsRequest(
        write_stream=stream,
        offset=offset,
        arrow_rows=types.AppendRowsRequest.ArrowData(
            writer_schema=types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes()),
            rows=types.ArrowRecordBatch(serialized_record_batch=rows.serialize().to_pybytes()),
        ),
    )
    with translated("staging rows", table):
        for number in range(1, _TRIES + 1):
            try:
                _send(clients, request)
                return
            except exceptions.AlreadyExists:
                return  # the answer to an earlier try was lost
            except (*_PASSING, exceptions.NotFound):  # see _NEW_TABLE_RETRY
                if number == _TRIES:
                    raise
                time.sleep(_WAIT * number)


def _send(clients: Clients, request: types.AppendRowsRequest) -> None:
    answers = list(clients.write().append_rows(iter([request]), retry=None, timeout=CALL_SECONDS))
    if not answers:
        raise exceptions.ServiceUnavailable("no answer")  # type: ignore[no-untyped-call]
    for answer in answers:
        if answer.error.code:
            raise exceptions.from_grpc_status(  # type: ignore[no-untyped-call]
                answer.error.code, answer.error.message
            )
        if answer.row_errors:
            raise exceptions.InvalidArgument(  # type: ignore[no-untyped-call]
                f"{len(answer.row_errors)} rows were refused"
            )


def _cut(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices that fit into a request; a row that does not is sent alone, for BigQuery to refuse."""
    if rows.num_rows == 0:
        return
    pieces = min(rows.num_rows, -(-rows.nbytes // _REQUEST_BYTES) or 1)
    if pieces == 1:
        yield rows
        return
    size = -(-rows.num_rows // pieces)
    for start in range(0, rows.num_rows, size):
        part = rows.slice(start, size)
        if part.num_rows > 1 and part.nbytes > _REQUEST_BYTES:
            yield from _cut(part)
        else:
            yield part
