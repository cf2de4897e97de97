"""What BigQuery accepts on a table with change data capture, as Google documents it, one row at a time.

Written from the documents and independent of our encoder: rows are parsed by google.protobuf with the descriptor that
the writer sent.

- https://cloud.google.com/bigquery/docs/change-data-capture
- https://cloud.google.com/bigquery/docs/supported-data-types#supported_protocol_buffer_data_types
- https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from pyarrow import MonthDayNano

CHANGE_TYPE, CHANGE_SEQUENCE_NUMBER = "_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"
MAX_KEY_COLUMNS = 16
_KEY_TYPES = {"BIGNUMERIC", "BOOL", "DATE", "DATETIME", "INT64", "NUMERIC", "STRING", "TIMESTAMP"}

_EPOCH = datetime.datetime(1970, 1, 1)
_SECTIONS = re.compile(r"[0-9A-Fa-f]{1,16}(?:/[0-9A-Fa-f]{1,16}){0,3}")
_INTERVAL = re.compile(r"(-?)(\d+)-(\d+) (-?\d+) (-?)(\d+):(\d+):(\d+)(?:\.(\d{1,6}))?")
_INT = (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_UINT32)
_PROTO_TYPES: Mapping[str, tuple[int, ...]] = {
    "BOOL": (FieldDescriptorProto.TYPE_BOOL, *_INT, FieldDescriptorProto.TYPE_UINT64),
    "BYTES": (FieldDescriptorProto.TYPE_BYTES,),
    "DATE": (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64),
    "DATETIME": (FieldDescriptorProto.TYPE_INT64,),
    "TIME": (FieldDescriptorProto.TYPE_INT64,),
    "FLOAT64": (FieldDescriptorProto.TYPE_DOUBLE, FieldDescriptorProto.TYPE_FLOAT),
    "INT64": _INT,
    "NUMERIC": (FieldDescriptorProto.TYPE_BYTES,),
    "BIGNUMERIC": (FieldDescriptorProto.TYPE_BYTES,),
    "STRING": (FieldDescriptorProto.TYPE_STRING,),
    "TIMESTAMP": _INT,
    "INTERVAL": (FieldDescriptorProto.TYPE_STRING,),
    "STRUCT": (FieldDescriptorProto.TYPE_MESSAGE,),
}


class Refused(Exception):
    """A rule is broken. `extra_field`: the writer's schema has a field that the table does not have."""

    def __init__(self, message: str, *, extra_field: bool = False) -> None:
        super().__init__(message)
        self.extra_field = extra_field


@dataclass(frozen=True, slots=True)
class Type:
    """A BigQuery type: its name, whether it is an ARRAY of it, and a STRUCT's fields."""

    name: str
    repeated: bool = False
    fields: Mapping[str, Type] = field(default_factory=dict)

    @classmethod
    def parse(cls, sql: str) -> Type:
        """Reads `INT64` or ``STRUCT<elements ARRAY<STRUCT<element INT64>>, `n` FLOAT64>``."""
        if match := re.fullmatch(r"ARRAY<(.*)>", sql):
            inner = cls.parse(match[1])
            return cls(inner.name, True, inner.fields)
        if match := re.fullmatch(r"STRUCT<(.*)>", sql):
            fields = [one.split(" ", 1) for one in _fields(match[1])]
            return cls("STRUCT", False, {name.strip("`"): cls.parse(kind) for name, kind in fields})
        if sql not in _PROTO_TYPES:
            raise ValueError(f"this server has no type {sql}")
        return cls(sql)


def _fields(sql: str) -> list[str]:
    """The fields of a STRUCT, cut at the commas outside of its own STRUCTs."""
    found, depth = [""], 0
    for character in sql:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return [one.strip() for one in found]


def check_key(columns: Mapping[str, Type], key: tuple[str, ...]) -> None:
    """Raises Refused unless a table with this primary key takes changes."""
    if not key:
        raise Refused("change data capture needs a declared primary key")
    if len(key) > MAX_KEY_COLUMNS:
        raise Refused(f"a primary key has at most {MAX_KEY_COLUMNS} columns")
    for name in key:
        if columns[name].name not in _KEY_TYPES or columns[name].repeated:
            raise Refused(f"primary key column cannot be of type {columns[name].name}")


def message_class(descriptor: DescriptorProto) -> Any:
    """The class that parses rows with the writer's self-contained `descriptor`."""
    file = descriptor_pb2.FileDescriptorProto(name="writer.proto", syntax="proto2")
    file.message_type.add().CopyFrom(descriptor)
    pool = descriptor_pool.DescriptorPool()
    try:
        pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.name))
    except (TypeError, KeyError) as error:
        raise Refused(f"the writer's schema is not a self-contained descriptor: {error}") from None


def check_schema(descriptor: Any, columns: Mapping[str, Type], key: tuple[str, ...]) -> None:
    """Raises Refused unless rows of the writer's message can go into the table as changes."""
    text = Type("STRING")
    _check_fields(descriptor, {**columns, CHANGE_TYPE: text, CHANGE_SEQUENCE_NUMBER: text})
    for name in (*key, CHANGE_TYPE, CHANGE_SEQUENCE_NUMBER):
        if name not in descriptor.fields_by_name:
            raise Refused(f"the writer's schema lacks {name}")


def _check_fields(descriptor: Any, columns: Mapping[str, Type]) -> None:
    for one in descriptor.fields:
        kind = columns.get(one.name)
        if kind is None:
            raise Refused(f"the table has no column {one.name}", extra_field=True)
        if one.is_repeated != kind.repeated:
            raise Refused(f"column {one.name} is {'an array' if kind.repeated else 'no array'}")
        if one.type not in _PROTO_TYPES[kind.name]:
            raise Refused(f"column {one.name} of type {kind.name} does not take protobuf type {one.type}")
        if kind.name == "STRUCT":
            _check_fields(one.message_type, kind.fields)


def read_row(message: Any, columns: Mapping[str, Type], key: tuple[str, ...]) -> dict[str, Any]:
    """A row's values as Arrow hands them to Python. Raises Refused for a value the column cannot hold."""
    row = {name: _read_field(message, name, kind) for name, kind in columns.items()}
    for name in key:
        if row[name] is None:
            raise Refused(f"primary key column {name} is NULL")
    return row


def read_change(message: Any) -> tuple[str, tuple[int, ...]]:
    """The change type and the sequence number as its sections."""
    change = getattr(message, CHANGE_TYPE)
    if change not in ("UPSERT", "DELETE"):
        raise Refused("The given value is not a valid CHANGE_TYPE")
    sequence = getattr(message, CHANGE_SEQUENCE_NUMBER)
    if not _SECTIONS.fullmatch(sequence):
        raise Refused("The given value is not a valid CHANGE_SEQUENCE_NUMBER")
    return change, tuple(int(section, 16) for section in sequence.split("/"))


def _read_field(message: Any, name: str, kind: Type) -> Any:
    if name not in message.DESCRIPTOR.fields_by_name:
        return [] if kind.repeated else None
    value = getattr(message, name)
    if kind.repeated:
        return [_read_value(one, kind, name) for one in value]
    return _read_value(value, kind, name) if message.HasField(name) else None


def _read_value(value: Any, kind: Type, name: str) -> Any:
    match kind.name:
        case "STRUCT":
            return {one: _read_field(value, one, inner) for one, inner in kind.fields.items()}
        case "BOOL":
            return bool(value)
        case "DATE":
            return _date(value, name)
        case "TIMESTAMP":
            return _moment(value, name).replace(tzinfo=datetime.UTC)
        case "DATETIME":
            return datetime.datetime.combine(_civil_date(value >> 37, name), _civil_time(value & (1 << 37) - 1, name))
        case "TIME":
            return _civil_time(value, name)
        case "NUMERIC":
            return _decimal(value, 9, 16, 38, name)
        case "BIGNUMERIC":
            return _decimal(value, 38, 32, 77, name)
        case "INTERVAL":
            return _interval(value, name)
    return value


def _out_of_range(name: str) -> Refused:
    return Refused(f"column {name}: the value is out of range")


def _date(days: int, name: str) -> datetime.date:
    if not -719_162 <= days <= 2_932_896:
        raise _out_of_range(name)
    return _EPOCH.date() + datetime.timedelta(days=days)


def _moment(microseconds: int, name: str) -> datetime.datetime:
    _date(microseconds // 86_400_000_000, name)
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def _civil_date(packed: int, name: str) -> datetime.date:
    try:
        return datetime.date(packed >> 9, packed >> 5 & 15, packed & 31)
    except (ValueError, OverflowError):
        raise _out_of_range(name) from None


def _civil_time(packed: int, name: str) -> datetime.time:
    try:
        return datetime.time(packed >> 32, packed >> 26 & 63, packed >> 20 & 63, packed & 0xFFFFF)
    except (ValueError, OverflowError):
        raise _out_of_range(name) from None


def _decimal(data: bytes, scale: int, most_bytes: int, digits: int, name: str) -> Decimal:
    unscaled = int.from_bytes(data, "little", signed=True)
    if not 1 <= len(data) <= most_bytes or abs(unscaled) >= 10**digits:
        raise _out_of_range(name)
    return Decimal((unscaled < 0, tuple(map(int, str(abs(unscaled)))), -scale))


def _interval(text: str, name: str) -> Any:
    match = _INTERVAL.fullmatch(text)
    if match is None:
        raise Refused(f"column {name}: not an INTERVAL literal")
    months = (int(match[2]) * 12 + int(match[3])) * (-1 if match[1] else 1)
    days = int(match[4])
    seconds = (int(match[6]) * 60 + int(match[7])) * 60 + int(match[8])
    microseconds = seconds * 1_000_000 + int((match[9] or "").ljust(6, "0"))
    if abs(months) > 120_000 or abs(days) > 3_660_000 or seconds > 87_840_000 * 3600:
        raise _out_of_range(name)
    build: Any = MonthDayNano
    return build((months, days, microseconds * (-1000 if match[5] else 1000)))
