"""How a PostgreSQL column is stored in BigQuery, and how its Arrow values get in and out unchanged.

A value comes back as it went in, or it is refused on its way in with an error that names the column. Nothing is
rounded, clamped or reformatted here; the settings of types may have done so before. The ranges are Google's:
https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types

| PostgreSQL | BigQuery | what is refused |
| --- | --- | --- |
| bool | BOOL | |
| int2, int4, int8, oid, xid, cid | INT64 | |
| xid8 | NUMERIC | |
| float4, float8 | FLOAT64; float4 is widened, which is exact both ways; NaN and infinities are values of it | |
| numeric(p,s) of up to 29 digits before the point and 9 after it | NUMERIC | |
| any other numeric(p,s) of up to 38 digits | BIGNUMERIC | |
| numeric that is text (`types.numeric`) | STRING: the text, with NaN, Infinity and trailing zeros | |
| text, varchar, bpchar, "char", name, enums, uuid | STRING | |
| json, jsonb | STRING (below) | |
| money | NUMERIC | |
| bytea, PostGIS's types as EWKB, and the raw text of unknown types | BYTES | |
| date | DATE | infinity, and years outside 1 to 9999 |
| time | TIME | 24:00:00 |
| timestamp | DATETIME | infinity, and years outside 1 to 9999 |
| timestamptz | TIMESTAMP | infinity, and years outside 1 to 9999 in UTC |
| interval | INTERVAL | more than 10,000 years of months, or 3,660,000 days |
| an array of any of these | STRUCT<elements ARRAY<STRUCT<element …>>> (below) | as its elements |
| int2vector, oidvector, vector, halfvec | as an array of their numbers | |
| hstore | as an array of STRUCT<key STRING, value STRING> | |
| a composite, point, line, lseg, box, circle, path | STRUCT of its attributes | as its attributes |
| polygon | as an array of point | |

**json and jsonb are STRING.** BigQuery's JSON keeps one of two equal keys, no white space, and numbers only as
64-bit integers or doubles: PostgreSQL's json is the text itself, and a number of jsonb is a numeric (`1.10`, 400
digits). None of that could be compared with the source afterwards. BigQuery's JSON functions read a STRING
(`JSON_VALUE(column, '$.a')`), and `PARSE_JSON(column, wide_number_mode => 'round')` makes it JSON where a person
accepts the rounding.

**An array is a STRUCT around an ARRAY of STRUCTs.** A BigQuery ARRAY cannot tell NULL from empty (a NULL one is stored
empty), and a table's ARRAY may not hold NULL. A STRUCT may be NULL and so may its field: NULL, `{}` and `{NULL}` stay
three values, typed, with BigQuery's own functions over them:
`SELECT e.element FROM t, UNNEST(t.tags.elements) AS e`. ARRAY<T> would read nicer and change values; JSON text would be
exact and lose the type.

Everything here works on Arrow's buffers: no loop over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.destination.bigquery.names import field_names, quoted
from etl_core.destination.bigquery.ranges import CALENDAR
from etl_core.errors import DestinationError
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import Column
from etl_core.values.arrow import arrow_type
from etl_core.values.ranges import DAY, INTERVAL
from etl_core.values.refusal import OPTION, out_of_range
from etl_core.values.text import Array, offsets_from_lengths, validity, view_buffer

ELEMENTS, ELEMENT = "elements", "element"

FIRST_DAY, LAST_DAY = CALENDAR.first_day, CALENDAR.last_day
_FIRST_MICROSECOND, _LAST_MICROSECOND = FIRST_DAY * DAY, (LAST_DAY + 1) * DAY - 1

# Of NUMERIC: https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types#decimal_types
_NUMERIC_SCALE, _NUMERIC_INTEGER_DIGITS = 9, 29

# https://cloud.google.com/bigquery/docs/information-schema-table-constraints#limitations
_KEY_TYPES = frozenset({"BIGNUMERIC", "BOOL", "DATE", "DATETIME", "INT64", "NUMERIC", "STRING", "TIMESTAMP"})

_TYPES: dict[pa.DataType, tuple[str, pa.DataType]] = {
    pa.bool_(): ("BOOL", pa.bool_()),
    pa.int16(): ("INT64", pa.int64()),
    pa.int32(): ("INT64", pa.int64()),
    pa.int64(): ("INT64", pa.int64()),
    pa.uint64(): ("NUMERIC", pa.decimal128(20, 0)),
    pa.float32(): ("FLOAT64", pa.float64()),
    pa.float64(): ("FLOAT64", pa.float64()),
    pa.string(): ("STRING", pa.string()),
    pa.binary(): ("BYTES", pa.binary()),
    pa.date32(): ("DATE", pa.date32()),
    pa.time64("us"): ("TIME", pa.time64("us")),
    pa.timestamp("us"): ("DATETIME", pa.timestamp("us")),
    pa.timestamp("us", tz="UTC"): ("TIMESTAMP", pa.timestamp("us", tz="UTC")),
    pa.month_day_nano_interval(): ("INTERVAL", pa.month_day_nano_interval()),
}

WIDEST: dict[str, pa.DataType] = {
    **dict(_TYPES.values()),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
}
"""The Arrow type that holds any value of a BigQuery type, by its name in SQL."""


@dataclass(frozen=True, slots=True)
class BigQueryType:
    """A column's type in BigQuery: as DDL says it, and as Arrow carries its values to the Storage Write API.

    https://cloud.google.com/bigquery/docs/supported-data-types#supported_apache_arrow_data_types
    `element` is the type of an array's elements, None for what is no array; `fields` are those of another STRUCT.
    """

    sql: str
    arrow: pa.DataType
    element: BigQueryType | None = None
    fields: tuple[tuple[str, BigQueryType], ...] = ()

    @property
    def is_nested(self) -> bool:
        return self.element is not None or bool(self.fields)

    @property
    def may_be_key(self) -> bool:
        """Whether BigQuery takes a column of this type into a primary key."""
        return self.sql in _KEY_TYPES


def bigquery_field(column: Column) -> BigQueryType:
    """The BigQuery type of a column."""
    return _bigquery_type(arrow_type(column))


def _plain(arrow: pa.DataType) -> pa.DataType:
    """The list that a map or a list of a fixed length is stored as; any other type itself."""
    if isinstance(arrow, pa.MapType):
        return pa.list_(pa.struct({"key": arrow.key_type, "value": arrow.item_type}))
    return pa.list_(arrow.value_type) if isinstance(arrow, pa.FixedSizeListType) else arrow


def _bigquery_type(arrow: pa.DataType) -> BigQueryType:
    arrow = _plain(arrow)
    if isinstance(arrow, pa.StructType):
        names = field_names([field.name for field in arrow])
        fields = tuple((names[field.name], _bigquery_type(field.type)) for field in arrow)
        listed = ", ".join(f"{quoted(name)} {kind.sql}" for name, kind in fields)
        stored = pa.struct([pa.field(name, kind.arrow) for name, kind in fields])
        return BigQueryType(f"STRUCT<{listed}>", stored, fields=fields)
    if isinstance(arrow, pa.ListType):
        element = _bigquery_type(arrow.value_type)
        inner = pa.struct([pa.field(ELEMENT, element.arrow)])
        outer = pa.struct([pa.field(ELEMENTS, pa.list_(pa.field(ELEMENT, inner)))])
        return BigQueryType(f"STRUCT<{ELEMENTS} ARRAY<STRUCT<{ELEMENT} {element.sql}>>>", outer, element)
    if isinstance(arrow, pa.Decimal128Type):
        precision, scale = arrow.precision, arrow.scale
        if scale <= _NUMERIC_SCALE and precision - scale <= _NUMERIC_INTEGER_DIGITS:
            return BigQueryType("NUMERIC", arrow)
        return BigQueryType("BIGNUMERIC", pa.decimal256(precision, scale))
    return BigQueryType(*_TYPES[arrow])


def arrow_schema_for(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of what `to_bigquery` returns: nullable fields, in order."""
    return pa.schema([pa.field(column.name, bigquery_field(column).arrow) for column in columns])


def to_bigquery(rows: pa.Table, columns: Sequence[Column], table: TableName) -> pa.Table:
    """The columns `columns` of `rows`, in that order, in `arrow_schema_for(columns)`.

    Raises ValueOutOfRange, naming `table` and column, for a value that the BigQuery type cannot hold.
    """
    schema = arrow_schema_for(columns)
    converted = [
        pa.chunked_array(
            [_to_bigquery(chunk, column, table) for chunk in rows.column(column.name).chunks], type=field.type
        )
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(converted, schema=schema)


def from_bigquery(batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.RecordBatch:
    """Rows as the Storage Read API sends them → rows in the Arrow types of `columns`, those of `batch` in order.

    Decimals may come in any precision and scale. Raises DestinationError if a value is none of the column's type:
    somebody else wrote it.
    """
    converted = [_from_bigquery(values, column) for values, column in zip(batch.columns, columns, strict=True)]
    schema = pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])
    return pa.RecordBatch.from_arrays(converted, schema=schema)


def _to_bigquery(values: Array, column: Column, table: TableName) -> Array:
    values = _to_plain(values)
    if isinstance(values, pa.ListArray):
        return _wrap(values, column, table)
    if isinstance(values, pa.StructArray):
        stored = [_to_bigquery(child, column, table) for child in values.flatten()]
        struct = cast("pa.StructType", _bigquery_type(values.type).arrow)
        return pa.StructArray.from_arrays(stored, fields=list(struct), mask=values.is_null())
    _check_range(values, column, table)
    target = _bigquery_type(values.type).arrow
    return values if values.type == target else values.cast(target)


def _from_bigquery(values: Array, column: Column) -> Array:
    target = arrow_type(column)
    try:
        return _read(values, target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise DestinationError(
            f"column {column.name} holds a value in BigQuery that is not of type {format_type(column)}",
            hint="it is of an older version or another program; copy the table again: etl resync TABLE",
        ) from None


def _read(values: Array, target: pa.DataType) -> Array:
    plain = _plain(target)
    if isinstance(plain, pa.ListType):
        return _from_plain(_unwrap(values, plain), target)
    if isinstance(plain, pa.StructType):
        if not isinstance(values, pa.StructArray) or values.type.num_fields != plain.num_fields:
            raise pa.ArrowTypeError("not a STRUCT of these fields")
        children = [_read(child, field.type) for child, field in zip(values.flatten(), plain, strict=True)]
        return pa.StructArray.from_arrays(children, fields=list(plain), mask=values.is_null())
    return values if values.type == target else values.cast(target)


def _to_plain(values: Array) -> Array:
    """See `_plain`."""
    plain = _plain(values.type)
    if plain == values.type:
        return values
    if not isinstance(values, pa.MapArray):
        return values.cast(plain)
    pairs = pa.StructArray.from_arrays([values.keys, values.items], fields=list(plain.field(0).type))
    return pa.Array.from_buffers(plain, len(values), values.buffers()[:2], offset=values.offset, children=[pairs])


def _from_plain(lists: Array, target: pa.DataType) -> Array:
    if not isinstance(target, pa.MapType):
        return lists if lists.type == target else lists.cast(target)
    entries = target.field(0).type
    values: Any = cast("pa.ListArray[Any]", lists).values
    pairs = pa.StructArray.from_arrays(values.flatten(), fields=list(entries))
    return pa.Array.from_buffers(target, len(lists), lists.buffers()[:2], offset=lists.offset, children=[pairs])


def _wrap(lists: pa.ListArray[Any], column: Column, table: TableName) -> Array:
    """Lists → structs of lists of structs. `flatten` leaves out what a NULL list may hide."""
    elements = _to_bigquery(lists.flatten(), column, table)
    kind = _bigquery_type(lists.type).arrow
    inner = pa.StructArray.from_arrays([elements], fields=[kind.field(0).type.value_type.field(0)])
    offsets = pa.array(offsets_from_lengths(_lengths(lists)), pa.int32())
    wrapped = pa.ListArray.from_arrays(offsets, inner).cast(kind.field(0).type)
    return pa.StructArray.from_arrays([wrapped], fields=[kind.field(0)], mask=lists.is_null())


def _unwrap(structs: Array, target: pa.ListType[Any]) -> Array:
    if not isinstance(structs, pa.StructArray):
        raise pa.ArrowTypeError("not a STRUCT")
    (lists,) = structs.flatten()
    if not isinstance(lists, pa.ListArray):
        raise pa.ArrowTypeError("not an ARRAY")
    inner: Any = lists.flatten()
    (elements,) = inner.flatten()
    offsets = pa.array(offsets_from_lengths(_lengths(lists)), pa.int32())
    values = _read(elements, target.value_type)
    # NULL is what the struct says: a NULL list inside a struct is an empty one.
    unwrapped: Array = pa.ListArray.from_arrays(offsets, values, mask=structs.is_null()).cast(target)
    return unwrapped


def _lengths(lists: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    lengths: Any = pc.list_value_length(lists)
    return np.asarray(pc.fill_null(lengths, 0)).astype(np.int64)


def _check_range(values: Array, column: Column, table: TableName) -> None:
    kind = values.type
    if kind == pa.date32():
        outside, what = _outside(values.cast(pa.int32()), FIRST_DAY, LAST_DAY), "a date"
    elif pa.types.is_timestamp(kind):
        outside, what = _outside(values.cast(pa.int64()), _FIRST_MICROSECOND, _LAST_MICROSECOND), "a time"
    elif pa.types.is_time64(kind):
        if _outside(values.cast(pa.int64()), 0, DAY - 1):
            raise out_of_range(
                "the time 24:00:00, which BigQuery's TIME cannot hold",
                column,
                table,
                f"{OPTION}, or store 00:00:00 in the source",
            )
        return
    elif pa.types.is_interval(kind):
        _check_intervals(values, column, table)
        return
    else:
        return
    if outside:
        raise out_of_range(
            f"{what} outside the years 1 to 9999 or infinity, which BigQuery's {_TYPES[kind][0]} cannot hold",
            column,
            table,
            f"{OPTION}, or correct such values in the source",
        )


def _outside(numbers: Array, first: int, last: int) -> bool:
    extremes: Any = pc.min_max(numbers)
    lowest, highest = extremes["min"].as_py(), extremes["max"].as_py()
    return lowest is not None and (lowest < first or highest > last)


def _check_intervals(values: Array, column: Column, table: TableName) -> None:
    """Hours need no look: 64 bits of nanoseconds are 2,562,047 hours, BigQuery takes 87,840,000."""
    bytes_ = view_buffer(values.buffers()[1], np.uint8)[values.offset * INTERVAL.itemsize :]
    parts = bytes_[: len(values) * INTERVAL.itemsize].view(INTERVAL)
    valid = validity(values)
    if valid is not None:
        parts = parts[valid]
    months, days = parts["months"].astype(np.int64), parts["days"].astype(np.int64)
    if (np.abs(months) > CALENDAR.months).any() or (np.abs(days) > CALENDAR.days).any():
        raise out_of_range(
            "an interval of more than 10,000 years, which BigQuery's INTERVAL cannot hold",
            column,
            table,
            f"{OPTION}, or shorten such intervals in the source",
        )
    if (parts["nanoseconds"] % 1000).any():
        raise out_of_range(
            "an interval with nanoseconds, which BigQuery's INTERVAL cannot hold",
            column,
            table,
            "report this: PostgreSQL's intervals end at microseconds",
        )
