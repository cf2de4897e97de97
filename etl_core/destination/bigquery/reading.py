"""Rows out of a table, through the Storage Read API as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
from google.cloud.bigquery_storage_v1 import types

from etl_core.destination.bigquery.connection import CALL_SECONDS, JOB_SECONDS, STORAGE_RETRY, Clients
from etl_core.destination.bigquery.failures import translated
from etl_core.destination.bigquery.names import Place
from etl_core.identifiers import TableName


def read_columns(clients: Clients, place: Place, columns: Sequence[str], table: TableName) -> Iterator[pa.RecordBatch]:
    """These columns of the rows there are at the moment of the call, however long they are read.

    A read of a table whose changes are streamed may lack some of them. Raises Google's error where the table is not
    there, later ones translated.
    """
    session = types.ReadSession(
        table=place.path,
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(selected_fields=columns),
    )
    begun = clients.read().create_read_session(
        parent=f"projects/{clients.project}",
        read_session=session,
        max_stream_count=1,
        retry=STORAGE_RETRY,
        timeout=CALL_SECONDS,
    )
    return _rows(clients, begun, columns, table)


def _rows(
    clients: Clients, begun: types.ReadSession, columns: Sequence[str], table: TableName
) -> Iterator[pa.RecordBatch]:
    if not begun.streams:
        return  # the table is empty
    sent = pa.ipc.read_schema(pa.py_buffer(begun.arrow_schema.serialized_schema))
    client: Any = clients.read()  # `read_rows` is without types
    for stream in begun.streams:
        with translated("reading", table):
            for message in client.read_rows(stream.name, retry=STORAGE_RETRY, timeout=JOB_SECONDS):
                block = pa.py_buffer(message.arrow_record_batch.serialized_record_batch)
                rows = pa.ipc.read_record_batch(block, sent)
                yield pa.RecordBatch.from_arrays([rows.column(name) for name in columns], names=list(columns))
