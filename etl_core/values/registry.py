"""A column of text representations → one Arrow array of the column's type: the registry of type families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.arrow import arrow_type, base_type, is_supported, under_domains
from etl_core.schema.table import Column, TypeKind
from etl_core.values.arrays import split_arrays
from etl_core.values.bytea import load_bytea
from etl_core.values.datetimes import load_datetime, load_time
from etl_core.values.intervals import load_interval
from etl_core.values.refusal import not_utf8
from etl_core.values.scalars import load_bool, load_number, load_numeric, load_raw, load_string
from etl_core.values.text import Array, bitmap, buffer_of, is_utf8, one_text

Scalar: TypeAlias = "pa.Scalar[Any]"
_Loader = Callable[["Array", Column, TableName], Array]

_LOADERS: dict[int, _Loader] = {
    pg_types.BOOL: load_bool,
    pg_types.BYTEA: load_bytea,
    pg_types.CHAR: load_string,
    pg_types.NAME: load_string,
    pg_types.INT8: load_number,
    pg_types.INT2: load_number,
    pg_types.INT4: load_number,
    pg_types.TEXT: load_string,
    pg_types.OID: load_number,
    pg_types.XID: load_number,
    pg_types.JSON: load_string,
    pg_types.FLOAT4: load_number,
    pg_types.FLOAT8: load_number,
    pg_types.BPCHAR: load_string,
    pg_types.VARCHAR: load_string,
    pg_types.DATE: load_datetime,
    pg_types.TIME: load_time,
    pg_types.TIMESTAMP: load_datetime,
    pg_types.TIMESTAMPTZ: load_datetime,
    pg_types.INTERVAL: load_interval,
    pg_types.NUMERIC: load_numeric,
    pg_types.UUID: load_string,
    pg_types.JSONB: load_string,
}


def load(text: Array, column: Column, table: TableName) -> Array:
    """The values of `column` from their text representations.

    `text` is a string or binary array, NULL for SQL NULL; the result has as many values and
    `arrow_type(column)`, and may share memory with `text`. Raises ValueOutOfRange, naming table and column, for
    a value that the type cannot hold (NaN in a decimal, an array of two dimensions, a year past 294246, an
    infinite interval), for text that is no value of the type, and for text that is not UTF-8.
    """
    values = _loader(column)(text, column, table)
    if pa.types.is_string(values.type) and not is_utf8(values):
        raise not_utf8(column, table)
    return values


def load_missing(column: Column, table: TableName) -> Scalar:
    """`column.missing_value`: what rows older than the column hold, NULL of the column's type if None."""
    missing: Scalar = load(one_text(column.missing_value), column, table)[0]
    return missing


def _loader(column: Column) -> _Loader:
    if not is_supported(column):
        return load_raw
    base = base_type(column.type)
    if base.kind is TypeKind.ARRAY:
        return _load_array
    if pg_types.is_textual(base):
        return load_string
    return _LOADERS[base.oid]


def _load_array(text: Array, column: Column, table: TableName) -> Array:
    base, type_modifier = under_domains(column.type, column.type_modifier)
    element = base.element
    assert element is not None  # noqa: S101 - is_supported says so
    offsets, elements, valid = split_arrays(text, column, table)
    values = load(elements, replace(column, type=element, type_modifier=type_modifier), table)
    buffers = [bitmap(valid), buffer_of(offsets.astype(np.int32))]
    return pa.Array.from_buffers(arrow_type(column), len(offsets) - 1, buffers, children=[values])
