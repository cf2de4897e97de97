"""Transforms of columns, by name: what becomes of the values, and of the column itself.

A transform is given PostgreSQL's text of the values, in Arrow strings, the same by COPY and by the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.config_values import unknown_key
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType
from etl_core.shape.keyed_hash import HashKey
from etl_core.values.text import Array, validity, variable_width

Function: TypeAlias = Callable[[Array], Array]
"""From the values' text to the values at the destination, NULL included: as many of them, in the same order."""

_MASK = b"***"


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform as it is registered.

    `function` is made once a column, from the argument in the settings and the pipeline's hash key, which is there if
    it `needs_key`; without a `function` all values become NULL, and are not asked for. `target` gives the column at the
    destination. Keys may only be transformed if `keeps_unique`: values that differ stay different.
    """

    name: str
    function: Callable[[int | None, HashKey | None], Function] | None
    target: Callable[[Column], Column]
    keeps_unique: bool = False
    needs_argument: bool = False
    needs_key: bool = False


def as_text(column: Column) -> Column:
    """The column as PostgreSQL's text of its values."""
    return replace(column, type=_text(), type_modifier=-1)


def _text() -> PgType:
    text = builtin(pg_types.TEXT)
    assert text is not None  # noqa: S101 - it is in the table
    return text


def _hash(_: int | None, key: HashKey | None) -> Function:
    assert key is not None  # noqa: S101 - it needs one
    return key.hash_column


def _mask(_: int | None, __: HashKey | None) -> Function:
    return masked


def _truncate(characters: int | None, _: HashKey | None) -> Function:
    return lambda text: pc.utf8_slice_codeunits(text, 0, characters)


def masked(text: Array) -> Array:
    """`***` for each value."""
    valid = validity(text)
    lengths = np.full(len(text), len(_MASK), np.int64) if valid is None else np.where(valid, len(_MASK), 0)
    offsets = np.zeros(len(text) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.frombuffer(_MASK * int(np.count_nonzero(lengths)), np.uint8)
    return variable_width(pa.string(), data, offsets, valid)


def _as_null(column: Column) -> Column:
    return replace(column, nullable=True, missing_value=None, fill_known=True)


_REGISTERED: dict[str, Transform] = {}


def register(transform: Transform) -> None:
    """Makes it known to the settings, under `columns.<name>`."""
    _REGISTERED[transform.name] = transform


def transform_named(name: str, where: str) -> Transform:
    """Raises ConfigError for a name that nobody registered; `where` is the dotted field."""
    found = _REGISTERED.get(name)
    if found is None:
        known = ["include", "exclude", "rename", *_REGISTERED]
        raise unknown_key(where, known, hint=f"known here: {', '.join(known)}")
    return found


def registered_transforms() -> tuple[Transform, ...]:
    """All that the settings may name."""
    return tuple(_REGISTERED.values())


register(Transform("hash", _hash, as_text, keeps_unique=True, needs_key=True))
register(Transform("mask", _mask, as_text))
register(Transform("truncate", _truncate, as_text, needs_argument=True))
register(Transform("null", None, _as_null))
