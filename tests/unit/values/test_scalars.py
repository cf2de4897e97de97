"""bool, integers, floats, numeric, text, bytea and raw text from their representations."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import ValueOutOfRange
from etl_core.schema import pg_types

LoadText = Callable[..., Any]


def rendered(values: list[Any], render: Callable[[Any], str]) -> list[str | None]:
    return [None if value is None else render(value) for value in values]


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, max_size=30)


@given(nullable(st.booleans()))
def test_bool(load_text: LoadText, values: list[Any]) -> None:
    assert load_text(pg_types.BOOL, rendered(values, lambda value: "t" if value else "f")).to_pylist() == values


@pytest.mark.parametrize(("oid", "bits"), [(pg_types.INT2, 16), (pg_types.INT4, 32), (pg_types.INT8, 64)])
@given(data=st.data())
def test_integers(load_text: LoadText, oid: int, bits: int, data: st.DataObject) -> None:
    values = data.draw(nullable(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    assert load_text(oid, rendered(values, str)).to_pylist() == values


@pytest.mark.parametrize("oid", [pg_types.OID, pg_types.XID])
def test_oid_and_xid_are_unsigned(load_text: LoadText, oid: int) -> None:
    assert load_text(oid, ["0", "4294967295", None]).to_pylist() == [0, 4294967295, None]


def float_text(value: float) -> str:
    """As float8out prints with extra_float_digits > 0: the shortest text that reads back exactly."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value).removesuffix(".0")


@given(nullable(st.floats()))
def test_float8_to_the_bit(load_text: LoadText, values: list[Any]) -> None:
    loaded = load_text(pg_types.FLOAT8, rendered(values, float_text)).to_pylist()
    bits = [None if value is None or math.isnan(value) else struct.pack("d", value) for value in loaded]
    assert bits == [None if value is None or math.isnan(value) else struct.pack("d", value) for value in values]
    assert [str(value) for value in loaded] == [str(value) for value in values]


@given(nullable(st.floats(width=32)))
def test_float4_to_the_bit(load_text: LoadText, values: list[Any]) -> None:
    loaded = load_text(pg_types.FLOAT4, rendered(values, lambda value: float_text(float(str(np.float32(value))))))
    assert [str(value) for value in loaded.to_pylist()] == [str(value) for value in values]


def decimal(unscaled: int, scale: int) -> Decimal:
    """Exact, whereas Decimal's arithmetic rounds to 28 digits."""
    return Decimal((int(unscaled < 0), tuple(int(digit) for digit in str(abs(unscaled))), -scale))


@given(st.data())
def test_numeric_with_precision(load_text: LoadText, data: st.DataObject) -> None:
    precision = data.draw(st.integers(1, 38))
    scale = data.draw(st.integers(0, precision))
    unscaled = data.draw(nullable(st.integers(-(10**precision) + 1, 10**precision - 1)))
    values = [None if value is None else decimal(value, scale) for value in unscaled]
    loaded = load_text(pg_types.NUMERIC, rendered(values, lambda value: f"{value:f}"), (precision << 16 | scale) + 4)
    assert loaded.type == pa.decimal128(precision, scale)
    assert loaded.to_pylist() == values


def test_nan_in_a_decimal_is_refused_without_showing_values(load_text: LoadText) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds NaN") as raised:
        load_text(pg_types.NUMERIC, ["7.25", "NaN"], (5 << 16 | 2) + 4)
    assert raised.value.table == "public.t"
    assert raised.value.hint is not None
    assert "7.25" not in str(raised.value)


def test_an_unusual_scale_is_the_decimal_that_holds_it(load_text: LoadText) -> None:
    """numeric(3,5) holds up to 0.00999, numeric(3,-2) up to 99900."""
    loaded = load_text(pg_types.NUMERIC, ["0.00999", "-0.00001", None], (3 << 16 | 5) + 4)
    assert (loaded.type, loaded.to_pylist()) == (pa.decimal128(5, 5), [Decimal("0.00999"), Decimal("-0.00001"), None])
    loaded = load_text(pg_types.NUMERIC, ["99900", "-100"], (3 << 16 | 0x7FE) + 4)
    assert (loaded.type, loaded.to_pylist()) == (pa.decimal128(5, 0), [Decimal(99900), Decimal(-100)])


@pytest.mark.parametrize("modifier", [-1, (39 << 16 | 2) + 4, (3 << 16 | 39) + 4, (37 << 16 | 0x7FE) + 4])
def test_numeric_beyond_decimal128_is_its_text(load_text: LoadText, modifier: int) -> None:
    texts = ["NaN", "1.10", "-" + "9" * 200, None]
    assert load_text(pg_types.NUMERIC, texts, modifier).to_pylist() == texts


@pytest.mark.parametrize("oid", [pg_types.TEXT, pg_types.BPCHAR, pg_types.NAME, pg_types.JSONB, pg_types.UUID])
def test_text_is_kept_as_it_is(load_text: LoadText, oid: int) -> None:
    texts = ["", "padded   ", "NULL", "ünïcödé 😀", "\\x00", '{"a": 1.10}', "a\r\nb", None]
    assert load_text(oid, texts).to_pylist() == texts


@given(nullable(st.binary(max_size=40)))
def test_bytea(load_text: LoadText, values: list[Any]) -> None:
    assert load_text(pg_types.BYTEA, rendered(values, lambda value: "\\x" + value.hex())).to_pylist() == values


def test_an_unknown_type_is_its_text_as_bytes(load_text: LoadText) -> None:
    assert load_text(790, [b"$1.00", b"\xff\xfe", None]).to_pylist() == [b"$1.00", b"\xff\xfe", None]


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (pg_types.BOOL, "true"),
        (pg_types.BOOL, ""),
        (pg_types.BOOL, "x"),
        (pg_types.INT4, "1.5"),
        (pg_types.INT2, "40000"),
        (pg_types.FLOAT8, "one"),
        (pg_types.BYTEA, "abc"),
        (pg_types.BYTEA, ""),
        (pg_types.BYTEA, "\\001x"),
        (pg_types.BYTEA, "\\xAG"),
        (pg_types.BYTEA, "\\x0"),
        (pg_types.BYTEA, "\\001xx"),
    ],
)
def test_text_of_another_type_is_refused_without_showing_it(load_text: LoadText, oid: int, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds text that is not a value") as raised:
        load_text(oid, [text])
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_decimal_that_is_none_is_refused_without_showing_it(load_text: LoadText) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds text that is not a value") as raised:
        load_text(pg_types.NUMERIC, ["7.25", "7,25"], (5 << 16 | 2) + 4)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(("oid", "text"), [(869, "192.168.0.1/24"), (1266, "12:00:00+01"), (3904, "[1,5)")])
def test_a_type_without_columns_of_its_own_is_its_text(load_text: LoadText, oid: int, text: str) -> None:
    assert load_text(oid, [text, None]).to_pylist() == [text, None]


@pytest.mark.parametrize("oid", [pg_types.TEXT, pg_types.JSONB, pg_types.BPCHAR])
@pytest.mark.parametrize("wrong", [b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80", b"cut \xf0\x9f\x98"])
def test_text_that_is_not_utf8_is_refused_without_showing_it(load_text: LoadText, oid: int, wrong: bytes) -> None:
    with pytest.raises(
        ValueOutOfRange, match=r"column c of table public\.t holds text that is not valid UTF-8"
    ) as raised:
        load_text(oid, [b"plain", None, wrong])
    assert "etl resync public.t" in (raised.value.hint or "")
    assert "caf" not in str(raised.value)


def test_two_values_that_are_utf8_only_together_are_refused(load_text: LoadText) -> None:
    with pytest.raises(ValueOutOfRange, match="UTF-8"):
        load_text(pg_types.TEXT, ["é".encode()[:1], "é".encode()[1:]])
