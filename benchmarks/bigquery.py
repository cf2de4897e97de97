"""What sending changes to BigQuery costs here: encoding, beside google.protobuf row by row, and all of it over gRPC."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from google.cloud.bigquery import ScalarQueryParameter
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1 import types as storage
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from benchmarks.loading import ORDERS, make_rows
from benchmarks.session import Result, Session
from etl_core.batch import TableChanges
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.changes import key_bounds
from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.protobuf import RowEncoder
from etl_core.destination.bigquery.row_stream import Sent
from etl_core.destination.bigquery.types import to_bigquery
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.testing.servers.bigquery_write_rules import message_class
from etl_core.values.arrow import arrow_schema, key_schema

_SEQUENCE = "16B3740/100000001/1"
_REFERENCE_ROWS = 50_000
_TABLE_ROWS = 10_000_000
_CHANGED_ROWS = 10_000
_BLOCK_BYTES = 64_000_000


def bigquery_encode(session: Session) -> Result:
    """`session.rows` rows of 8 columns, a third of one column NULL: to requests, and through a server that says yes."""
    schema = ORDERS
    rows = make_rows(np.arange(session.rows))
    encoder = RowEncoder.of(schema.columns, schema.column_names)
    few = to_bigquery(rows.slice(0, _REFERENCE_ROWS), schema.columns, schema.name)
    reference, ours, sending, sent = [], [], [], Sent()
    for _ in range(session.runs):
        ours.append(_microseconds(lambda: _encode(encoder, rows, schema), rows.num_rows))
        reference.append(_microseconds(lambda: _encode_by_row(encoder, few), few.num_rows))
        with _yes_server() as address, grpc.insecure_channel(address) as channel:
            client = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]
            started = time.monotonic()
            sent = _send(client, schema, rows)
            sending.append(time.monotonic() - started)
    seconds = statistics.median(sending)
    figures = {
        "bigquery_encode_us_per_row": statistics.median(ours),
        "bigquery_encode_ratio": statistics.median(b / a for a, b in zip(ours, reference, strict=True)),
        "bigquery_requests_per_s": sent.requests / seconds,
        "bigquery_bytes_per_request": sent.bytes / sent.requests,
    }
    details = {
        "encode_us_per_row": ours,
        "google_protobuf_us_per_row": reference,
        "sending_us_per_row": [one / rows.num_rows * 1e6 for one in sending],
        "bytes_per_row": sent.bytes / sent.rows,
    }
    return Result(figures, details)


def bigquery_merge(_: Session) -> Result:
    """What a MERGE of 10,000 changed rows reads of 10 M, by the plan that its bounds allow: a calculation.

    A clustered table is stored in blocks with the range of the key in each; read are those that meet the bounds, all
    columns of them. Blocks are taken to have 64 MB. What BigQuery reads is in the log and in Dagster's metadata.
    """
    schema, random = ORDERS, np.random.default_rng(1)
    keys = {
        "appended": np.arange(_TABLE_ROWS, _TABLE_ROWS + _CHANGED_ROWS),
        "in_the_newest_percent": random.integers(_TABLE_ROWS - _TABLE_ROWS // 100, _TABLE_ROWS, _CHANGED_ROWS),
        "anywhere": random.integers(0, _TABLE_ROWS, _CHANGED_ROWS),
    }
    width = make_rows(np.arange(10_000)).nbytes / 10_000
    per_block = int(_BLOCK_BYTES / width)
    details = {}
    for where, touched in keys.items():
        rows = make_rows(np.arange(_CHANGED_ROWS)).set_column(0, "id", pa.array(touched))
        empty = arrow_schema(schema).empty_table()
        changes = TableChanges(schema, empty, rows.cast(empty.schema), key_schema(schema).empty_table())
        bounds = key_bounds(changes, stored_columns(schema), 0)
        assert bounds is not None, "an integer key has bounds"
        least, most = (_number(parameter) for parameter in bounds[1])
        first, last = (min(key, _TABLE_ROWS) // per_block for key in (least, most))
        blocks = min(last, _TABLE_ROWS // per_block) - first + 1 if least < _TABLE_ROWS else 0
        details[f"merge_bytes_per_changed_row_{where}"] = blocks * per_block * width / _CHANGED_ROWS
    return Result({}, details)


def _number(bound: object) -> int:
    assert isinstance(bound, ScalarQueryParameter)
    assert isinstance(bound.value, int)
    return bound.value


def _microseconds(work: Callable[[], object], rows: int) -> float:
    """Of CPU, per row: the machine may be doing other things."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / rows * 1e6


def _encode(encoder: RowEncoder, rows: pa.Table, schema: TableSchema) -> list[Any]:
    """Arrow rows to ProtoRows messages that gRPC can take."""
    messages = []
    for part in encoder.encode(to_bigquery(rows, schema.columns, schema.name), "UPSERT", _SEQUENCE):
        message = storage.ProtoRows.pb()()
        message.ParseFromString(bytes(part.data))
        messages.append(message)
    return messages


def _encode_by_row(encoder: RowEncoder, rows: pa.Table) -> Any:
    """What there is without us: a message object per row, each field set, serialized in C."""
    message = message_class(encoder.descriptor)
    names = [name for name in rows.column_names if name not in ("price", "ordered_at")]
    plain = rows.select(names).to_pylist()
    prices = [str(price) for price in rows["price"].to_pylist()]
    moments = rows["ordered_at"].cast(pa.int64()).to_pylist()
    whole = storage.ProtoRows.pb()()
    for row, price, moment in zip(plain, prices, moments, strict=True):
        values = {name: value for name, value in row.items() if value is not None}
        one = message(
            **values,
            price=price.encode(),
            ordered_at=moment,
            _CHANGE_TYPE="UPSERT",
            _CHANGE_SEQUENCE_NUMBER=_SEQUENCE,
        )
        whole.serialized_rows.append(one.SerializeToString())
    return whole


def _send(client: BigQueryWriteClient, schema: TableSchema, rows: pa.Table) -> Sent:
    none = arrow_schema(schema).empty_table()
    changes = TableChanges(schema, none, rows, key_schema(schema).empty_table())
    with CdcWriter(client, "projects/p/datasets/d/tables/orders", schema, schema.column_names) as writer:
        return writer.write(changes, Lsn(1), 1, 0)


@contextmanager
def _yes_server() -> Iterator[str]:
    """Answers every request without reading its rows; yields its address."""
    answer = storage.AppendRowsResponse.pb()(append_result={}).SerializeToString()
    handler = grpc.stream_stream_rpc_method_handler(lambda requests, _: (answer for _ in requests))
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    service = "google.cloud.bigquery.storage.v1.BigQueryWrite"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"AppendRows": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
