"""Arrays as JSON: any array, as PostgreSQL prints it, is the JSON of its elements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType
from etl_core.values import load
from tests.unit.values.conftest import hide

TABLE = TableName("public", "t")
NASTY = st.text(st.sampled_from("\"\\,;{}[]=> 'NULtfaé\n\x01\t"), max_size=6) | st.sampled_from(["NULL", "null", "t"])


def loaded(oid: int, texts: Sequence[str | None], delimiter: str = ",") -> list[str | None]:
    as_json = PgType(pg_types.JSON, "json", element=builtin(oid), delimiter=delimiter)
    text = pa.array(texts, pa.string())
    array = load(text, Column("c", as_json), TABLE)
    array.validate(full=True)
    hidden = hide(pa.array(["x", None, *texts, "{hidden"], pa.string()), len(texts) + 2)
    around = load(hidden.slice(2), Column("c", as_json), TABLE)
    assert around.to_pylist() == [*array.to_pylist(), None]
    found: list[str | None] = array.to_pylist()
    return found


def print_array(value: Any, delimiter: str = ",") -> str:
    """array_out: https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/arrayfuncs.c"""
    if isinstance(value, list):
        return "{" + delimiter.join(print_array(one, delimiter) for one in value) + "}"
    if value is None:
        return "NULL"
    needs = not value or value.upper() == "NULL" or any(one in '"\\{} \t\n' + delimiter for one in value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if needs else value


def arrays(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Of none, one, two and three dimensions, all of whose rows have one length."""

    def nested(lengths: list[int]) -> st.SearchStrategy[Any]:
        if not lengths:
            return elements
        return st.lists(nested(lengths[1:]), min_size=lengths[0], max_size=lengths[0])

    return st.lists(st.integers(1, 3), min_size=1, max_size=3).flatmap(nested) | st.just([])


@given(st.lists(st.none() | arrays(st.none() | NASTY), max_size=4), st.sampled_from(",;:"))
def test_any_array_of_texts(values: list[list[Any] | None], delimiter: str) -> None:
    texts = [None if one is None else print_array(one, delimiter) for one in values]
    found = loaded(pg_types.TEXT, texts, delimiter)
    assert [None if one is None else json.loads(one) for one in found] == values
    bounded = [None if one is None or number % 2 else f"[0:9]={one}" for number, one in enumerate(texts)]
    mixed = [two or one for one, two in zip(texts, bounded, strict=True)]
    expected = [two or one for one, two in zip(values, bounded, strict=True)]
    found = loaded(pg_types.TEXT, mixed, delimiter)
    assert [None if one is None else json.loads(one) for one in found] == expected


@given(st.lists(arrays(st.none() | st.booleans()), max_size=4))
def test_any_array_of_truth_values(values: list[list[Any]]) -> None:
    texts = [print_array(value).replace("True", "t").replace("False", "f") for value in map(_as_texts, values)]
    assert [json.loads(one or "") for one in loaded(pg_types.BOOL, texts)] == values


def test_numbers_keep_their_digits() -> None:
    texts = ["{1.10,NaN,-Infinity,Infinity,NULL}", "{{1e+20,-0},{0.5,7}}", None, "[0:0]={1}"]
    assert loaded(pg_types.NUMERIC, texts) == [
        '[1.10,"NaN","-Infinity","Infinity",null]',
        "[[1e+20,-0],[0.5,7]]",
        None,
        '"[0:0]={1}"',
    ]


@pytest.mark.parametrize("text", ["", "{", "1", "{1", "1}", "x{1}"])
def test_text_that_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueOutOfRange):
        loaded(pg_types.INT4, ["{}", text, None])


def _as_texts(value: Any) -> Any:
    return list(map(_as_texts, value)) if isinstance(value, list) else value if value is None else str(value)
