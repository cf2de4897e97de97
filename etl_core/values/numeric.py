"""numeric, as decimal128 or as the text itself, and float8, which a person may have chosen for a numeric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.errors import COPIED_AGAIN, CopiedAgain, TableError
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import numeric_precision
from etl_core.schema.table import Column
from etl_core.type_options import DECIMAL_DIGITS, OutOfRange
from etl_core.values.digits import Digits, tell_more_digits
from etl_core.values.refusal import OPTION, out_of_range, unreadable
from etl_core.values.text import (
    Array,
    Mask,
    Positions,
    as_string,
    equals,
    fixed_width,
    nulled,
    numbers_of,
    one_text,
    text_bytes,
    validity,
)

_NUMBER = r"^-?\d+(\.\d+)?$"
_LONGEST_WORD = len("-Infinity")
_LARGEST_DOUBLE = np.finfo(np.float64).max


def numeric_type(type_modifier: int) -> pa.DataType:
    """decimal128 of the precision and scale that a column declares, string where that cannot hold its values."""
    declared = numeric_precision(type_modifier)
    if declared is None:
        return pa.string()
    precision, scale = declared
    # A negative scale rounds before the point; one above the precision leaves digits after the point empty.
    precision, scale = max(precision, scale) - min(scale, 0), max(scale, 0)
    return pa.decimal128(precision, scale) if precision <= DECIMAL_DIGITS else pa.string()


def is_declared(type_modifier: int) -> bool:
    """Whether a column declares digits that decimal128 has."""
    return not pa.types.is_string(numeric_type(type_modifier))


def load_numeric(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """decimal128 of the same value, never rounded, or the text itself.

    Raises ValueOutOfRange for NaN and infinity that are refused, and for a value with more digits than `arrow` has:
    CopiedAgain if another decimal128 may hold it and the column's digits are those that a copy found.
    """
    strings = as_string(text)
    if not isinstance(arrow, pa.Decimal128Type):
        return strings
    try:
        return _cast(strings, arrow)
    except pa.ArrowInvalid:
        pass
    hidden = ~_given(strings)
    positive, negative = equals(strings, "Infinity"), equals(strings, "-Infinity")
    beyond = positive | negative | equals(strings, "NaN")
    if beyond.any() and column.out_of_range is OutOfRange.REFUSE:
        raise out_of_range(
            f"NaN or infinity, which no DECIMAL({arrow.precision},{arrow.scale}) can hold",
            column,
            table,
            f"replace it in the source by NULL, or {OPTION}; a numeric without a precision can be text: types.numeric: "
            "varchar",
        )
    numbers = nulled(strings, beyond | hidden)
    try:
        values = _cast(numbers, arrow)
    except pa.ArrowInvalid:
        if not _are_numbers(numbers):
            raise unreadable(column, table) from None
        if column.fraction_digits is not None:
            raise _more_digits(numbers, arrow, column, table) from None
        raise out_of_range(
            f"a number with more digits than DECIMAL({arrow.precision},{arrow.scale}) has, which the settings of its "
            "types say",
            column,
            table,
            f"{_wide_enough(numbers, arrow, column)}set types.numeric: varchar for column {column.name}, which loses "
            "nothing",
        ) from None
    if column.out_of_range is not OutOfRange.CLAMP or not (positive | negative).any():
        return values
    largest = "9" * (arrow.precision - arrow.scale) + "." + "9" * arrow.scale
    either = [one_text(text).cast(arrow) for text in (f"-{largest}", largest)]
    place = np.where(positive | negative, len(values) + positive, np.arange(len(values)))
    clamped: Array = pa.concat_arrays([values, *either]).take(fixed_width(pa.int64(), place.astype(np.int64), None))
    return clamped


def _more_digits(numbers: Array, arrow: pa.Decimal128Type, column: Column, table: TableName) -> TableError:
    wholes, fractions = _digits(_without_last_zeros(numbers))
    whole, fraction, most = (int(digits.max(initial=0)) for digits in (wholes, fractions, wholes + fractions))
    if most > DECIMAL_DIGITS:
        return out_of_range(
            f"a number of {most} digits, and a DECIMAL has {DECIMAL_DIGITS}",
            column,
            table,
            f"set types.numeric: varchar for column {column.name}, which loses nothing, or double, which rounds",
        )
    told = tell_more_digits(table, column.name, Digits(whole, fraction), arrow.precision, arrow.scale)
    return CopiedAgain(told, table=str(table), hint=COPIED_AGAIN)


def load_float8(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """float8. Arrow reads the shortest-exact output of float8 back to the same bits, and rounds a numeric to nearest.

    A numeric beyond ±1.8e308 is out of range.
    """
    strings = as_string(text)
    try:
        values = strings.cast(arrow)
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    numbers = numbers_of(values, np.float64)
    beyond = np.isinf(numbers) & _given(strings)
    if not beyond.any():
        return values
    beyond &= _lengths(strings) > _LONGEST_WORD
    if not beyond.any():
        return values
    if column.out_of_range is OutOfRange.REFUSE:
        raise out_of_range(
            "a number beyond 1.8e308, which DOUBLE cannot hold",
            column,
            table,
            f"set types.numeric: varchar for column {column.name}, or {OPTION}",
        )
    if column.out_of_range is OutOfRange.NULL:
        return fixed_width(arrow, numbers, _given(strings) & ~beyond)
    return fixed_width(arrow, np.where(beyond, np.copysign(_LARGEST_DOUBLE, numbers), numbers), validity(values))


def _wide_enough(numbers: Array, arrow: pa.Decimal128Type, column: Column) -> str:
    """What to set so that these and all that `arrow` holds are held, empty where 38 digits do not suffice."""
    whole, fraction = (int(digits.max(initial=0)) for digits in _digits(_without_last_zeros(numbers)))
    scale = max(fraction, arrow.scale)
    for precision in (max(whole, arrow.precision - arrow.scale) + scale, DECIMAL_DIGITS):
        if whole + scale <= precision <= DECIMAL_DIGITS:
            return f"set types.numeric: decimal({precision},{scale}) for column {column.name}, or more; or "
    return ""


def _cast(strings: Array, arrow: pa.Decimal128Type) -> Array:
    """ArrowInvalid where a value is no number or is not exactly one of `arrow`.

    Arrow (26) keeps the last 128 bits of a number that needs more, as it is written or at the scale of `arrow`, and
    says nothing: such a number must not reach it.
    """
    if _is_safe(strings, arrow.scale):
        try:
            return strings.cast(arrow)
        except pa.ArrowInvalid:
            pass
    shortened = _without_last_zeros(strings)
    if not _is_safe(shortened, arrow.scale):
        raise pa.ArrowInvalid("too many digits")
    return shortened.cast(arrow)


def _without_last_zeros(strings: Array) -> Array:
    """Of the digits after the point."""
    has_point: Any = pc.match_substring(strings, ".")
    shortened: Array = pc.if_else(has_point, pc.ascii_rtrim(pc.ascii_rtrim(strings, "0"), "."), strings)
    return shortened


def _is_safe(strings: Array, scale: int) -> bool:
    """Whether 38 digits are enough for each value, as it is written and with `scale` digits after the point."""
    lengths = _lengths(strings)
    if lengths.max(initial=0) + scale <= DECIMAL_DIGITS:
        return True
    if not lengths[_given(strings)].all():
        return False
    whole, fraction = _digits(strings)
    return int(max((whole + fraction).max(initial=0), whole.max(initial=0) + scale)) <= DECIMAL_DIGITS


def _digits(strings: Array) -> tuple[Positions, Positions]:
    """Of each number that is not NULL, those before the point, but for a zero alone, and those after it."""
    part = text_bytes(strings)
    points = np.flatnonzero(part.data == ord("."))
    rows = np.searchsorted(part.starts, points, "right") - 1
    whole_ends = part.ends.copy()
    whole_ends[rows] = points
    begins = part.starts + (part.data[part.starts] == ord("-"))
    begins += part.data[np.minimum(begins, part.ends - 1)] == ord("0")
    whole = whole_ends - begins
    return whole, np.maximum(part.ends - whole_ends - 1, 0)


def _are_numbers(strings: Array) -> bool:
    found = pc.all(pc.match_substring_regex(strings, _NUMBER)).as_py()
    return found is not False


def _lengths(strings: Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Bytes of each value; what is NULL may have some."""
    return np.diff(text_bytes(strings).offsets)


def _given(strings: Array) -> Mask:
    valid = validity(strings)
    return np.ones(len(strings), np.bool_) if valid is None else valid
