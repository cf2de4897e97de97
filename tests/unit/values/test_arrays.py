"""One-dimensional array literals: quoting, escapes, NULL, and what a list cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values import load

LoadText = Callable[..., Any]

INT4_ARRAY, TEXT_ARRAY, NUMERIC_ARRAY, BYTEA_ARRAY, TIMESTAMP_ARRAY = 1007, 1009, 1231, 1001, 1115


def array_text(elements: list[str | None]) -> str:
    """As array_out prints: quoted if empty, NULL, or holding braces, a comma, quotes, a backslash or white space."""
    return "{" + ",".join("NULL" if element is None else _element(element) for element in elements) + "}"


def _element(text: str) -> str:
    if text == "" or text.upper() == "NULL" or any(character in '{},"\\ \t\n\r\v\f' for character in text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


NASTY = st.text(alphabet='ab{},"\\ \nNULé', max_size=6) | st.sampled_from(["NULL", "null", "", "\\", '\\"', "{}", ","])


@given(st.lists(st.none() | st.lists(st.none() | NASTY, max_size=5), max_size=12))
@example([["\\"], ["\\\\", '"'], ['\\"\\'], [""], [], None, [None, "NULL"]])
def test_text_arrays(load_text: LoadText, values: list[list[str | None] | None]) -> None:
    texts = [None if value is None else array_text(value) for value in values]
    assert load_text(TEXT_ARRAY, texts).to_pylist() == values


@given(st.lists(st.none() | st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=12))
def test_integer_arrays(load_text: LoadText, values: list[list[int | None] | None]) -> None:
    texts = [
        None if value is None else array_text([None if number is None else str(number) for number in value])
        for value in values
    ]
    assert load_text(INT4_ARRAY, texts).to_pylist() == values


@pytest.mark.parametrize("text", ["{1,{2}", "{1}}", "{1}2", "{1,2}{3}", "{}}", "{{}"])
def test_braces_that_do_not_match_are_refused(load_text: LoadText, text: str) -> None:
    for others in (["{1}", None, "{}"], ['{"1"}']):
        with pytest.raises(ValueOutOfRange):
            load_text(INT4_ARRAY, [*others, text])


def test_elements_go_through_their_own_type(load_text: LoadText) -> None:
    numerics = load_text(NUMERIC_ARRAY, ["{1.50,NULL,-2.25}", "{}"], (10 << 16 | 2) + 4)
    assert numerics.to_pylist() == [[Decimal("1.50"), None, Decimal("-2.25")], []]
    assert load_text(BYTEA_ARRAY, ['{"\\\\x00ff","\\\\x"}', None]).to_pylist() == [[b"\x00\xff", b""], None]
    stamps = load_text(TIMESTAMP_ARRAY, ['{"1970-01-01 00:00:01",infinity,"0001-01-01 00:00:00 BC"}'])
    assert stamps.values.view(pa.int64()).to_pylist() == [1_000_000, 2**63 - 1, -62_167_219_200_000_000]


def test_a_domain_over_an_array_of_a_domain() -> None:
    label = PgType(50_001, "label", "public", TypeKind.DOMAIN, builtin(25))
    labels = PgType(50_002, "_label", "public", TypeKind.ARRAY, label)
    column = Column("c", PgType(50_003, "labels", "public", TypeKind.DOMAIN, labels))
    loaded = load(pa.array(['{a,"b c"}', "{NULL}"]), column, TableName("public", "t"))
    assert loaded.type == pa.list_(pa.string())
    assert loaded.to_pylist() == [["a", "b c"], [None]]


@pytest.mark.parametrize("text", ["{{1,2},{3,4}}", "{{1}}", "{{{1}}}"])
def test_more_than_one_dimension_is_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds an array of more than one dimension"):
        load_text(INT4_ARRAY, ["{1}", None, text])


@pytest.mark.parametrize("text", ["[0:2]={1,2,3}", "[2:2]={7}", "[-1:0][1:1]={{1},{2}}"])
def test_explicit_bounds_are_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match="explicit bounds"):
        load_text(INT4_ARRAY, ["{1}", text])


@pytest.mark.parametrize("text", ["", "{", "}", "1,2", '{"a}', "{1}}", "{1,x}"])
def test_what_is_no_array_is_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange):
        load_text(INT4_ARRAY, ["{1}", text])
