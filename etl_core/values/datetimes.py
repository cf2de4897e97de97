"""date, time, timestamp and timestamptz in ISO style, UTC.

Arrow reads the years 0001–9999; what it refuses goes through a slower pass, still in columns: infinity, BC and
years of five and more digits. Infinity becomes the largest integer of the type and -infinity its negation,
which DuckDB (1.5 and 2.0, through Arrow, both ways) reads as `infinity` and `-infinity`.

https://www.postgresql.org/docs/current/datatype-datetime.html
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.type_options import OutOfRange
from etl_core.values.refusal import OPTION, out_of_range, unreadable
from etl_core.values.text import (
    Array,
    Mask,
    Positions,
    as_string,
    boolean,
    equals,
    fixed_width,
    nulled,
    numbers_of,
    text_bytes,
    view_buffer,
)

INFINITE_DAYS = 2**31 - 1
INFINITE_MICROSECONDS = 2**63 - 1

_DAY = 86_400_000_000
_LAST_DAY, _LAST_TIME = divmod(INFINITE_MICROSECONDS, _DAY)

_DATE = r"^(?P<year>\d+)-(?P<month>\d\d)-(?P<day>\d\d)"
_CLOCK = r" (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?"
_PATTERNS = {
    pa.date32(): _DATE + r"(?P<bc> BC)?$",
    pa.timestamp("us"): _DATE + _CLOCK + r"(?P<bc> BC)?$",
    pa.timestamp("us", tz="UTC"): _DATE + _CLOCK + r"\+00(?P<bc> BC)?$",
}


def load_datetime(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """date (days), timestamp and timestamptz (microseconds) since 1970-01-01.

    A timestamp of January 294247 and later is out of range: 64 bits of microseconds end there.
    """
    strings = as_string(text)
    try:
        return strings.cast(arrow)
    except pa.ArrowInvalid:
        pass
    part = text_bytes(strings)
    if (part.ends - part.starts < len("infinity")).any():
        raise unreadable(column, table)
    # Not so: infinity, a fifth digit of the year, BC at the end.
    usual = (part.data[part.starts + 4] == ord("-")) & (part.data[part.ends - 1] <= ord("9"))
    unusual = part.spread(~usual)
    try:
        read = nulled(strings, ~part.spread(usual)).cast(arrow)
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    width = np.int32 if pa.types.is_date(arrow) else np.int64
    integers = view_buffer(read.buffers()[1], width)[: len(part)].copy()
    integers[unusual], beyond = _load_unusual(strings.filter(boolean(unusual)), arrow, column, table)
    if beyond.any() and column.out_of_range is OutOfRange.NULL:
        valid = np.ones(len(part), np.bool_) if part.valid is None else part.valid.copy()
        valid[np.flatnonzero(unusual)[beyond]] = False
        return fixed_width(arrow, integers, valid)
    return fixed_width(arrow, integers, part.valid)


def _load_unusual(strings: Array, target: pa.DataType, column: Column, table: TableName) -> tuple[Positions, Mask]:
    """The integers, and which of them are the last ones of the type because the values are beyond it."""
    infinite = INFINITE_DAYS if pa.types.is_date(target) else INFINITE_MICROSECONDS
    positive, negative = equals(strings, "infinity"), equals(strings, "-infinity")
    integers = np.where(positive, infinite, -infinite)
    beyond = np.zeros(len(integers), np.bool_)
    finite = ~(positive | negative)
    fields = pc.extract_regex(strings.filter(boolean(finite)), _PATTERNS[target])
    if fields.null_count:
        raise unreadable(column, table)
    year = _integer(fields, "year")
    year = np.where(equals(pc.struct_field(fields, "bc"), " BC"), 1 - year, year)
    days = _days_from_civil(year, _integer(fields, "month"), _integer(fields, "day"))
    if pa.types.is_date(target):
        integers[finite] = days
        return integers, beyond
    seconds = (_integer(fields, "hour") * 60 + _integer(fields, "minute")) * 60 + _integer(fields, "second")
    fraction = numbers_of(pc.ascii_rpad(pc.struct_field(fields, "fraction"), 6, "0").cast(pa.int64()), np.int64)
    time = seconds * 1_000_000 + fraction
    # The last microsecond is beyond, too: it would read as infinity.
    too_late = (days > _LAST_DAY) | ((days == _LAST_DAY) & (time >= _LAST_TIME))
    if too_late.any() and column.out_of_range is OutOfRange.REFUSE:
        raise out_of_range(
            "a time after the year 294246, which 64 bits of microseconds since 1970 cannot hold",
            column,
            table,
            f"correct the value in the source, use 'infinity' for a time without end, or {OPTION}",
        )
    beyond[finite] = too_late
    integers[finite] = np.where(too_late, INFINITE_MICROSECONDS - 1, np.where(too_late, 0, days) * _DAY + time)
    return integers, beyond


def _days_from_civil(year: Positions, month: Positions, day: Positions) -> Positions:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC.

    http://howardhinnant.github.io/date_algorithms.html#days_from_civil, whose year begins in March.
    """
    year = year - (month <= 2).astype(np.int64)
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    days: Positions = era * 146_097 + day_of_era - 719_468
    return days


def load_time(text: Array, _arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Microseconds since midnight, `24:00:00` included (DuckDB holds it; Arrow's `validate(full=True)` objects to it).

    Arrow has no cast from text to time.
    """
    part = text_bytes(text)
    starts, lengths = part.starts, part.ends - part.starts
    if len(starts) == 0:
        return pa.nulls(len(part), pa.time64("us"))
    if lengths.min() < 8 or lengths.max() > 15:
        raise unreadable(column, table)
    readable = (part.data[starts + 2] == ord(":")) & (part.data[starts + 5] == ord(":"))
    time = np.zeros(len(starts), np.int64)
    for place, unit in ((0, 36_000), (1, 3_600), (3, 600), (4, 60), (6, 10), (7, 1)):
        digit = part.data[starts + place] - np.uint8(ord("0"))
        readable &= digit <= 9
        time += digit * np.int64(unit * 1_000_000)
    for place in range(9, int(lengths.max())):
        present = lengths > place
        digit = part.data[starts[present] + place] - np.uint8(ord("0"))
        readable[present] &= digit <= 9
        time[present] += digit * np.int64(10 ** (14 - place))
    fractional = lengths > 8
    readable[fractional] &= part.data[starts[fractional] + 8] == ord(".")
    if not readable.all() or time.max() > _DAY:
        raise unreadable(column, table)
    return fixed_width(pa.time64("us"), part.spread(time), part.valid)


def _integer(fields: Array, name: str) -> Positions:
    return numbers_of(pc.struct_field(fields, name).cast(pa.int64()), np.int64)
