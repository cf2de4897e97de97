"""How these tests load: a column of one built-in type in a table `public.t`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from etl_core.identifiers import TableName
from etl_core.schema.pg_types import TIME, builtin
from etl_core.schema.table import Column
from etl_core.values import load
from etl_core.values.arrow import arrow_type

LoadText = Callable[..., Any]


@pytest.fixture(scope="session")
def load_text() -> LoadText:
    """Loads texts as type `oid`, checks that every way to hand them over gives the same, returns the array."""

    def load_text(oid: int, texts: Sequence[str | bytes | None], modifier: int = -1) -> pa.Array[Any]:
        pg_type = builtin(oid)
        assert pg_type is not None
        column, table = Column("c", pg_type, modifier), TableName("public", "t")
        text = pa.array(texts, pa.binary())
        loaded = load(text, column, table)
        loaded.validate(full=oid != TIME)  # Arrow thinks that 24:00:00 is no time
        assert loaded.type == arrow_type(column)
        assert loaded.is_null().to_pylist() == [value is None for value in texts]
        # As a string array; as a slice that is not byte-aligned; with bytes hidden under a NULL.
        assert same(load(text.view(pa.string()), column, table), loaded)
        around = pa.array([b"junk", None, b"x", *texts, b"junk", None], pa.binary())
        assert same(load(around.slice(3, len(texts)), column, table), loaded)
        hidden = load(hide(pa.array([*texts, b"{hidden"], pa.binary()), len(texts)), column, table)
        assert same(hidden.slice(0, len(texts)), loaded)
        assert hidden[len(texts)].as_py() is None
        return loaded

    return load_text


def same(left: pa.Array[Any], right: pa.Array[Any]) -> bool:
    """Equal bit for bit: NaN equals NaN, -0 does not equal 0."""
    if not pa.types.is_floating(left.type):
        return left.equals(right)
    return str(left.to_pylist()) == str(right.to_pylist())


def hide(array: pa.Array[Any], index: int) -> pa.Array[Any]:
    """The array with one value made NULL in the bitmap only."""
    valid = pa.array([value.is_valid and number != index for number, value in enumerate(array)])
    return pa.Array.from_buffers(array.type, len(array), [valid.buffers()[1], *array.buffers()[1:]])
