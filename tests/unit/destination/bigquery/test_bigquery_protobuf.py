"""What the columnar encoder writes is what google.protobuf reads."""

from __future__ import annotations

import datetime
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import MonthDayNano

pytest.importorskip("google.cloud.bigquery_storage_v1", reason="needs the extra bigquery")

from google.cloud.bigquery_storage_v1 import types as storage
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from etl_core.destination.bigquery import protobuf
from etl_core.destination.bigquery.protobuf import RowEncoder
from etl_core.destination.bigquery.types import to_bigquery
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.testing.destination_tables import INT4, INT8, TEXT, array_of, numeric_modifier, rows, table

_EPOCH = datetime.datetime(1970, 1, 1)
_DAY = 86_400_000_000
_FIRST, _LAST = -719_162, 2_932_896
_SEQUENCE = "00000000016B3740/0000000000000001"


def _builtin(oid: int, name: str) -> PgType:
    return PgType(oid, name)


def _interval(months: int, days: int, microseconds: int) -> Any:
    build: Any = MonthDayNano
    return build((months, days, microseconds * 1000))


def _messages(encoder: RowEncoder, data: pa.Table, change: Any = "UPSERT") -> list[Any]:
    """The rows as google.protobuf parses them with the descriptor that is sent."""
    file = descriptor_pb2.FileDescriptorProto(name="row.proto", syntax="proto2")
    file.message_type.add().CopyFrom(encoder.descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Row"))
    parsed = []
    for part in encoder.encode(data, change, _SEQUENCE):
        proto_rows = storage.ProtoRows.pb()()
        proto_rows.ParseFromString(bytes(part.data))
        assert len(proto_rows.serialized_rows) == len(part)
        # Each row stands where the offsets say.
        for at, row in enumerate(proto_rows.serialized_rows):
            assert bytes(part.data[part.offsets[at] : part.offsets[at + 1]]).endswith(row)
            parsed.append(message.FromString(row))
    return parsed


def _numeric(value: Decimal, scale: int) -> bytes:
    """BigDecimalByteStringEncoder, one value at a time."""
    unscaled = int(value.scaleb(scale, context=_WIDE))
    length = 1
    while not -(1 << (8 * length - 1)) <= unscaled < 1 << (8 * length - 1):
        length += 1
    return unscaled.to_bytes(length, "little", signed=True)


_WIDE = Context(prec=100)


def _civil(moment: datetime.datetime) -> int:
    """CivilTimeEncoder.encodePacked64DatetimeMicros, one value at a time."""
    date = moment.year << 9 | moment.month << 5 | moment.day
    return date << 37 | _civil_time(moment.time())


def _civil_time(time: datetime.time) -> int:
    return time.hour << 32 | time.minute << 26 | time.second << 20 | time.microsecond


def _clock(microseconds: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def _interval_text(value: Any) -> str:
    months, days, nanoseconds = value
    microseconds = abs(nanoseconds) // 1000
    year_month = f"{'-' * (months < 0)}{abs(months) // 12}-{abs(months) % 12}"
    hours, rest = divmod(microseconds, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    seconds, fraction = divmod(rest, 1_000_000)
    return f"{year_month} {days} {'-' * (nanoseconds < 0)}{hours}:{minutes}:{seconds}.{fraction:06}"


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_MICROSECONDS = st.integers(_FIRST * _DAY, (_LAST + 1) * _DAY - 1)
_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**18), max_value=10**18)

# type, modifier, values as Arrow takes them, and the same value as the message has it.
_KINDS: dict[str, tuple[PgType, int, Any, Any]] = {
    "bool": (_builtin(pg_types.BOOL, "bool"), -1, st.booleans(), lambda v: v),
    "int2": (_builtin(pg_types.INT2, "int2"), -1, st.integers(-(2**15), 2**15 - 1), lambda v: v),
    "int8": (INT8, -1, st.integers(-(2**63), 2**63 - 1), lambda v: v),
    "float8": (_builtin(pg_types.FLOAT8, "float8"), -1, st.floats(), repr),
    "numeric": (_builtin(pg_types.NUMERIC, "numeric"), numeric_modifier(38, 9), _DECIMALS, lambda v: _numeric(v, 9)),
    "bignumeric": (
        _builtin(pg_types.NUMERIC, "numeric"),
        numeric_modifier(38, 10),
        _DECIMALS,
        lambda v: _numeric(v, 38),
    ),
    "text": (TEXT, -1, _TEXT, lambda v: v),
    "bytea": (_builtin(pg_types.BYTEA, "bytea"), -1, st.binary(), lambda v: v),
    "date": (_builtin(pg_types.DATE, "date"), -1, st.integers(_FIRST, _LAST), lambda v: v),
    "time": (
        _builtin(pg_types.TIME, "time"),
        -1,
        st.integers(0, _DAY - 1),
        lambda v: _civil_time(_clock(v).time()),
    ),
    "timestamp": (_builtin(pg_types.TIMESTAMP, "timestamp"), -1, _MICROSECONDS, lambda v: _civil(_clock(v))),
    "timestamptz": (_builtin(pg_types.TIMESTAMPTZ, "timestamptz"), -1, _MICROSECONDS, lambda v: v),
    "interval": (
        _builtin(pg_types.INTERVAL, "interval"),
        -1,
        st.builds(
            _interval,
            st.integers(-120_000, 120_000),
            st.integers(-3_660_000, 3_660_000),
            st.integers(-(2**63) // 1000 + 1, 2**63 // 1000 - 1),
        ),
        _interval_text,
    ),
}


def _read(message: Any, name: str) -> Any:
    if not message.HasField(name):
        return None
    value = getattr(message, name)
    return repr(value) if isinstance(value, float) else value


@pytest.mark.parametrize("name", _KINDS)
@given(data=st.data())
def test_a_column_reads_as_it_was_written(name: str, data: st.DataObject) -> None:
    pg_type, modifier, values, expected = _KINDS[name]
    drawn = data.draw(st.lists(st.none() | values, max_size=6))
    start = data.draw(st.integers(0, len(drawn)))
    schema = table("t", Column("id", INT8), Column("one", pg_type, modifier))
    sent = to_bigquery(rows(schema, list(enumerate(drawn))), schema.columns, schema.name)
    messages = _messages(RowEncoder.of(schema.columns, schema.column_names), sent.combine_chunks().slice(start))
    assert [_read(m, "one") for m in messages] == [None if v is None else expected(v) for v in drawn[start:]]
    assert [m.id for m in messages] == list(range(start, len(drawn)))
    assert {(m._CHANGE_TYPE, m._CHANGE_SEQUENCE_NUMBER) for m in messages} <= {("UPSERT", _SEQUENCE)}


@pytest.mark.parametrize("name", _KINDS)
@given(data=st.data())
def test_an_array_reads_as_it_was_written(name: str, data: st.DataObject) -> None:
    pg_type, modifier, values, expected = _KINDS[name]
    drawn = data.draw(st.lists(st.none() | st.lists(st.none() | values, max_size=3), max_size=5))
    if pg_type.oid in (pg_types.DATE, pg_types.TIME, pg_types.TIMESTAMP, pg_types.TIMESTAMPTZ):
        storage_type = pa.int32() if pg_type.oid == pg_types.DATE else pa.int64()
    else:
        storage_type = None
    start = data.draw(st.integers(0, len(drawn)))
    schema = table("t", Column("many", array_of(90_000, pg_type), modifier), key=())
    given_rows = _lists(schema, drawn, storage_type)
    sent = to_bigquery(given_rows, schema.columns, schema.name).combine_chunks().slice(start)
    messages = _messages(RowEncoder.of(schema.columns, ["many"]), sent)
    read = [[_read(e, "element") for e in m.many.elements] if m.HasField("many") else None for m in messages]
    assert read == [None if one is None else [None if v is None else expected(v) for v in one] for one in drawn[start:]]


def test_structs_read_as_they_were_written() -> None:
    """In a column, in an array, in one another, with NULL in each place; also as a slice."""
    inner = _composite("inner", Column("n", INT4), Column("names", array_of(1009, TEXT)))
    outer = _composite("outer", Column("kind", TEXT), Column("odd name", inner))
    schema = table("t", Column("one", outer), Column("many", array_of(90_001, outer)), key=())
    values: list[Any] = [
        {"kind": "k", "odd name": {"n": 1, "names": ["a", None]}},
        None,
        {"kind": None, "odd name": None},
        {"kind": "", "odd name": {"n": None, "names": []}},
    ]
    given_rows = rows(schema, [(value, values[at:]) for at, value in enumerate(values)])
    sent = to_bigquery(given_rows, schema.columns, schema.name).combine_chunks().slice(1)
    messages = _messages(RowEncoder.of(schema.columns, ["one", "many"]), sent)
    assert [_struct(m, "one") for m in messages] == values[1:]
    assert [[_struct(e, "element") for e in m.many.elements] for m in messages] == [values[at:] for at in (1, 2, 3)]


def _composite(name: str, *attributes: Column) -> PgType:
    return PgType(90_002 + len(name), name, "public", TypeKind.COMPOSITE, attributes=attributes)


def _struct(message: Any, name: str) -> Any:
    """An `outer` of the test above."""
    if not message.HasField(name):
        return None
    outer = getattr(message, name)
    odd = next(field.name for field in outer.DESCRIPTOR.fields if field.name.startswith("c_odd_name"))
    inner = getattr(outer, odd) if outer.HasField(odd) else None
    names = [_read(e, "element") for e in inner.names.elements] if inner is not None else None
    return {
        "kind": _read(outer, "kind"),
        "odd name": None if inner is None else {"n": _read(inner, "n"), "names": names},
    }


def _lists(schema: Any, drawn: Any, storage_type: pa.DataType | None) -> pa.Table:
    if storage_type is None:
        return rows(schema, [(one,) for one in drawn])
    kind = rows(schema).schema.field(0).type
    return pa.table({"many": pa.array(drawn, pa.list_(storage_type)).cast(kind)})


def test_every_extreme_of_the_packed_forms() -> None:
    columns = (
        Column("d", _builtin(pg_types.TIMESTAMP, "timestamp")),
        Column("n", _builtin(pg_types.NUMERIC, "numeric"), numeric_modifier(38, 9)),
        Column("b", _builtin(pg_types.NUMERIC, "numeric"), numeric_modifier(38, 38)),
    )
    schema = table("t", *columns, key=())
    largest, small = Decimal((0, (9,) * 38, -9)), Decimal((0, (9,) * 38, -38))
    moments = [_FIRST * _DAY, (_LAST + 1) * _DAY - 1, -1, 0, 951_825_599_999_999]
    numbers = [largest, largest.copy_negate(), Decimal("0.000000128"), Decimal("-0.000000128"), Decimal(0)]
    bigs = [small, small.copy_negate(), Decimal(1).scaleb(-38), Decimal(-1).scaleb(-38), Decimal(0)]
    given_rows = rows(schema, list(zip(moments, numbers, bigs, strict=True)))
    messages = _messages(RowEncoder.of(columns, ["d", "n", "b"]), to_bigquery(given_rows, columns, schema.name))
    assert [m.d for m in messages] == [_civil(_clock(moment)) for moment in moments]
    assert [m.n for m in messages] == [_numeric(number, 9) for number in numbers]
    assert [m.b for m in messages] == [_numeric(number, 38) for number in bigs]
    assert [len(m.n) for m in messages] == [16, 16, 2, 1, 1]


def test_text_of_every_length_up_to_and_past_a_longer_varint() -> None:
    schema = table("t", Column("id", INT8), Column("one", TEXT), Column("two", TEXT))
    lengths = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]
    data = [(at, "x" * length, None if at % 2 else "ü" * length) for at, length in enumerate(lengths)]
    sent = to_bigquery(rows(schema, data), schema.columns, schema.name)
    messages = _messages(RowEncoder.of(schema.columns, schema.column_names), sent)
    assert [(m.id, m.one, _read(m, "two")) for m in messages] == data


def test_rows_come_in_stretches_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = table("t", Column("id", INT8), Column("note", TEXT))
    data = [(at, "x" * at) for at in range(50)]
    sent = pa.concat_tables([to_bigquery(rows(schema, data[:7]), schema.columns, schema.name)] * 3)
    encoder = RowEncoder.of(schema.columns, schema.column_names)
    whole = [(m.id, m.note) for m in _messages(encoder, sent)]
    assert whole == data[:7] * 3
    monkeypatch.setattr(protobuf, "_BYTES_AT_ONCE", 64)
    assert len(list(encoder.encode(sent, "UPSERT", "1"))) > 1
    assert [(m.id, m.note) for m in _messages(encoder, sent)] == whole


def test_a_delete_has_only_its_key() -> None:
    schema = table("t", Column("id", INT8), Column("note", TEXT), Column("n", INT4), key=("id", "n"))
    keys = pa.table({"id": pa.array([1, -1]), "n": pa.array([2, 3], pa.int32())})
    sent = to_bigquery(keys, [schema.columns[0], schema.columns[2]], schema.name)
    messages = _messages(RowEncoder.of(schema.columns, ["id", "note", "amount"]), sent, "DELETE")
    assert [(m.id, m.amount, _read(m, "note"), m._CHANGE_TYPE) for m in messages] == [
        (1, 2, None, "DELETE"),
        (-1, 3, None, "DELETE"),
    ]


def test_a_table_of_hundreds_of_columns_has_longer_tags() -> None:
    columns = tuple(Column(f"c{at}", INT4) for at in range(300))
    schema = table("t", *columns, key=())
    sent = to_bigquery(rows(schema, [tuple(range(300))]), columns, schema.name)
    (message,) = _messages(RowEncoder.of(columns, schema.column_names), sent)
    assert [getattr(message, f"c{at}") for at in range(300)] == list(range(300))
