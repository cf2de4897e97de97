"""Rows as the serialized protobuf messages of AppendRows, encoded a column at a time.

A message is its fields end to end, each a tag and a value, in any order; an absent field is NULL. So a row's bytes
are what every column contributes to it, and a column contributes to all rows at once: numbers as a matrix of bytes of
which each row takes some (a varint's length differs), text straight from Arrow's buffer behind a tag and a length.
Arrow joins the contributions in C. No Python object is made per row: what comes out is the body of a serialized
`ProtoRows`, of which a request takes a stretch.

| BigQuery | protobuf | |
| --- | --- | --- |
| BOOL, INT64, FLOAT64 | bool, int64, double | |
| NUMERIC, BIGNUMERIC | bytes | × 10^9 or 10^38, two's complement, least byte first, shortest |
| STRING, BYTES | string, bytes | |
| DATE | int32 | days since 1970-01-01 |
| TIMESTAMP | int64 | microseconds since 1970-01-01 |
| TIME, DATETIME | int64 | civil time: year to microsecond in 14, 4, 5, 5, 6, 6, 20 bits |
| INTERVAL | string | the canonical `[-]Y-M [-]D [-]H:M:S.F` |
| STRUCT, ARRAY | message, repeated | |

https://cloud.google.com/bigquery/docs/supported-data-types#supported_protocol_buffer_data_types; the two packed forms
are those of the classes it names, CivilTimeEncoder and BigDecimalByteStringEncoder. The wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.cloud.bigquery_storage_v1 import types as storage
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from etl_core.destination.bigquery.types import ELEMENT, ELEMENTS, BigQueryType, bigquery_field
from etl_core.schema.table import Column
from etl_core.values.text import (
    Array,
    Bytes,
    Mask,
    Positions,
    as_binary,
    nulled,
    offsets_from_lengths,
    text_bytes,
    validity,
    variable_width,
    view_buffer,
)

CHANGE_TYPE, CHANGE_SEQUENCE_NUMBER = "_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"
ChangeType = Literal["UPSERT", "DELETE"]

# What is encoded at once: few enough rows for the processor's cache, few enough bytes for Arrow's 32-bit offsets.
_ROWS_AT_ONCE = 1 << 16
_BYTES_AT_ONCE = 1 << 26

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_PROTO_TYPES = {
    "BOOL": FieldDescriptorProto.TYPE_BOOL,
    "INT64": FieldDescriptorProto.TYPE_INT64,
    "FLOAT64": FieldDescriptorProto.TYPE_DOUBLE,
    "NUMERIC": FieldDescriptorProto.TYPE_BYTES,
    "BIGNUMERIC": FieldDescriptorProto.TYPE_BYTES,
    "STRING": FieldDescriptorProto.TYPE_STRING,
    "BYTES": FieldDescriptorProto.TYPE_BYTES,
    "DATE": FieldDescriptorProto.TYPE_INT32,
    "TIMESTAMP": FieldDescriptorProto.TYPE_INT64,
    "TIME": FieldDescriptorProto.TYPE_INT64,
    "DATETIME": FieldDescriptorProto.TYPE_INT64,
    "INTERVAL": FieldDescriptorProto.TYPE_STRING,
}
_SCALES = {"NUMERIC": pa.decimal128(38, 9), "BIGNUMERIC": pa.decimal256(76, 38)}
_INTERVAL = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])
_DAY = 86_400_000_000

Integers: TypeAlias = "npt.NDArray[np.integer[Any]]"


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as they stand in a serialized ProtoRows, end to end: row i is `data[offsets[i]:offsets[i + 1]]`."""

    data: memoryview
    offsets: Positions

    def __len__(self) -> int:
        return len(self.offsets) - 1


class RowEncoder:
    """Encodes the rows of one table. `types` are by the columns' names in the rows, `names` those in BigQuery."""

    def __init__(self, types: Mapping[str, BigQueryType], names: Sequence[str]) -> None:
        self._fields = {name: (at, kind) for at, (name, kind) in enumerate(types.items(), 1)}
        self._change_type, self._sequence = len(types) + 1, len(types) + 2
        self.descriptor = _descriptor(names, list(types.values()))

    @classmethod
    def of(cls, columns: Sequence[Column], names: Sequence[str]) -> Self:
        """Of a table with these columns."""
        return cls({column.name: bigquery_field(column) for column in columns}, names)

    @property
    def schema(self) -> Any:
        """The ProtoSchema of the messages, for the first request of a connection."""
        return storage.ProtoSchema(proto_descriptor=self.descriptor)

    def encode(self, rows: pa.Table, change: ChangeType, sequence: str) -> Iterator[EncodedRows]:
        """The rows, each with its change type and sequence number, in stretches.

        `rows` are as `to_bigquery` returns them, and may have some of the columns only: the others are absent.
        """
        constant = _text_field(self._change_type, change) + _text_field(self._sequence, sequence)
        fields = [self._fields[name] for name in rows.column_names]
        count = min(_ROWS_AT_ONCE, max(1, rows.num_rows * _BYTES_AT_ONCE // max(1, rows.nbytes)))
        for start in range(0, rows.num_rows, count):
            stretch = rows.slice(start, count)
            message = _Message(stretch.num_rows)
            for (number, kind), column in zip(fields, stretch.columns, strict=True):
                message.add(number, kind, _one_array(column))
            yield message.framed(constant)


class _Message:
    """What the columns contribute to each of `count` messages, in the order it was added.

    A piece is a binary array or, before it is needed, a block of bytes: `(matrix, lengths)`, of which row i contributes
    the first `lengths[i]` bytes of its line. Blocks next to each other become one array.
    """

    def __init__(self, count: int) -> None:
        self.sizes: Positions = np.zeros(count, np.int64)
        self._pieces: list[Any] = []
        self._blocks: list[tuple[Bytes, Positions]] = []

    def add(self, number: int, kind: BigQueryType, values: Array) -> None:
        """Adds a column as field `number`."""
        valid = validity(values)
        if kind.element is not None:
            self._add_bytes(number, _element_lists(values, kind.element, valid), valid)
        elif kind.fields:
            self._add_bytes(number, _struct_messages(values, kind, valid), valid)
        elif kind.sql in ("STRING", "BYTES"):
            self._add_bytes(number, as_binary(values), valid)
        elif kind.sql == "INTERVAL":
            self._add_bytes(number, as_binary(_interval_text(values, valid)), valid)
        elif kind.sql in _SCALES:
            self._add_block(number, _LENGTH, *_decimals(values.cast(_SCALES[kind.sql])), valid)
        elif kind.sql == "FLOAT64":
            self._add_block(number, _FIXED64, *_doubles(values), valid)
        else:
            self._add_block(number, _VARINT, *_varints(_numbers(values, kind.sql, valid)), valid)

    def joined(self) -> Array:
        """The messages, as a binary array."""
        self._close_blocks()
        return _join(self._pieces)

    def framed(self, constant: bytes) -> EncodedRows:
        """The messages with the fields `constant` in each, as elements of field 1 of a ProtoRows."""
        matrix, lengths = _varints((self.sizes + len(constant)).astype(np.uint64))
        self._close_blocks()
        frame = _flat([_tagged(1, _LENGTH, matrix, lengths)])
        framed = text_bytes(_join([frame, *self._pieces, pa.scalar(constant, pa.binary())]))
        return EncodedRows(framed.data.data, framed.offsets)

    def _add_block(self, number: int, wire: int, matrix: Bytes, lengths: Positions, valid: Mask | None) -> None:
        matrix, lengths = _tagged(number, wire, matrix, lengths)
        if valid is not None:
            lengths = np.where(valid, lengths, 0)
        self._blocks.append((matrix, lengths))
        self.sizes += lengths

    def _add_bytes(self, number: int, values: Array, valid: Mask | None) -> None:
        """`values` is binary, and NULL where it is not `valid`."""
        lengths = np.diff(view_buffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1])
        if valid is not None:
            lengths = np.where(valid, lengths, 0)
        self._add_block(number, _LENGTH, *_varints(lengths.astype(np.uint64)), valid)
        self._close_blocks()
        self._pieces.append(values)
        self.sizes += lengths

    def _close_blocks(self) -> None:
        if self._blocks:
            self._pieces.append(_flat(self._blocks))
            self._blocks = []


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _text_field(number: int, text: str) -> bytes:
    return _tag(number, _LENGTH) + _varint(len(text)) + text.encode()


def _tagged(number: int, wire: int, matrix: Bytes, lengths: Positions) -> tuple[Bytes, Positions]:
    tag = np.frombuffer(_tag(number, wire), np.uint8)
    tagged = np.empty((len(matrix), tag.size + matrix.shape[1]), np.uint8)
    tagged[:, : tag.size] = tag
    tagged[:, tag.size :] = matrix
    return tagged, lengths + tag.size


def _flat(blocks: Sequence[tuple[Bytes, Positions]]) -> Array:
    """Blocks side by side as a binary array: of each line, the bytes that count."""
    matrix = np.concatenate([block for block, _ in blocks], axis=1)
    kept = np.concatenate([np.arange(block.shape[1]) < lengths[:, None] for block, lengths in blocks], axis=1)
    total = sum(lengths for _, lengths in blocks)
    return variable_width(pa.binary(), matrix[kept], offsets_from_lengths(np.asarray(total)), None)


def _join(pieces: Sequence[Any]) -> Array:
    if len(pieces) == 1:
        only: Array = pieces[0]
        return only
    joined: Array = pc.binary_join_element_wise(
        *pieces, pa.scalar(b"", pa.binary()), null_handling="replace", null_replacement=""
    )
    return joined


def _varints(values: npt.NDArray[np.uint64]) -> tuple[Bytes, Positions]:
    width = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    matrix = np.empty((len(values), width), np.uint8)
    lengths = np.ones(len(values), np.int64)
    for place in range(width):
        low = values.astype(np.uint8) & 0x7F
        values = values >> np.uint64(7)
        more = values != 0
        matrix[:, place] = low | more.view(np.uint8) << 7
        lengths += more
    return matrix, lengths


def _doubles(values: Array) -> tuple[Bytes, Positions]:
    numbers = _fixed(values, np.float64).astype("<f8", copy=False)
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 8), np.full(len(values), 8, np.int64)


def _decimals(values: Array) -> tuple[Bytes, Positions]:
    """A length and as many bytes, least first, as hold the number and its sign."""
    width = values.type.byte_width
    stored = view_buffer(values.buffers()[1], np.uint8)[values.offset * width : (values.offset + len(values)) * width]
    number = stored.reshape(-1, width)
    sign = np.where(number[:, -1] & 0x80, np.uint8(0xFF), np.uint8(0))
    matters = number != sign[:, None]
    lengths = np.where(matters.any(axis=1), width - np.argmax(matters[:, ::-1], axis=1), 1).astype(np.int64)
    highest = number[np.arange(len(number)), lengths - 1]
    lengths += (highest ^ sign) >> 7
    matrix = np.empty((len(number), 1 + width), np.uint8)
    matrix[:, 0] = lengths
    matrix[:, 1:] = number
    return matrix, lengths + 1


def _numbers(values: Array, sql: str, valid: Mask | None) -> npt.NDArray[np.uint64]:
    """The integers that stand for values in varints: negative ones as 64 bits of two's complement."""
    if sql == "BOOL":
        bits = np.unpackbits(
            view_buffer(values.buffers()[1], np.uint8), count=values.offset + len(values), bitorder="little"
        )
        whole: npt.NDArray[np.uint64] = bits[values.offset :].astype(np.uint64)
        return whole
    numbers = _fixed(values, np.int32 if sql == "DATE" else np.int64).astype(np.int64)
    if valid is not None:
        numbers[~valid] = 0
    if sql == "TIME":
        numbers = _packed_time(numbers)
    elif sql == "DATETIME":
        numbers = _packed_date(numbers // _DAY) << 37 | _packed_time(numbers % _DAY)
    unsigned: npt.NDArray[np.uint64] = numbers.view(np.uint64)
    return unsigned


def _packed_time(microseconds: Positions) -> Positions:
    seconds, fraction = np.divmod(microseconds, 1_000_000)
    minutes, second = np.divmod(seconds, 60)
    hour, minute = np.divmod(minutes, 60)
    packed: Positions = hour << 32 | minute << 26 | second << 20 | fraction
    return packed


def _packed_date(days: Positions) -> Positions:
    dates = days.view("datetime64[D]")
    months = dates.astype("datetime64[M]")
    since = months.astype(np.int64)
    day = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    packed: Positions = (since // 12 + 1970) << 9 | (since % 12 + 1) << 5 | day
    return packed


def _interval_text(values: Array, valid: Mask | None) -> Array:
    parts = _fixed(values, np.uint8, _INTERVAL.itemsize).view(_INTERVAL)
    months, days = parts["months"].astype(np.int64), parts["days"].astype(np.int64)
    microseconds = parts["nanoseconds"] // 1000
    years, month = np.divmod(np.abs(months), 12)
    seconds, fraction = np.divmod(np.abs(microseconds), 1_000_000)
    minutes, second = np.divmod(seconds, 60)
    hour, minute = np.divmod(minutes, 60)
    pieces: list[Any] = [
        _sign(months),
        _digits(years),
        "-",
        _digits(month),
        " ",
        _digits(days),
        " ",
        _sign(microseconds),
    ]
    pieces += [_digits(hour), ":", _digits(minute), ":", _digits(second), "."]
    pieces.append(pc.utf8_lpad(_digits(fraction), 6, "0"))
    text: Array = pc.binary_join_element_wise(*pieces, "")
    return text if valid is None else nulled(text, ~valid)


def _digits(numbers: Positions) -> Array:
    digits: Array = pa.array(numbers).cast(pa.string())
    return digits


def _sign(numbers: Positions) -> Array:
    sign: Array = pc.if_else(pa.array(numbers < 0), "-", "")
    return sign


def _element_lists(structs: Any, element: BigQueryType, valid: Mask | None) -> Array:
    """The `elements` of each struct as the bytes of its message; NULL for a NULL struct."""
    lists: Any = structs.field(0)
    starts = view_buffer(lists.buffers()[1], np.int32)[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
    inner = lists.values.slice(starts[0], starts[-1] - starts[0])
    message = _Message(len(inner))
    message.add(1, element, inner.field(0))
    matrix, lengths = _varints(message.sizes.astype(np.uint64))
    messages = text_bytes(_join([_flat([_tagged(1, _LENGTH, matrix, lengths)]), message.joined()]))
    return variable_width(pa.binary(), messages.data, messages.offsets[starts - starts[0]], valid)


def _struct_messages(structs: Any, kind: BigQueryType, valid: Mask | None) -> Array:
    """Each struct as the bytes of its message; NULL for a NULL struct."""
    message = _Message(len(structs))
    for at, (_, field) in enumerate(kind.fields):
        message.add(at + 1, field, structs.field(at))
    messages = text_bytes(message.joined())
    return variable_width(pa.binary(), messages.data, messages.offsets, valid)


def _fixed(values: Array, dtype: Any, width: int = 1) -> Any:
    return view_buffer(values.buffers()[1], dtype)[values.offset * width : (values.offset + len(values)) * width]


def _one_array(column: Array | pa.ChunkedArray[Any]) -> Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    chunks: list[Array] = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _descriptor(names: Sequence[str], types: Sequence[BigQueryType]) -> DescriptorProto:
    descriptor = DescriptorProto(name="Row")
    for number, (name, kind) in enumerate(zip(names, types, strict=True), 1):
        _add_field(descriptor, name, number, kind)
    for number, name in enumerate((CHANGE_TYPE, CHANGE_SEQUENCE_NUMBER), len(names) + 1):
        _add_field(descriptor, name, number, BigQueryType("STRING", pa.string()))
    return descriptor


def _add_field(message: DescriptorProto, name: str, number: int, kind: BigQueryType) -> None:
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.fields:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f"Struct{number}"
        struct = message.nested_type.add(name=field.type_name)
        for at, one in enumerate(kind.fields, 1):
            _add_field(struct, one[0], at, one[1])
        return
    if kind.element is None:
        field.type = _PROTO_TYPES[kind.sql]
        return
    field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f"Array{number}"
    array = message.nested_type.add(name=field.type_name)
    inner = array.nested_type.add(name="Element")
    _add_field(inner, ELEMENT, 1, kind.element)
    array.field.add(
        name=ELEMENTS,
        number=1,
        label=FieldDescriptorProto.LABEL_REPEATED,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=inner.name,
    )
