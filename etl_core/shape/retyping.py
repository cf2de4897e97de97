"""What the options of types make of a column: another type at the destination, other values for those beyond it.

`numeric` is about numerics that DECIMAL does not hold as they are declared: without a precision, or of more than 38
digits. By `auto` they have the digits that a copy found (`Column.fraction_digits`), and are text where it counted none:
in composites, in the bounds of ranges, in a table that an older version copied. `json` is about json and jsonb.
`arrays` is about arrays; those with money in them, whose text is by the lc_monetary of our sessions, are never JSON.
`enum` is about enums and arrays of them, not about those in composites and ranges. `range` is about ranges and
multiranges. `unknown` is about types that no family knows. All are also about such types in arrays, composites and
under domains, and in the bounds of ranges as structs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from etl_core.schema import pg_types
from etl_core.schema.pg_types import base_type, builtin, is_array_json, numeric_modifier, parts_of, under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.type_options import (
    ARRAYS,
    DECIMAL_DIGITS,
    DEFAULTS,
    DOUBLE,
    ENUM,
    EVERY_VALUE,
    JSON,
    NUMERIC,
    OUT_OF_RANGE,
    RANGE,
    REFUSE,
    STRUCT,
    UNKNOWN,
    VARCHAR,
    Held,
    OutOfRange,
    ValueRange,
    decimal_digits,
    list_dimensions,
)
from etl_core.values.families import UNKNOWN as UNKNOWN_FAMILY
from etl_core.values.numeric import is_declared
from etl_core.values.ranges import has_floats
from etl_core.values.registry import family_of, resolve

_WITH_RANGE = (pg_types.TIMESTAMP, pg_types.TIMESTAMPTZ, pg_types.INTERVAL)
_WITH_RANGE_THERE = (pg_types.DATE, pg_types.TIME)
"""Types that hold less in some destinations alone."""
_RANGES = (TypeKind.RANGE, TypeKind.MULTIRANGE)


def retyped(column: Column, words: Mapping[str, str], *, is_key: bool, value_range: Held = None) -> Column:
    """The column as the destination has it by `words`; itself, where they change nothing.

    A key refuses what is out of range, whatever they say: two rows would have one key. `value_range` is the
    destination's.
    """
    said = in_force(column, words, is_key=is_key, value_range=value_range)
    if column.fraction_digits is not None and NUMERIC not in said:
        said = {**said, NUMERIC: f"decimal({DECIMAL_DIGITS},{column.fraction_digits})"}
    if value_range is EVERY_VALUE and _is_printed(column, said):
        # For whoever reads it from there in Arrow's types.
        policy = OutOfRange.REFUSE if is_key else OutOfRange(words.get(OUT_OF_RANGE, OutOfRange.REFUSE))
        return replace(column, value_range=EVERY_VALUE, out_of_range=policy)
    if not said:
        return column
    new, modifier = _retyped(column.type, column.type_modifier, said)
    if (new, modifier) != (column.type, column.type_modifier):
        column = replace(column, type=new, type_modifier=modifier)
    policy = OutOfRange(said.get(OUT_OF_RANGE, OutOfRange.REFUSE))
    if policy is column.out_of_range:
        return column
    limits = value_range if isinstance(value_range, ValueRange) else None
    return replace(column, out_of_range=policy, value_range=limits)


def in_force(column: Column, words: Mapping[str, str], *, is_key: bool, value_range: Held = None) -> Mapping[str, str]:
    """Those of `words` that make a difference to the column; equal ones give equal values."""
    said = {option: word for option, word in words.items() if word != DEFAULTS[option]}
    leaves = list(_leaves(column.type, column.type_modifier, said))
    if not any(is_array_json(leaf) or leaf.kind is TypeKind.ARRAY for leaf, _ in leaves):
        said.pop(ARRAYS, None)
    numeric = said.get(NUMERIC)
    if not (is_counted(column) if numeric == VARCHAR else any(_is_wide_numeric(*leaf) for leaf in leaves)):
        said.pop(NUMERIC, None)
    if not any(_is_json(leaf) for leaf, _ in leaves):
        said.pop(JSON, None)
    if not _is_of_enums(column.type, said):
        said.pop(ENUM, None)
    if not any(leaf.kind in _RANGES for leaf, _ in leaves):
        said.pop(RANGE, None)
    parts = leaves
    if said.get(UNKNOWN) == REFUSE and ARRAYS in said:
        # An array that is JSON has such elements all the same, and may be refused for them.
        parts = list(_leaves(column.type, column.type_modifier, {**said, ARRAYS: DEFAULTS[ARRAYS]}))
    if not any(_is_unknown(part) for part, _ in parts):
        said.pop(UNKNOWN, None)
    limits = value_range if isinstance(value_range, ValueRange) else ValueRange()
    is_text = numeric == VARCHAR or (numeric is None and column.fraction_digits is None)
    if is_key or not any(_has_range(*leaf, is_text, limits) for leaf in leaves):
        said.pop(OUT_OF_RANGE, None)
    if value_range is EVERY_VALUE and column.fraction_digits is None and _is_printed(column, said):
        said.pop(OUT_OF_RANGE, None)
    return said


def _is_printed(column: Column, said: Mapping[str, str]) -> bool:
    """Whether a destination that reads PostgreSQL's text is given the values so: none of the words is about them.

    money is not: its text is by the locale of each database.
    """
    if any(part.oid == pg_types.MONEY for part in parts_of(column.type)):
        return False
    return _retyped(column.type, column.type_modifier, said) == (column.type, column.type_modifier)


def is_counted(column: Column) -> bool:
    """Whether the column has numerics, or arrays of them, whose digits a copy can count: those `numeric` is about."""
    base, modifier = under_domains(column.type, column.type_modifier)
    if base.kind is TypeKind.ARRAY and base.element is not None:
        base, modifier = under_domains(base.element, modifier)
    return _is_wide_numeric(base, modifier)


def is_array(column: Column) -> bool:
    return base_type(column.type).kind is TypeKind.ARRAY


def applies(option: str, word: str, column: Column, value_range: Held = None) -> bool:
    """Whether `option` is about columns of this type, which may be no key's; `word` is what is said."""
    words = {
        NUMERIC: DOUBLE,
        JSON: VARCHAR,
        ARRAYS: "list(2)",
        ENUM: ENUM,
        RANGE: STRUCT,
        UNKNOWN: VARCHAR,
        OUT_OF_RANGE: OutOfRange.NULL.value,
    }
    # Whatever else may be said for it: of a range's bounds an option is about where the range is a struct.
    given = {RANGE: STRUCT, option: words[option] if word in (DEFAULTS[option], VARCHAR) else word}
    if option == OUT_OF_RANGE:
        given[NUMERIC] = DOUBLE
    limits = value_range if isinstance(value_range, ValueRange) else None
    return option in in_force(column, given, is_key=False, value_range=limits)


def _leaves(pg_type: PgType, type_modifier: int, said: Mapping[str, str]) -> Iterator[tuple[PgType, int]]:
    """The types of the values in a value, with their modifiers: of the elements and the attributes.

    And the arrays, ranges and multiranges themselves of which the options make something else.
    """
    base, type_modifier = under_domains(pg_type, type_modifier)
    if base.kind is TypeKind.ARRAY and base.element is not None:
        whole = _as_json(base, said)
        if whole is not None:
            yield whole, -1
            return
        if _count(said) > 1:
            yield base, type_modifier
        yield from _leaves(base.element, type_modifier, _of_elements(said))
    elif base.kind is TypeKind.COMPOSITE:
        for attribute in base.attributes:
            yield from _leaves(attribute.type, attribute.type_modifier, said)
    else:
        yield base, type_modifier
        if base.kind in _RANGES and RANGE in said and base.element is not None:
            yield from _leaves(base.element, -1, said)


def _as_json(array: PgType, said: Mapping[str, str]) -> PgType | None:
    """The type of the array as JSON, None where it is a list."""
    assert array.element is not None  # noqa: S101 - it is an array
    if said.get(ARRAYS) != JSON or any(leaf.oid == pg_types.MONEY for leaf, _ in _leaves(array.element, -1, {})):
        return None
    return replace(_known(pg_types.JSON), element=array.element, delimiter=array.delimiter)


def _count(said: Mapping[str, str]) -> int:
    """How many dimensions an array has as lists."""
    return list_dimensions(said.get(ARRAYS, DEFAULTS[ARRAYS])) or 1


def _of_elements(said: Mapping[str, str]) -> Mapping[str, str]:
    """What is said of an array's elements: the dimensions are those of the array, not of one in it."""
    return {option: word for option, word in said.items() if option != ARRAYS} if _count(said) > 1 else said


def _of_fields(said: Mapping[str, str]) -> Mapping[str, str]:
    """What is said of the fields of a struct: an enum in one is text, whatever the destination."""
    return {option: word for option, word in said.items() if option != ENUM}


def _is_json(base: PgType) -> bool:
    return base.oid in (pg_types.JSON, pg_types.JSONB) and not is_array_json(base)


def _is_of_enums(pg_type: PgType, said: Mapping[str, str]) -> bool:
    """Whether it is an enum, or a list of them."""
    base = base_type(pg_type)
    while base.kind is TypeKind.ARRAY and base.element is not None and _as_json(base, said) is None:
        base = base_type(base.element)
    return base.kind is TypeKind.ENUM


def _is_unknown(base: PgType) -> bool:
    return base.kind is not TypeKind.ARRAY and family_of(base).name == UNKNOWN_FAMILY.name


def _is_wide_numeric(base: PgType, type_modifier: int) -> bool:
    return base.oid == pg_types.NUMERIC and not is_declared(type_modifier)


def _has_range(base: PgType, type_modifier: int, is_text: bool, limits: ValueRange) -> bool:
    """Whether there are values of the type that are not held; `is_text` is about wide numerics."""
    if base.oid == pg_types.NUMERIC:
        return not is_text or not _is_wide_numeric(base, type_modifier)
    if base.oid in _WITH_RANGE or (limits.calendar is not None and base.oid in _WITH_RANGE_THERE):
        return True
    return not limits.negative_zero and has_floats(resolve(base, type_modifier)[1])


def _retyped(pg_type: PgType, type_modifier: int, said: Mapping[str, str]) -> tuple[PgType, int]:
    base, modifier = under_domains(pg_type, type_modifier)
    if base.kind is TypeKind.ARRAY and base.element is not None:
        whole = _as_json(base, said)
        if whole is not None:
            return whole, -1
        element, new = _retyped(base.element, modifier, _of_elements(said))
        for _ in range(_count(said) - 1):
            element = replace(base, element=element)
        if (element, new) != (base.element, modifier):
            return replace(base, element=element), new
    elif base.kind is TypeKind.COMPOSITE:
        attributes = tuple(_attribute(attribute, _of_fields(said)) for attribute in base.attributes)
        if attributes != base.attributes:
            return replace(base, attributes=attributes), modifier
    elif base.kind in _RANGES and RANGE in said and base.element is not None:
        element, new = _retyped(base.element, -1, _of_fields(said))
        if base.kind is TypeKind.MULTIRANGE:
            return replace(base, element=element), -1
        return replace(base, attributes=_range_attributes(element, new)), -1
    elif _is_wide_numeric(base, modifier) and said.get(NUMERIC, VARCHAR) != VARCHAR:
        digits = decimal_digits(said[NUMERIC])
        return (_known(pg_types.FLOAT8), -1) if digits is None else (base, numeric_modifier(*digits))
    elif base.kind is TypeKind.ENUM and ENUM in said and base.labels:
        return replace(base, form=0), -1
    elif (_is_json(base) and JSON in said) or (_is_unknown(base) and said.get(UNKNOWN) == VARCHAR):
        return _known(pg_types.TEXT), -1
    return pg_type, type_modifier


def _attribute(attribute: Column, said: Mapping[str, str]) -> Column:
    new, modifier = _retyped(attribute.type, attribute.type_modifier, said)
    return replace(attribute, type=new, type_modifier=modifier)


def _range_attributes(bound: PgType, type_modifier: int) -> tuple[Column, ...]:
    """Of a range as a struct, by the names of the functions that tell the same of it in PostgreSQL.

    https://www.postgresql.org/docs/current/functions-range.html
    """
    bounds = (Column(name, bound, type_modifier) for name in ("lower", "upper"))
    return *bounds, *(Column(name, _known(pg_types.BOOL)) for name in ("lower_inc", "upper_inc", "isempty"))


def _known(oid: int) -> PgType:
    found = builtin(oid)
    assert found is not None  # noqa: S101 - it is in the table
    return found
