"""How a PostgreSQL column is stored in Snowflake, and how its Arrow values get in and out unchanged.

| PostgreSQL | Snowflake | what is refused |
| --- | --- | --- |
| bool | BOOLEAN | |
| int2, int4, int8, oid, xid8 | NUMBER(5,0), NUMBER(10,0), NUMBER(19,0), NUMBER(20,0) | |
| float4, float8 | FLOAT | |
| numeric(p,s) of up to 38 digits, money | NUMBER(p,s) | |
| numeric that is text (`types.numeric`) | VARCHAR: the text | |
| text, enums, uuid, json, jsonb | VARCHAR: the text | more than Snowflake's 16 MB |
| bytea, PostGIS's types as EWKB, the raw text of unknown types | BINARY | more than Snowflake's 8 MB |
| date | DATE | infinity, and years outside 1 to 9999 |
| time | TIME(6) | 24:00:00 |
| timestamp | TIMESTAMP_NTZ(6) | infinity, and years outside 1 to 9999 |
| timestamptz | TIMESTAMP_TZ(6), in UTC | the same |
| interval, arrays, composites, ranges, hstore, geometric types, vectors | VARCHAR: PostgreSQL's text | |

**json and jsonb are VARCHAR.** A VARIANT has no white space, one of two equal keys and no number of more than 38
digits; `PARSE_JSON(column)` makes it one where that is accepted. **Arrays are VARCHAR** for a like reason: elements of
an ARRAY are VARIANTs.

Numbers, booleans and floats are handed over in Parquet's own types, everything else as text: Snowflake's reading of
Parquet's times depends on settings of the file format.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, LiteralString

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from etl_core.destination.snowflake.value_range import CALENDAR
from etl_core.destination.sql.dialect import Query, Values
from etl_core.destination.sql.texts import as_hex, as_texts
from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, numeric_modifier, under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values import load
from etl_core.values.arrow import arrow_type
from etl_core.values.money import money_type
from etl_core.values.ranges import DAY
from etl_core.values.refusal import OPTION, out_of_range
from etl_core.values.text import Array

_TEXT = "VARCHAR"
_WIDEST_SCALE = 37
_TYPES: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int16(): "NUMBER(5,0)",
    pa.int32(): "NUMBER(10,0)",
    pa.int64(): "NUMBER(19,0)",
    pa.uint64(): "NUMBER(20,0)",
    pa.float32(): "FLOAT",
    pa.float64(): "FLOAT",
    pa.string(): _TEXT,
    pa.binary(): "BINARY",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME(6)",
    pa.timestamp("us"): "TIMESTAMP_NTZ(6)",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP_TZ(6)",
}
_SOME: tuple[tuple[str, LiteralString], ...] = (
    ("BOOLEAN", "FALSE"),
    ("NUMBER", "0"),
    ("FLOAT", "0"),
    ("VARCHAR", "''"),
    ("BINARY", "TO_BINARY('', 'HEX')"),
    ("DATE", "CAST('2000-01-01' AS DATE)"),
    ("TIMESTAMP_NTZ", "CAST('2000-01-01' AS TIMESTAMP_NTZ(6))"),
    ("TIMESTAMP_TZ", "CAST('2000-01-01 00:00:00 +00:00' AS TIMESTAMP_TZ(6))"),
    ("TIME", "CAST('00:00:00' AS TIME(6))"),
)
"""By how a type begins."""
_BOUNDS: dict[pa.DataType, int] = {pa.int16(): 2**15, pa.int32(): 2**31, pa.int64(): 2**63}
_NATIVE = re.compile(r"BOOLEAN|FLOAT|NUMBER\(\d+,\d+\)")
_NUMBER = re.compile(r"NUMBER\((\d+),(\d+)\)")


def snowflake_type(column: Column) -> str:
    """The type of a column, as DDL spells it."""
    arrow = arrow_type(column)
    if isinstance(arrow, pa.Decimal128Type):
        is_number = 0 <= arrow.scale <= min(arrow.precision, _WIDEST_SCALE)
        return f"NUMBER({arrow.precision},{arrow.scale})" if is_number else _TEXT
    return _TYPES.get(arrow, _TEXT)


def some_value(column: Column) -> LiteralString:
    """A value of the column's type, as SQL spells it."""
    stored = snowflake_type(column)
    return next(value for start, value in _SOME if stored.startswith(start))


def _described(name: str) -> str:
    """As `SnowflakeSession.columns` spells it: Snowflake does not tell the digits of seconds."""
    return name.removesuffix("(6)")


def type_change(stored: str, column: Column) -> TypeChange:
    """See Dialect."""
    wanted = _described(snowflake_type(column))
    if stored == wanted:
        return TypeChange.NONE
    before, after = _NUMBER.fullmatch(stored), _NUMBER.fullmatch(wanted)
    if before and after and before[2] == after[2] and int(before[1]) <= int(after[1]):
        return TypeChange.GROWS
    return TypeChange.OTHER if "BINARY" in (stored, wanted) else TypeChange.COMPARABLE


def carried(value: Query, stored: str, column: Column) -> Query | None:
    """A value stored as `stored` in the column's type, NULL where it is not the same there; None if not known."""
    wanted = _described(snowflake_type(column))
    before, after = _NUMBER.fullmatch(stored), _NUMBER.fullmatch(wanted)
    if stored == wanted:
        return value
    if wanted == _TEXT and before:
        return sql.SQL("CAST({} AS VARCHAR)").format(value)
    if after is None or not (before or stored == _TEXT):
        return None
    scale, digits = int(after[2]), int(after[1]) - int(after[2])
    if stored == _TEXT:  # what is printed so again
        form = "^(0|-?[1-9][0-9]*)$" if scale == 0 else "^-?(0|[1-9][0-9]*)([.][0-9]+)?$"
        number = sql.SQL("TRY_CAST({} AS {})").format(value, sql.SQL(f"NUMBER(38,{scale})"))
        value = sql.SQL("CASE WHEN REGEXP_LIKE({}, {}) THEN {} END").format(value, sql.Literal(form), number)
    bound = _BOUNDS.get(arrow_type(column), 10 ** min(digits, 37))
    return sql.SQL("CASE WHEN {v} = ROUND({v}, {s}) AND {v} >= -{b} AND {v} < {b} THEN CAST({v} AS {t}) END").format(
        v=value, s=sql.SQL(str(scale)), b=sql.SQL(str(bound)), t=sql.SQL(wanted)
    )


def handed_over_as(column: Column) -> tuple[pa.DataType, str]:
    """The Arrow type that a column's values are handed over in, and the type of its column in the staging table."""
    stored = snowflake_type(column)
    if not _NATIVE.fullmatch(stored):
        return pa.string(), _TEXT
    arrow = arrow_type(column)
    if arrow == pa.float32():
        return pa.float64(), stored
    return (pa.decimal128(20, 0) if arrow == pa.uint64() else arrow), stored


def to_snowflake(values: Values, column: Column, table: TableName) -> Values:
    """A column's values as they are handed over. Raises ValueOutOfRange for what Snowflake cannot hold."""
    target: Any = handed_over_as(column)[0]
    if isinstance(values, pa.ChunkedArray):
        chunks = [_to_snowflake(chunk, target, column, table) for chunk in values.chunks]
        handed_over: pa.ChunkedArray[Any] = pa.chunked_array(chunks, target)
        return handed_over
    return _to_snowflake(values, target, column, table)


def _to_snowflake(values: Array, target: pa.DataType, column: Column, table: TableName) -> Array:
    if target != pa.string():
        return values if values.type == target else values.cast(target)
    if pa.types.is_binary(values.type):
        return as_hex(values)
    _check_range(values, column, table)
    return as_texts(values, column, table)


def from_snowflake(values: Array, column: Column, table: TableName) -> Array:
    """What the query of `SnowflakeDialect.cast_out` found, in the column's Arrow type.

    Raises pyarrow's errors for a value of another type, and ValueOutOfRange for text that is no value of it.
    """
    target = arrow_type(column)
    if values.type == target:
        return values
    is_text = pa.types.is_string(values.type) and not _NATIVE.fullmatch(snowflake_type(column))
    return load(values, _read_column(column), table).cast(target) if is_text else values.cast(target)


def _read_column(column: Column) -> Column:
    """The column by whose type its text is read back: that of money is a number's."""
    pg_type, modifier = _read(column.type, column.type_modifier)
    return replace(column, type=pg_type, type_modifier=modifier)


def _read(pg_type: PgType, modifier: int) -> tuple[PgType, int]:
    if pg_type.kind is TypeKind.DOMAIN:
        return _read(*under_domains(pg_type, modifier))
    if pg_type.oid == pg_types.MONEY:
        digits, numeric = money_type(max(pg_type.form, 0)), builtin(pg_types.NUMERIC)
        if numeric is None or not isinstance(digits, pa.Decimal128Type):
            return pg_type, modifier
        return numeric, numeric_modifier(digits.precision, digits.scale)
    element = pg_type.element
    if element is not None:
        element, modifier = _read(element, modifier)
    return replace(pg_type, element=element, attributes=tuple(map(_read_column, pg_type.attributes))), modifier


def _check_range(values: Array, column: Column, table: TableName) -> None:
    kind = values.type
    if pa.types.is_date32(kind):
        outside = _is_outside(values.cast(pa.int32()), CALENDAR.first_day, CALENDAR.last_day)
    elif pa.types.is_timestamp(kind):
        outside = _is_outside(values.cast(pa.int64()), CALENDAR.first_day * DAY, (CALENDAR.last_day + 1) * DAY - 1)
    elif pa.types.is_time64(kind) and _is_outside(values.cast(pa.int64()), 0, DAY - 1):
        what = "the time 24:00:00, which Snowflake's TIME cannot hold"
        raise out_of_range(what, column, table, f"{OPTION}, or store 00:00:00 in the source")
    else:
        return
    if outside:
        what = f"a time outside the years 1 to 9999 or infinity, which Snowflake's {_TYPES[kind]} cannot hold"
        raise out_of_range(what, column, table, f"{OPTION}, or correct such values in the source")


def _is_outside(numbers: Array, first: int, last: int) -> bool:
    extremes: Any = pc.min_max(numbers)
    lowest, highest = extremes["min"].as_py(), extremes["max"].as_py()
    return lowest is not None and (lowest < first or highest > last)
