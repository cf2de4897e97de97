"""A column of text representations → one Arrow array of the column's type."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import base_type, dimensions, is_array_json, is_enum, parts_of, under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.type_options import EVERY_VALUE, OutOfRange
from etl_core.values.array_json import load_array_json
from etl_core.values.arrays import split_arrays, split_outermost
from etl_core.values.composites import split_composites
from etl_core.values.enums import check_labels
from etl_core.values.range_types import split_multiranges, split_ranges
from etl_core.values.ranges import within
from etl_core.values.refusal import not_utf8
from etl_core.values.registry import is_struct, resolve
from etl_core.values.text import (
    Array,
    Mask,
    Positions,
    as_string,
    bitmap,
    boolean,
    buffer_of,
    is_utf8,
    mask_of,
    one_text,
)

Scalar: TypeAlias = "pa.Scalar[Any]"


def load(text: Array, column: Column, table: TableName) -> Array:
    """The values of `column` from their text representations.

    `text` is a string or binary array, NULL for SQL NULL; the result has as many values and
    `arrow_type(column)`, and may share memory with `text`. What becomes of a value beyond the range of that type (NaN
    in a decimal, a year past 294246, an infinite interval) is what `column.out_of_range` says. Raises ValueOutOfRange,
    naming table and column, for one that is refused, for an array of other dimensions than its list has, for more
    digits than a decimal has, for text that is no value of the type, and for text that is not UTF-8.
    """
    if column.value_range is EVERY_VALUE:
        return _load_printed(text, column, table)
    family, arrow = resolve(column.type, column.type_modifier)
    if family is None:
        return _PARTS[base_type(column.type).kind](text, arrow, column, table)
    base = base_type(column.type)
    if is_array_json(base):
        values = load_array_json(text, base, column, table)
    else:
        values = family.load(text, arrow, column, table)
        if is_enum(base):
            check_labels(values, base, column, table)
    if pa.types.is_string(arrow) and not is_utf8(values):
        raise not_utf8(column, table)
    if column.value_range is not None and column.out_of_range is not OutOfRange.REFUSE:
        return within(values, column.out_of_range, column.value_range)
    return values


def _load_printed(text: Array, column: Column, table: TableName) -> Array:
    """The text itself. Raises CopiedAgain where a composite has another number of attributes than its type."""
    values = as_string(text)
    if not is_utf8(values):
        raise not_utf8(column, table)
    if _has_attributes(column.type):
        with suppress(ValueOutOfRange):  # it need not fit into anything
            load(values, replace(column, value_range=None, out_of_range=OutOfRange.NULL), table)
    return values


@lru_cache(maxsize=1024)
def _has_attributes(pg_type: PgType) -> bool:
    return any(is_struct(part) for part in parts_of(pg_type))


def load_missing(column: Column, table: TableName) -> Scalar:
    """`column.missing_value`: what rows older than the column hold, NULL of the column's type if None."""
    missing: Scalar = load(one_text(column.missing_value), column, table)[0]
    return missing


def _load_array(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    base, type_modifier = under_domains(column.type, column.type_modifier)
    element = base.element
    assert element is not None  # noqa: S101 - it is an array
    count = dimensions(base)
    if count == 1:
        offsets, elements, valid = split_arrays(text, column, table, base.delimiter)
    else:
        offsets, elements, valid = split_outermost(text, count, column, table, base.delimiter)
    values = load(elements, replace(column, type=element, type_modifier=type_modifier), table)
    return _as_lists(arrow, offsets, values, valid)


def _load_composite(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    base, _ = under_domains(column.type, column.type_modifier)
    texts, valid = split_composites(text, len(base.attributes), column, table)
    children = [
        load(one, _part(column, attribute), table) for one, attribute in zip(texts, base.attributes, strict=True)
    ]
    return pa.Array.from_buffers(arrow, len(text), [bitmap(valid)], children=children)


def _load_range(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """A range of which a bound becomes NULL, as its value is out of range, is NULL: it would be infinite there."""
    attributes = base_type(column.type).attributes
    parts = split_ranges(text, column, table)
    valid = parts.valid
    bounds: list[Array] = []
    for bound, attribute in zip((parts.lower, parts.upper), attributes, strict=False):
        values = load(bound, _part(column, attribute), table)
        if values.null_count > bound.null_count:
            lost = mask_of(pc.and_(pc.is_valid(bound), pc.is_null(values)))
            valid = ~lost if valid is None else valid & ~lost
        bounds.append(values)
    flags = [boolean(flag) for flag in (parts.lower_inc, parts.upper_inc, parts.isempty)]
    return pa.Array.from_buffers(arrow, len(text), [bitmap(valid)], children=[*bounds, *flags])


def _load_multirange(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    element = base_type(column.type).element
    assert element is not None  # noqa: S101 - it is a list
    offsets, ranges, valid = split_multiranges(text, column, table)
    values = load(ranges, replace(column, type=element), table)
    return _as_lists(arrow, offsets, values, valid)


def _part(column: Column, attribute: Column) -> Column:
    """An attribute of the column's values as a column of its own."""
    return replace(
        attribute,
        name=f"{column.name}.{attribute.name}",
        out_of_range=column.out_of_range,
        value_range=column.value_range,
    )


def _as_lists(arrow: pa.DataType, offsets: Positions, values: Array, valid: Mask | None) -> Array:
    buffers = [bitmap(valid), buffer_of(offsets.astype(np.int32))]
    return pa.Array.from_buffers(arrow, len(offsets) - 1, buffers, children=[values])


_PARTS = {
    TypeKind.ARRAY: _load_array,
    TypeKind.COMPOSITE: _load_composite,
    TypeKind.RANGE: _load_range,
    TypeKind.MULTIRANGE: _load_multirange,
}
"""How a value is loaded that is made of others."""
