"""interval in ISO 8601 style (`IntervalStyle = iso_8601`): `P1Y-2M3DT4H-5M6.789S`, each part with its own sign.

Of PostgreSQL's four styles it is the one in which every number is followed by one letter that says what it is.
https://www.postgresql.org/docs/current/datatype-datetime.html#DATATYPE-INTERVAL-OUTPUT
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.type_options import OutOfRange
from etl_core.values.ranges import INTERVAL
from etl_core.values.refusal import OPTION, out_of_range, unreadable
from etl_core.values.text import (
    Array,
    Bytes,
    Mask,
    Positions,
    TextBytes,
    as_string,
    equals,
    fixed_width,
    nulled,
    numbers_of,
    offsets_from_lengths,
    text_bytes,
    validity,
    variable_width,
    view_buffer,
)

_LETTERS = bytes(range(ord("A"), 256))
_FIRST_TOO_LARGE = 10**12
_LAST_MICROSECOND = (2**63 - 1) // 1000
_LONGEST = (2**31 - 1, 2**31 - 1, _LAST_MICROSECOND * 1000)

# How many of its part a unit is worth, before T and after it.
_MONTHS = {"Y": 12, "M": 1}
_DAYS = {"D": 1}
_SECONDS = {"H": 3600, "M": 60, "S": 1}


def load_interval(text: Array, _arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Months, days and nanoseconds. Infinity is out of range, and so are hours of more than 292 years."""
    part = text_bytes(text)
    if (part.data >= ord("a")).any():
        return _load_infinite(text, column, table)
    if len(part.starts) == 0:
        return pa.nulls(len(part), pa.month_day_nano_interval())
    try:
        months, days, microseconds = _parse(part)
    except (pa.ArrowInvalid, ValueError):
        raise unreadable(column, table) from None
    beyond = (microseconds > _LAST_MICROSECOND) | (microseconds < -_LAST_MICROSECOND)
    if beyond.any() and column.out_of_range is OutOfRange.REFUSE:
        raise out_of_range(
            "an interval of more than 2,562,047 hours, which 64 bits of nanoseconds cannot hold",
            column,
            table,
            f"write long intervals in days or months, as justify_hours() in the source does, or {OPTION}",
        )
    values = np.zeros(len(part.starts), INTERVAL)
    values["months"], values["days"] = months, days
    values["nanoseconds"] = np.clip(microseconds, -_LAST_MICROSECOND, _LAST_MICROSECOND) * 1000
    valid = part.valid
    if beyond.any() and column.out_of_range is OutOfRange.NULL:
        valid = part.spread(~beyond) if valid is None else valid & part.spread(~beyond)
    return fixed_width(pa.month_day_nano_interval(), part.spread(values), valid)


def _load_infinite(text: Array, column: Column, table: TableName) -> Array:
    """A column with infinity, which clamped is the longest interval that its text could give."""
    strings = as_string(text)
    positive, negative = equals(strings, "infinity"), equals(strings, "-infinity")
    infinite = positive | negative
    if not infinite.any():
        raise unreadable(column, table)
    if column.out_of_range is OutOfRange.REFUSE:
        raise out_of_range(
            "infinity, which no interval of months, days and nanoseconds can hold",
            column,
            table,
            f"replace infinite intervals in the source by NULL, or {OPTION}",
        )
    valid = validity(strings)
    given = ~infinite if valid is None else valid & ~infinite
    finite = load_interval(nulled(strings, ~given), pa.month_day_nano_interval(), column, table)
    if column.out_of_range is OutOfRange.NULL:
        return finite
    values = view_buffer(finite.buffers()[1], np.uint8).view(INTERVAL)[finite.offset :][: len(finite)].copy()
    values[positive], values[negative] = _LONGEST, tuple(-part for part in _LONGEST)
    return fixed_width(pa.month_day_nano_interval(), values, valid)


def _parse(part: TextBytes) -> tuple[Positions, Positions, Positions]:
    """Months, days and microseconds of each value that is not NULL. ValueError or ArrowInvalid if it is no interval."""
    letters = np.flatnonzero(part.data >= ord("A"))
    letter = part.data[letters]
    begins, is_t = letter == ord("P"), letter == ord("T")
    if not np.array_equal(letters[begins], part.starts) or letters[-1] != len(part.data) - 1:
        raise ValueError("not ISO 8601")
    digits = np.diff(letters, prepend=-1) - 1
    is_unit = ~(begins | is_t)
    if digits[~is_unit].any():
        raise ValueError("a number without a unit")
    row = np.cumsum(begins) - 1
    times = np.cumsum(is_t)
    after_t = (times > times[begins][row])[is_unit]
    digits_only = np.frombuffer(part.data.tobytes().translate(None, _LETTERS), np.uint8)
    millionths = _read_millionths(digits_only, offsets_from_lengths(digits[is_unit]))
    row, letter = row[is_unit], letter[is_unit]

    def total(units: dict[str, int], among: Mask) -> Positions:
        sums = np.zeros(len(part.starts), np.int64)
        for unit, worth in units.items():
            chosen = among & (letter == ord(unit))
            sums[row[chosen]] += millionths[chosen] * worth
        return sums

    return total(_MONTHS, ~after_t) // 1_000_000, total(_DAYS, ~after_t) // 1_000_000, total(_SECONDS, after_t)


def _read_millionths(digits: Bytes, offsets: Positions) -> Positions:
    """Numbers of up to six decimals as 64-bit integers of millionths."""
    numbers = variable_width(pa.string(), digits, offsets, None)
    if not (digits == ord(".")).any():
        whole = numbers_of(numbers.cast(pa.int64()), np.int64)
        if ((whole >= _FIRST_TOO_LARGE) | (whole <= -_FIRST_TOO_LARGE)).any():
            raise ValueError("a number too large for an interval")
        return whole * 1_000_000
    # The low half of a small decimal128.
    low = 0 if sys.byteorder == "little" else 1
    return view_buffer(numbers.cast(pa.decimal128(18, 6)).buffers()[1], np.int64)[low::2][: len(numbers)]
