from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import MonthDayNano

from etl_core.destination.bigquery.types import (
    ELEMENT,
    ELEMENTS,
    arrow_schema_for,
    bigquery_field,
    from_bigquery,
    to_bigquery,
)
from etl_core.errors import DestinationError, ValueOutOfRange
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType
from etl_core.testing.destination_tables import INT4, INT8, array_of, comparable, numeric_modifier, rows, table
from etl_core.testing.destination_values_suite import CASES
from etl_core.values.arrow import arrow_schema, arrow_type

_MAP = "STRUCT<elements ARRAY<STRUCT<element STRUCT<`key` STRING, `value` STRING>>>>"
_PAIR = "STRUCT<`a` INT64, `c_B_c_db8e58f1` NUMERIC, `order` STRUCT<elements ARRAY<STRUCT<element STRING>>>>"  # 'B c'
_FLAGS = "`lower_inc` BOOL, `upper_inc` BOOL, `isempty` BOOL"
_STORED = {
    "bool": "BOOL",
    "int2": "INT64",
    "int4": "INT64",
    "int8": "INT64",
    "float4": "FLOAT64",
    "float8": "FLOAT64",
    "money": "NUMERIC",
    "wide": "BIGNUMERIC",
    "numeric": "STRING",
    "text": "STRING",
    "bytea": "BYTES",
    "uuid": "STRING",
    "domain": "STRING",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "DATETIME",
    "timestamptz": "TIMESTAMP",
    "interval": "INTERVAL",
    "json": "STRING",
    "jsonb": "STRING",
    "mood": "STRING",
    "unknown": "BYTES",
    "unknowns": "STRUCT<elements ARRAY<STRUCT<element BYTES>>>",
    "dollars": "NUMERIC",
    "yen": "STRUCT<elements ARRAY<STRUCT<element NUMERIC>>>",
    "xid8": "NUMERIC",
    "bit": "STRING",
    "timetz": "STRING",
    "vectors_of_ints": "STRUCT<elements ARRAY<STRUCT<element INT64>>>",
    "point": "STRUCT<`x` FLOAT64, `y` FLOAT64>",
    "path": "STRUCT<`closed` BOOL, `points` STRUCT<elements ARRAY<STRUCT<element STRUCT<`x` FLOAT64, `y` FLOAT64>>>>>",
    "polygon": "STRUCT<elements ARRAY<STRUCT<element STRUCT<`x` FLOAT64, `y` FLOAT64>>>>",
    "hstore": _MAP,
    "vector": "STRUCT<elements ARRAY<STRUCT<element FLOAT64>>>",
    "any_vector": "STRUCT<elements ARRAY<STRUCT<element FLOAT64>>>",
    "pair": _PAIR,
    "int4range": f"STRUCT<`lower` INT64, `upper` INT64, {_FLAGS}>",
    "numranges": f"STRUCT<elements ARRAY<STRUCT<element STRUCT<`lower` STRING, `upper` STRING, {_FLAGS}>>>>",
    "grid": "STRUCT<elements ARRAY<STRUCT<element STRUCT<elements ARRAY<STRUCT<element INT64>>>>>>",
    "feeling": "STRING",
    "feelings": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "bits": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "points": "STRUCT<elements ARRAY<STRUCT<element STRUCT<`x` FLOAT64, `y` FLOAT64>>>>",
    "hstores": f"STRUCT<elements ARRAY<STRUCT<element {_MAP}>>>",
    "vectors": "STRUCT<elements ARRAY<STRUCT<element STRUCT<elements ARRAY<STRUCT<element FLOAT64>>>>>>",
    "nest": f"STRUCT<`kind` STRING, `pair` {_PAIR}>",
    "pairs": f"STRUCT<elements ARRAY<STRUCT<element {_PAIR}>>>",
    "ints": "STRUCT<elements ARRAY<STRUCT<element INT64>>>",
    "texts": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "uuids": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "jsons": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "dates": "STRUCT<elements ARRAY<STRUCT<element DATE>>>",
    "moods": "STRUCT<elements ARRAY<STRUCT<element STRING>>>",
    "moneys": "STRUCT<elements ARRAY<STRUCT<element NUMERIC>>>",
}

_DAY = 86_400_000_000
_FIRST, _LAST = -719_162, 2_932_896
# What the suite stores elsewhere and BigQuery cannot hold: the rest of these columns' values.
_HELD: dict[str, list[Any]] = {
    "date": [0, _FIRST, _LAST],
    "time": [0, _DAY - 1],
    "timestamp": [0, -1, 1_700_000_000_123_456, _FIRST * _DAY, (_LAST + 1) * _DAY - 1],
    "timestamptz": [0, -1, _FIRST * _DAY, (_LAST + 1) * _DAY - 1],
    "dates": [[0, None, _LAST], []],
}
_DATE = PgType(pg_types.DATE, "date")
_TIME = PgType(pg_types.TIME, "time")
_TIMESTAMP = PgType(pg_types.TIMESTAMP, "timestamp")
_TIMESTAMPTZ = PgType(pg_types.TIMESTAMPTZ, "timestamptz")
_INTERVAL = PgType(pg_types.INTERVAL, "interval")
_NUMERIC = PgType(pg_types.NUMERIC, "numeric")


def _through(data: pa.Table, columns: tuple[Column, ...]) -> pa.Table:
    sent = to_bigquery(data, columns, table("t").name)
    sent.validate(full=True)
    assert sent.schema.equals(arrow_schema_for(columns))
    return pa.Table.from_batches(
        [from_bigquery(batch, columns) for batch in sent.to_batches()],
        schema=pa.schema([pa.field(c.name, arrow_type(c)) for c in columns]),
    )


def _interval(months: int, days: int, nanoseconds: int) -> Any:
    build: Any = MonthDayNano
    return build((months, days, nanoseconds))


@pytest.mark.parametrize(("column", "values"), CASES, ids=[column.name for column, _ in CASES])
def test_every_type_comes_back_as_it_went_in(column: Column, values: list[Any]) -> None:
    assert bigquery_field(column).sql == _STORED[column.name]
    schema = table("v", Column("id", INT8), column)
    held = _HELD.get(column.name, values)
    data = rows(schema, list(enumerate([*held, None])))
    back = _through(data, schema.columns)
    back.validate(full=True)
    assert back.schema.equals(arrow_schema(schema))
    assert comparable(back) == comparable(data)
    # A slice of a larger array, as batches are cut.
    part = pa.Table.from_batches(data.combine_chunks().slice(1).to_batches())
    assert comparable(_through(part, schema.columns)) == comparable(part)
    assert comparable(_through(data.slice(0, 0), schema.columns)) == []


@pytest.mark.parametrize(
    ("pg_type", "value"),
    [
        (_DATE, _FIRST - 1),
        (_DATE, _LAST + 1),
        (_DATE, 2**31 - 1),
        (_DATE, -(2**31 - 1)),
        (_TIME, _DAY),
        (_TIMESTAMP, _FIRST * _DAY - 1),
        (_TIMESTAMP, (_LAST + 1) * _DAY),
        (_TIMESTAMP, 2**63 - 1),
        (_TIMESTAMPTZ, -(2**63 - 1)),
        (_INTERVAL, _interval(120_001, 0, 0)),
        (_INTERVAL, _interval(-(2**31), 0, 0)),
        (_INTERVAL, _interval(0, -3_660_001, 0)),
        (array_of(1182, _DATE), [None, 2**31 - 1]),
        (array_of(1187, _INTERVAL), [_interval(0, 3_660_001, 0)]),
    ],
)
def test_what_bigquery_cannot_hold_stops_the_table_and_names_the_column(pg_type: PgType, value: Any) -> None:
    schema = table("shop", Column("id", INT8), Column("moment", pg_type))
    with pytest.raises(ValueOutOfRange, match=r"column moment of table public\.shop holds") as raised:
        to_bigquery(rows(schema, [(1, None), (2, value)]), schema.columns, schema.name)
    assert raised.value.table == "public.shop"
    assert raised.value.hint


def test_what_a_null_hides_is_not_looked_at() -> None:
    days = pa.Array.from_buffers(
        pa.date32(), 2, [pa.py_buffer(b"\x01"), pa.array([1, 2**31 - 1], pa.int32()).buffers()[1]]
    )
    schema = table("t", Column("d", _DATE), key=())
    assert _through(pa.table({"d": days}), schema.columns)["d"].to_pylist() == [datetime.date(1970, 1, 2), None]
    # A NULL list that has elements under its mask.
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 3], pa.int32()), pa.array([7, 8, 9], pa.int32()), mask=pa.array([True, False])
    )
    schema = table("t", Column("l", array_of(1007, INT4)), key=())
    assert _through(pa.table({"l": lists}), schema.columns)["l"].to_pylist() == [None, [9]]


def test_null_empty_and_null_element_stay_three_values() -> None:
    schema = table("t", Column("tags", array_of(1007, INT4)), key=())
    sent = to_bigquery(rows(schema, [(None,), ([],), ([None],)]), schema.columns, schema.name)
    assert sent["tags"].to_pylist() == [None, {ELEMENTS: []}, {ELEMENTS: [{ELEMENT: None}]}]


def test_a_repeated_field_that_comes_back_null_inside_a_struct_is_empty() -> None:
    column = Column("tags", array_of(1007, INT4))
    read = pa.array([{ELEMENTS: None}, None, {ELEMENTS: [{ELEMENT: 1}]}], bigquery_field(column).arrow)
    back = from_bigquery(pa.RecordBatch.from_arrays([read], names=["tags"]), [column])
    assert back["tags"].to_pylist() == [[], None, [1]]


@pytest.mark.parametrize(
    ("precision", "scale", "stored", "read"),
    [
        (38, 9, "NUMERIC", pa.decimal128(38, 9)),
        (29, 0, "NUMERIC", pa.decimal128(38, 9)),
        (30, 0, "BIGNUMERIC", pa.decimal256(76, 38)),
        (10, 10, "BIGNUMERIC", pa.decimal256(76, 38)),
        (38, 0, "BIGNUMERIC", pa.decimal256(76, 38)),
        (38, 38, "BIGNUMERIC", pa.decimal256(76, 38)),
    ],
)
def test_decimals_come_back_in_bigquerys_own_precision(precision: int, scale: int, stored: str, read: Any) -> None:
    column = Column("n", _NUMERIC, numeric_modifier(precision, scale))
    assert bigquery_field(column).sql == stored
    largest = Decimal((0, (9,) * precision, -scale))
    schema = table("t", column, key=())
    data = rows(schema, [(largest,), (largest.copy_negate(),), (None,)])
    sent = to_bigquery(data, schema.columns, schema.name)
    as_read = sent.cast(pa.schema([pa.field("n", read)]))
    assert from_bigquery(as_read.combine_chunks().to_batches()[0], schema.columns)["n"].to_pylist() == [
        largest,
        largest.copy_negate(),
        None,
    ]


def test_a_value_written_by_somebody_else_is_an_error_without_the_value() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([70_000])], names=["n"])
    with pytest.raises(DestinationError, match="column n holds") as raised:
        from_bigquery(batch, [Column("n", PgType(pg_types.INT2, "int2"))])
    assert "70000" not in str(raised.value)
    with pytest.raises(DestinationError):
        from_bigquery(batch, [Column("n", array_of(1007, INT4))])


_KEYS = {"BOOL", "INT64", "STRING", "NUMERIC", "BIGNUMERIC", "DATE", "DATETIME", "TIMESTAMP"}


@pytest.mark.parametrize("column", [column for column, _ in CASES], ids=lambda column: column.name)
def test_which_types_bigquery_takes_into_a_key(column: Column) -> None:
    assert bigquery_field(column).may_be_key is (_STORED[column.name] in _KEYS)


_MICROSECONDS = st.integers(_FIRST * _DAY, (_LAST + 1) * _DAY - 1)
_ELEMENTS: dict[str, tuple[PgType, int, Any]] = {
    "int4": (INT4, -1, st.integers(-(2**31), 2**31 - 1)),
    "float4": (PgType(pg_types.FLOAT4, "float4"), -1, st.floats(width=32)),
    "float8": (PgType(pg_types.FLOAT8, "float8"), -1, st.floats()),
    "numeric": (
        _NUMERIC,
        numeric_modifier(38, 20),
        st.decimals(allow_nan=False, allow_infinity=False, places=20, min_value=-(10**17), max_value=10**17),
    ),
    "text": (PgType(pg_types.TEXT, "text"), -1, st.text(st.characters(exclude_categories=["Cs"]))),
    "bytea": (PgType(pg_types.BYTEA, "bytea"), -1, st.binary()),
    "date": (_DATE, -1, st.integers(_FIRST, _LAST)),
    "time": (_TIME, -1, st.integers(0, _DAY - 1)),
    "timestamp": (_TIMESTAMP, -1, _MICROSECONDS),
    "timestamptz": (_TIMESTAMPTZ, -1, _MICROSECONDS),
    "interval": (
        _INTERVAL,
        -1,
        st.builds(
            lambda m, d, us: _interval(m, d, us * 1000),
            st.integers(-120_000, 120_000),
            st.integers(-3_660_000, 3_660_000),
            st.integers(-(2**63) // 1000 + 1, 2**63 // 1000 - 1),
        ),
    ),
}


@pytest.mark.parametrize("name", _ELEMENTS)
@given(data=st.data())
def test_any_value_comes_back(name: str, data: st.DataObject) -> None:
    pg_type, modifier, values = _ELEMENTS[name]
    schema = table("t", Column("one", pg_type, modifier), key=())
    given_rows = rows(schema, data.draw(st.lists(st.tuples(st.none() | values), max_size=8)))
    assert comparable(_through(given_rows, schema.columns)) == comparable(given_rows)


@given(st.lists(st.tuples(st.none() | st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=4)), max_size=8))
def test_any_array_comes_back(lists: list[tuple[list[int | None] | None]]) -> None:
    schema = table("t", Column("many", array_of(1007, INT4)), key=())
    given_rows = rows(schema, lists)
    assert comparable(_through(given_rows, schema.columns)) == comparable(given_rows)
