"""The server refuses what Google's documents forbid; else what is tested over it would prove nothing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("google.cloud.bigquery_storage_v1", reason="needs the extra bigquery")

import grpc
from google.cloud.bigquery_storage_v1 import types as storage
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from etl_core.testing.servers.bigquery_write_rules import Refused, Type, message_class, read_row
from etl_core.testing.servers.bigquery_write_server import BigQueryWriteServer

PATH = "projects/p/datasets/d/tables/t"
STREAM = f"{PATH}/streams/_default"
_COLUMNS = {"id": "INT64", "name": "STRING"}
_FIELDS: dict[str, int] = {
    "id": FieldDescriptorProto.TYPE_INT64,
    "name": FieldDescriptorProto.TYPE_STRING,
    "_CHANGE_TYPE": FieldDescriptorProto.TYPE_STRING,
    "_CHANGE_SEQUENCE_NUMBER": FieldDescriptorProto.TYPE_STRING,
}
_ARROW_TYPES: dict[str, pa.DataType] = {"id": pa.int64(), "name": pa.string()}
_SCHEMA = pa.schema(_ARROW_TYPES)


@pytest.fixture
def server() -> Iterator[BigQueryWriteServer]:
    with BigQueryWriteServer() as running:
        running.create_table(PATH, _COLUMNS, ["id"])
        yield running


@pytest.fixture
def send(server: BigQueryWriteServer) -> Iterator[Callable[..., list[Any]]]:
    """Sends requests over one connection and returns the answers."""
    with grpc.insecure_channel(server.address) as channel:
        append = channel.stream_stream(
            "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows",
            request_serializer=storage.AppendRowsRequest.pb().SerializeToString,
            response_deserializer=storage.AppendRowsResponse.pb().FromString,
        )
        yield lambda *requests: list(append(iter(requests)))


def _descriptor(fields: Mapping[str, int]) -> DescriptorProto:
    descriptor = DescriptorProto(name="T")
    for number, (name, kind) in enumerate(fields.items(), 1):
        label = FieldDescriptorProto.LABEL_OPTIONAL
        descriptor.field.add(name=name, number=number, type=kind, label=label)
    return descriptor


def _request(*rows: Mapping[str, Any], fields: Mapping[str, int] = _FIELDS, stream: str = STREAM) -> Any:
    descriptor = _descriptor(fields)
    message = message_class(descriptor)
    request: Any = storage.AppendRowsRequest.pb()(write_stream=stream)
    request.proto_rows.writer_schema.proto_descriptor.CopyFrom(descriptor)
    for row in rows:
        request.proto_rows.rows.serialized_rows.append(message(**row).SerializeToString())
    return request


def _upsert(key: int, name: str, sequence: str) -> dict[str, Any]:
    return {"id": key, "name": name, "_CHANGE_TYPE": "UPSERT", "_CHANGE_SEQUENCE_NUMBER": sequence}


def _delete(key: int, sequence: str) -> dict[str, Any]:
    return {"id": key, "_CHANGE_TYPE": "DELETE", "_CHANGE_SEQUENCE_NUMBER": sequence}


def _refused(send: Callable[..., list[Any]], *requests: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        send(*requests)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.details())


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    # The documents' own examples of what is larger, then a tie, which the later one wins.
    [("77", "7B", 2), ("FFF/B", "FFF/ABC", 2), ("BA/FFFFFFFF", "ABC", 2), ("FFF/ABC", "ABC", 1), ("a/0", "A/0", 2)],
)
def test_the_larger_sequence_number_wins_whichever_comes_first(
    server: BigQueryWriteServer, send: Callable[..., list[Any]], first: str, second: str, winner: int
) -> None:
    send(_request(_upsert(1, "1", first), _upsert(1, "2", second)))
    assert server.read(PATH, _SCHEMA).to_pylist() == [{"id": 1, "name": str(winner)}]


def test_a_delete_is_remembered_until_it_is_forgotten(
    server: BigQueryWriteServer, send: Callable[..., list[Any]]
) -> None:
    send(_request(_delete(1, "2"), _upsert(1, "older", "1")))
    assert server.read(PATH, _SCHEMA).num_rows == 0
    server.forget_deletes()
    send(_request(_upsert(1, "older", "1")))
    assert server.read(PATH, _SCHEMA).to_pylist() == [{"id": 1, "name": "older"}]


def test_a_loaded_row_loses_against_every_change(server: BigQueryWriteServer, send: Callable[..., list[Any]]) -> None:
    server.create_table(PATH, _COLUMNS, ["id"], pa.Table.from_pylist([{"id": 1, "name": "copied"}], schema=_SCHEMA))
    send(_request(_upsert(1, "changed", "0")))
    assert server.read(PATH, _SCHEMA).to_pylist() == [{"id": 1, "name": "changed"}]


def test_what_a_later_request_of_a_connection_need_not_repeat(
    server: BigQueryWriteServer, send: Callable[..., list[Any]]
) -> None:
    later = _request(_upsert(2, "b", "1"), stream="")
    later.proto_rows.ClearField("writer_schema")
    answers = send(_request(_upsert(1, "a", "1")), later)
    assert [answer.HasField("append_result") for answer in answers] == [True, True]
    assert server.read(PATH, _SCHEMA).num_rows == 2


def test_requests_that_are_refused(server: BigQueryWriteServer, send: Callable[..., list[Any]]) -> None:
    good = _request(_upsert(1, "a", "1"))

    arrow = storage.AppendRowsRequest.pb()(write_stream=STREAM)
    arrow.arrow_rows.rows.serialized_record_batch = b"x"
    assert "not Arrow" in _refused(send, arrow)

    offset = _request(_upsert(1, "a", "1"))
    offset.offset.value = 0
    assert "offset" in _refused(send, offset)

    assert "below 10 MB" in _refused(send, _request(_upsert(1, "x" * 10_000_000, "1")))
    assert "write stream" in _refused(send, _request(_upsert(1, "a", "1"), stream=""))
    assert "default stream" in _refused(send, _request(_upsert(1, "a", "1"), stream=f"{PATH}/streams/Cg"))

    schemaless = _request(_upsert(1, "a", "1"))
    schemaless.proto_rows.ClearField("writer_schema")
    assert "writer's schema" in _refused(send, schemaless)

    nested = _request()
    nested.proto_rows.writer_schema.proto_descriptor.field[1].type = FieldDescriptorProto.TYPE_MESSAGE
    nested.proto_rows.writer_schema.proto_descriptor.field[1].type_name = "Elsewhere"
    assert "self-contained" in _refused(send, nested)

    assert server.read(PATH, _SCHEMA).num_rows == 0
    send(good)
    assert server.read(PATH, _SCHEMA).num_rows == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (_FIELDS | {"extra": FieldDescriptorProto.TYPE_STRING}, "no column extra"),
        (_FIELDS | {"id": FieldDescriptorProto.TYPE_STRING}, "column id of type INT64"),
        (_FIELDS | {"name": FieldDescriptorProto.TYPE_INT64}, "column name of type STRING"),
        ({name: kind for name, kind in _FIELDS.items() if name != "id"}, "lacks id"),
        ({name: kind for name, kind in _FIELDS.items() if name != "_CHANGE_TYPE"}, "lacks _CHANGE_TYPE"),
        ({name: kind for name, kind in _FIELDS.items() if "NUMBER" not in name}, "lacks _CHANGE_SEQUENCE_NUMBER"),
    ],
)
def test_schemas_that_are_refused(send: Callable[..., list[Any]], fields: Mapping[str, int], message: str) -> None:
    assert message in _refused(send, _request(fields=fields))


@pytest.mark.parametrize(
    ("columns", "key", "message"),
    [
        (_COLUMNS, [], "declared primary key"),
        ({f"k{at}": "INT64" for at in range(17)}, [f"k{at}" for at in range(17)], "at most 16"),
        ({"id": "BYTES", "name": "STRING"}, ["id"], "cannot be of type BYTES"),
        ({"id": "INT64", "name": "FLOAT64"}, ["id", "name"], "cannot be of type FLOAT64"),
    ],
)
def test_keys_that_are_refused(
    server: BigQueryWriteServer,
    send: Callable[..., list[Any]],
    columns: Mapping[str, str],
    key: list[str],
    message: str,
) -> None:
    server.create_table(PATH, columns, key)
    assert message in _refused(send, _request(_upsert(1, "a", "1")))


def test_a_table_that_is_not_there(send: Callable[..., list[Any]]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        send(_request(stream="projects/p/datasets/d/tables/other/streams/_default"))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.NOT_FOUND


_ROW = _upsert(1, "a", "1")


@pytest.mark.parametrize(
    "row",
    [
        _ROW | {"_CHANGE_TYPE": "INSERT"},
        _ROW | {"_CHANGE_TYPE": "upsert"},
        {name: value for name, value in _ROW.items() if name != "_CHANGE_TYPE"},
        _ROW | {"_CHANGE_SEQUENCE_NUMBER": ""},
        _ROW | {"_CHANGE_SEQUENCE_NUMBER": "1/2/3/4/5"},
        _ROW | {"_CHANGE_SEQUENCE_NUMBER": "11112222333344445"},
        _ROW | {"_CHANGE_SEQUENCE_NUMBER": "1//2"},
        _ROW | {"_CHANGE_SEQUENCE_NUMBER": "0x1"},
        {name: value for name, value in _ROW.items() if name != "_CHANGE_SEQUENCE_NUMBER"},
        {name: value for name, value in _ROW.items() if name != "id"},
    ],
)
def test_a_wrong_row_is_named_and_its_whole_request_refused(
    server: BigQueryWriteServer, send: Callable[..., list[Any]], row: dict[str, Any]
) -> None:
    (answer,) = send(_request(_upsert(2, "b", "1"), row))
    assert [error.index for error in answer.row_errors] == [1]
    assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert server.read(PATH, _SCHEMA).num_rows == 0


_CIVIL = 2024 << 9 | 2 << 5 | 29  # a date in year, month and day


@pytest.mark.parametrize(
    ("sql", "kind", "wire", "value"),
    [
        ("BOOL", "BOOL", True, True),
        ("BYTES", "BYTES", b"\x00", b"\x00"),
        ("DATE", "INT32", -719_162, datetime.date(1, 1, 1)),
        ("DATE", "INT32", -719_163, None),
        ("DATE", "INT32", 2_932_897, None),
        ("TIMESTAMP", "INT64", -1, datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, datetime.UTC)),
        ("TIMESTAMP", "INT64", 253_402_300_800_000_000, None),
        ("DATETIME", "INT64", _CIVIL << 37 | 23 << 32 | 7, datetime.datetime(2024, 2, 29, 23, 0, 0, 7)),
        ("DATETIME", "INT64", (_CIVIL + 1) << 37, None),
        ("TIME", "INT64", 23 << 32 | 59 << 26 | 58 << 20 | 1, datetime.time(23, 59, 58, 1)),
        ("TIME", "INT64", 24 << 32, None),
        ("NUMERIC", "BYTES", (-1_500_000_000).to_bytes(4, "little", signed=True), Decimal("-1.500000000")),
        ("NUMERIC", "BYTES", (10**38).to_bytes(16, "little"), None),
        ("NUMERIC", "BYTES", b"", None),
        ("BIGNUMERIC", "BYTES", b"\x01", Decimal(1).scaleb(-38)),
        ("BIGNUMERIC", "BYTES", b"\x01" * 33, None),
        ("INTERVAL", "STRING", "-1-2 3 -4:5:6.07", (-14, 3, -14_706_070_000_000)),
        ("INTERVAL", "STRING", "10001-0 0 0:0:0", None),
        ("INTERVAL", "STRING", "P1Y", None),
        ("FLOAT64", "DOUBLE", -0.5, -0.5),
    ],
)
def test_values_are_read_as_documented_or_refused(sql: str, kind: str, wire: Any, value: Any) -> None:
    message = message_class(_descriptor({"one": getattr(FieldDescriptorProto, f"TYPE_{kind}")}))
    if value is None:
        with pytest.raises(Refused):
            read_row(message(one=wire), {"one": Type.parse(sql)}, ())
    else:
        read = read_row(message(one=wire), {"one": Type.parse(sql)}, ())["one"]
        assert (tuple(read) if sql == "INTERVAL" else read) == value
