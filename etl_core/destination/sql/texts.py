"""Arrow columns as PostgreSQL's text representations, which every type reads back to the same value.

Whole columns: no Python runs for a single row. It is the inverse of `etl_core.values`: what is printed here is what a
session with pinned settings prints, as far as a value can be kept as text at all. `from_texts` reads them back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, numeric_modifier, under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.type_options import EVERY_VALUE
from etl_core.values.arrow import arrow_type
from etl_core.values.datetimes import INFINITE_DAYS, INFINITE_MICROSECONDS
from etl_core.values.loading import load
from etl_core.values.money import money_type
from etl_core.values.refusal import not_utf8
from etl_core.values.registry import family_of, is_list, is_struct
from etl_core.values.text import (
    Array,
    Mask,
    as_string,
    fixed_width,
    is_utf8,
    numbers_of,
    offsets_from_lengths,
    one_text,
    text_bytes,
    validity,
    variable_width,
)

Nested: TypeAlias = Any
"""An array of lists, structs or maps."""

_HEX = np.array([[ord(digit) for digit in f"{byte:02x}"] for byte in range(256)], np.uint8)
_DAY = 86_400_000_000
_MICROSECONDS = 1_000_000
_FIRST_PLAIN_DAY, _LAST_PLAIN_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, between which Arrow prints dates as PostgreSQL does."""
_INTERVAL = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])
_GEOMETRIC = {
    "point": ("(", ",", ")"),
    "line": ("{", ",", ",", "}"),
    "lseg": ("[(", ",", "),(", ",", ")]"),
    "box": ("(", ",", "),(", ",", ")"),
    "circle": ("<(", ",", "),", ">"),
}
"""What stands before, between and after the numbers."""
_BRACKETS = {"int2vector": ("", " ", ""), "oidvector": ("", " ", ""), "vector": ("[", ",", "]")}


def as_texts(values: Array, column: Column, table: TableName) -> Array:
    """The values of `column`, in its Arrow type, as a string array. Raises ValueOutOfRange for what is no UTF-8."""
    is_printed = column.value_range is EVERY_VALUE
    texts = values if is_printed else _texts(values, column.type, column.type_modifier)
    if pa.types.is_binary(texts.type):
        texts = as_string(texts)
    if not is_utf8(texts):
        raise not_utf8(column, table)
    return texts


def from_texts(texts: Array, column: Column, table: TableName) -> Array:
    """The inverse of `as_texts`: the column in its Arrow type. Raises ValueOutOfRange for what is no value of it."""
    values, target = load(texts, read_column(column), table), arrow_type(column)
    return values if values.type == target else values.cast(target)


def read_column(column: Column) -> Column:
    """The column by whose type its text is read back: that of money is a number's, wherever it stands."""
    pg_type, modifier = _read_type(column.type, column.type_modifier)
    return replace(column, type=pg_type, type_modifier=modifier)


def _read_type(pg_type: PgType, modifier: int) -> tuple[PgType, int]:
    if pg_type.kind is TypeKind.DOMAIN:
        return _read_type(*under_domains(pg_type, modifier))
    numeric = builtin(pg_types.NUMERIC)
    if pg_type.oid == pg_types.MONEY and pg_type.form >= 0 and numeric is not None:
        digits: Any = money_type(pg_type.form)
        return numeric, numeric_modifier(digits.precision, digits.scale)
    element = pg_type.element
    if element is not None:
        element, modifier = _read_type(element, modifier)
    return replace(pg_type, element=element, attributes=tuple(map(read_column, pg_type.attributes))), modifier


def as_hex(values: Array) -> Array:
    """Bytes as hexadecimal digits, a string array."""
    return as_string(_hex(values, b""))


def _texts(values: Array, pg_type: PgType, type_modifier: int) -> Array:
    base, type_modifier = under_domains(pg_type, type_modifier)
    if is_struct(base):
        return _composites(_fresh(values), base)
    if base.kind is TypeKind.RANGE and base.attributes:
        return _ranges(_fresh(values), base)
    if base.kind is TypeKind.MULTIRANGE and is_list(base) and base.element is not None:
        lists = _fresh(values)
        return _joined(_texts(lists.flatten(), base.element, -1), lists, "{", ",", "}")
    if base.kind is TypeKind.ARRAY and base.element is not None:
        return _arrays(_fresh(values), base.element, type_modifier, base.delimiter)
    family = family_of(base).name
    if family in _GEOMETRIC:
        return _geometric(_fresh(values), *_GEOMETRIC[family])
    if family in _BRACKETS:
        return _listed(_as_list(_fresh(values)), *_BRACKETS[family])
    if family == "polygon":
        return _points(_fresh(values))
    if family == "path":
        return _paths(_fresh(values))
    if family == "hstore":
        return _hstores(_fresh(values))
    if family == "bytea":
        return _hex(values, rb"\x")
    if family == "wkb":
        return _hex(values, b"")
    return _scalars(values)


def _scalars(values: Array) -> Array:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return values
    if pa.types.is_boolean(kind):
        texts: Array = pc.if_else(values, _word("t"), _word("f"))
        return texts
    if pa.types.is_date32(kind):
        return _dates(values)
    if pa.types.is_timestamp(kind):
        return _timestamps(values)
    if pa.types.is_time(kind):
        microseconds = numbers_of(values, np.int64)
        return _nulled(_clock(np.where(_given(values), microseconds, 0)), values)
    if pa.types.is_interval(kind):
        return _intervals(values)
    return values.cast(pa.string())


# Dates and times.


def _dates(values: Array) -> Array:
    days = np.where(_given(values), numbers_of(values, np.int32), 0).astype(np.int64)
    if days.min(initial=0) >= _FIRST_PLAIN_DAY and days.max(initial=0) <= _LAST_PLAIN_DAY:
        return values.cast(pa.string())
    infinite = np.abs(days) == INFINITE_DAYS
    date, era = _calendar(np.where(infinite, 0, days))
    return _nulled(_with_infinity(_concat(date, era), days, infinite), values)


def _timestamps(values: Array) -> Array:
    microseconds = np.where(_given(values), numbers_of(values, np.int64), 0)
    infinite = (microseconds == INFINITE_MICROSECONDS) | (microseconds == -INFINITE_MICROSECONDS)
    days, clock = np.divmod(np.where(infinite, 0, microseconds), _DAY)
    zone = _word("" if values.type.tz is None else "+00")
    if days.min(initial=0) >= _FIRST_PLAIN_DAY and days.max(initial=0) <= _LAST_PLAIN_DAY:
        date: Array = fixed_width(pa.date32(), days.astype(np.int32), None).cast(pa.string())
        texts = _concat(date, _word(" "), _clock(clock), zone)
    else:
        date, era = _calendar(days)
        texts = _concat(date, _word(" "), _clock(clock), zone, era)
    return _nulled(_with_infinity(texts, microseconds, infinite), values)


def _calendar(days: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """`2024-02-29` and what says that a year is before Christ.

    https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    """
    era, day = np.divmod(days + 719_468, 146_097)
    year_of_era = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day_of_year = day - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = np.where(shifted < 10, shifted + 3, shifted - 9)
    year = year_of_era + era * 400 + (month <= 2)
    is_before = year < 1
    of_month = day_of_year - (153 * shifted + 2) // 5 + 1
    date = _concat(
        _padded(np.where(is_before, 1 - year, year), 4), _word("-"), _padded(month, 2), _word("-"), _padded(of_month, 2)
    )
    return date, pc.if_else(_mask(is_before), _word(" BC"), _word(""))


def _clock(microseconds: npt.NDArray[np.int64]) -> Array:
    seconds, fraction = np.divmod(microseconds, _MICROSECONDS)
    minutes, second = np.divmod(seconds, 60)
    hour, minute = np.divmod(minutes, 60)
    colon = _word(":")
    whole = _concat(_padded(hour, 2), colon, _padded(minute, 2), colon, _padded(second, 2))
    if not fraction.any():
        return whole
    # Without zeros at its end, as PostgreSQL prints it: where texts are stored, one value has one text.
    digits = pc.ascii_rtrim(_padded(fraction, 6), "0")
    return _concat(whole, pc.if_else(_mask(fraction != 0), _word("."), _word("")), digits)


def _with_infinity(texts: Array, numbers: npt.NDArray[np.int64], infinite: Mask) -> Array:
    if not infinite.any():
        return texts
    words: Array = pc.if_else(_mask(numbers > 0), _word("infinity"), _word("-infinity"))
    found: Array = pc.if_else(_mask(infinite), words, texts)
    return found


def _intervals(values: Array) -> Array:
    """ISO 8601, the style of our sessions: months, days and seconds, each with its sign."""
    buffer = values.buffers()[1]
    count = values.offset + len(values)
    parts = np.zeros(0, _INTERVAL) if buffer is None else np.frombuffer(memoryview(buffer), _INTERVAL, count)
    parts = parts[values.offset :].copy()
    parts[~_given(values)] = 0
    microseconds = parts["nanoseconds"] // 1000
    seconds, fraction = np.divmod(np.abs(microseconds), _MICROSECONDS)
    sign = pc.if_else(_mask(microseconds < 0), _word("-"), _word(""))
    texts = _concat(
        *(_word("P"), _number(parts["months"].astype(np.int64)), _word("M")),
        *(_number(parts["days"].astype(np.int64)), _word("DT")),
        *(sign, _number(seconds), _word("."), _padded(fraction, 6), _word("S")),
    )
    return _nulled(texts, values)


# Types made of others.


def _arrays(values: Nested, element: PgType, type_modifier: int, delimiter: str) -> Array:
    elements = _texts(values.flatten(), element, type_modifier)
    if pa.types.is_binary(elements.type):
        elements = as_string(elements)
    quoted = elements if element.kind is TypeKind.ARRAY else _quoted(elements, '\\"')
    return _joined(pc.fill_null(quoted, _word("NULL")), values, "{", delimiter, "}")


def _composites(values: Nested, base: PgType) -> Array:
    fields = []
    for at, attribute in enumerate(base.attributes):
        texts = _texts(values.field(at), attribute.type, attribute.type_modifier)
        fields.append(pc.fill_null(_quoted(texts, '""'), _word("")))
    inside = fields[0] if len(fields) == 1 else pc.binary_join_element_wise(*fields, _word(","))
    return _nulled(_concat(_word("("), inside, _word(")")), values)


def _ranges(values: Nested, base: PgType) -> Array:
    """Of structs of both bounds, NULL for none, whether each belongs to the range, and whether this is empty."""
    lower, upper = (
        pc.fill_null(_quoted(_texts(values.field(at), bound.type, bound.type_modifier), '""'), _word(""))
        for at, bound in enumerate(base.attributes[:2])
    )
    begin = pc.if_else(values.field(2), _word("["), _word("("))
    end = pc.if_else(values.field(3), _word("]"), _word(")"))
    texts: Array = pc.if_else(values.field(4), _word("empty"), _concat(begin, lower, _word(","), upper, end))
    return _nulled(texts, values)


def _quoted(texts: Array, quote: str) -> Array:
    """In quotes, within which a quote is `quote`; NULL stays NULL."""
    escaped = pc.replace_substring(texts, "\\", "\\\\")
    escaped = pc.replace_substring(escaped, '"', quote)
    return _concat(_word('"'), escaped, _word('"'))


def _geometric(values: Nested, first: str, *others: str) -> Array:
    parts: list[Any] = [_word(first)]
    for at, other in enumerate(others):
        parts += [values.field(at).cast(pa.string()), _word(other)]
    return _nulled(_concat(*parts), values)


def _points(values: Nested) -> Array:
    return _joined(_geometric(values.flatten(), *_GEOMETRIC["point"]), values, "(", ",", ")")


def _paths(values: Nested) -> Array:
    texts = _points(values.field(1))
    inside = pc.utf8_slice_codeunits(texts, 1, -1)
    is_closed = values.field(0)
    begin, end = (pc.if_else(is_closed, _word(closed), _word(opened)) for closed, opened in ("([", ")]"))
    return _nulled(_concat(begin, inside, end), values)


def _hstores(values: Nested) -> Array:
    keys, items = _quoted(values.keys, '\\"'), pc.fill_null(_quoted(values.items, '\\"'), _word("NULL"))
    return _joined(_concat(keys, _word("=>"), items), values, "", ", ", "")


def _listed(values: Nested, begin: str, between: str, end: str) -> Array:
    return _joined(values.flatten().cast(pa.string()), values, begin, between, end)


def _as_list(values: Nested) -> Nested:
    return values.cast(pa.list_(values.type.value_type)) if pa.types.is_fixed_size_list(values.type) else values


def _joined(texts: Array, lists: Nested, begin: str, between: str, end: str) -> Array:
    """The texts of each list's elements, which are not NULL, side by side; NULL for a list that is NULL."""
    of_each: Any = pc.list_value_length(_as_plain_list(lists))
    lengths: Any = pc.fill_null(of_each, 0)
    offsets = offsets_from_lengths(numbers_of(lengths, np.int32))
    offset_array: Any = fixed_width(pa.int32(), offsets.astype(np.int32), None)
    together = pc.binary_join(pa.ListArray.from_arrays(offset_array, texts), between)
    return _nulled(_concat(_word(begin), together, _word(end)), lists)


def _as_plain_list(values: Nested) -> Nested:
    if not pa.types.is_map(values.type):
        return values
    pairs: Any = values.type.field(0).type
    return values.cast(pa.list_(pairs))


# Bytes, and what all need.


def _hex(values: Array, prefix: bytes) -> Array:
    part = text_bytes(values)
    digits = _HEX[part.data].reshape(-1)
    texts = variable_width(pa.string(), digits, part.offsets * 2, None)
    return _nulled(_concat(_word(prefix.decode()), texts) if prefix else texts, values)


def _fresh(values: Array) -> Nested:
    """A copy that begins where its memory does, and in which what is NULL has no elements."""
    return values.take(fixed_width(pa.int64(), np.arange(len(values)), None))


def _given(values: Array) -> Mask:
    valid = validity(values)
    return np.ones(len(values), np.bool_) if valid is None else valid


def _nulled(texts: Array, values: Array) -> Array:
    """`texts`, NULL where `values` is."""
    valid = validity(values)
    return texts if valid is None else pc.if_else(_mask(valid), texts, one_text(None)[0])


def _mask(mask: Mask) -> Array:
    return pa.Array.from_buffers(
        pa.bool_(), len(mask), [None, pa.py_buffer(np.packbits(mask, bitorder="little").tobytes())]
    )


def _number(numbers: npt.NDArray[np.int64]) -> Array:
    return fixed_width(pa.int64(), numbers, None).cast(pa.string())


def _padded(numbers: npt.NDArray[np.int64], width: int) -> Array:
    return pc.utf8_lpad(_number(numbers), width, "0")


def _concat(*parts: Any) -> Array:
    together: Array = pc.binary_join_element_wise(*parts, _word(""))
    return together


def _word(text: str) -> Any:
    return one_text(text)[0]
