"""interval in ISO 8601 style: every part with its own sign, and what 64 bits of nanoseconds hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import ValueOutOfRange
from etl_core.schema import pg_types

LoadText = Callable[..., Any]

LAST = (2**63 - 1) // 1000


def truncated(value: int, unit: int) -> tuple[int, int]:
    """Quotient and remainder with the sign of `value`, as C divides."""
    quotient = abs(value) // unit
    return (quotient, abs(value) % unit) if value >= 0 else (-quotient, -(abs(value) % unit))


def interval_text(months: int, days: int, microseconds: int) -> str:
    """As EncodeInterval prints INTSTYLE_ISO_8601 (src/backend/utils/adt/datetime.c)."""
    if not months and not days and not microseconds:
        return "PT0S"
    years, months = truncated(months, 12)
    hours, rest = truncated(microseconds, 3_600_000_000)
    minutes, rest = truncated(rest, 60_000_000)
    text = "P" + "".join(f"{value}{unit}" for value, unit in ((years, "Y"), (months, "M"), (days, "D")) if value)
    if microseconds:
        text += "T" + "".join(f"{value}{unit}" for value, unit in ((hours, "H"), (minutes, "M")) if value)
    if rest:
        fraction = f".{abs(rest) % 1_000_000:06}".rstrip("0").rstrip(".")
        text += f"{'-' if rest < 0 else ''}{abs(rest) // 1_000_000}{fraction}S"
    return text


SMALL = st.integers(-70, 70)
INT32 = st.integers(-(2**31), 2**31 - 1)
PARTS = st.tuples(SMALL | INT32, SMALL | INT32, SMALL | st.integers(-LAST, LAST))


@given(st.lists(st.none() | PARTS, max_size=20))
def test_interval(load_text: LoadText, values: list[Any]) -> None:
    texts = [None if value is None else interval_text(*value) for value in values]
    loaded = load_text(pg_types.INTERVAL, texts).to_pylist()
    assert loaded == [
        None if value is None else pa.MonthDayNano([value[0], value[1], value[2] * 1000])  # type: ignore[call-arg, arg-type] # its stub has fields
        for value in values
    ]


@pytest.mark.parametrize(
    ("text", "months", "days", "nanoseconds"),
    [
        ("PT0S", 0, 0, 0),
        ("P-1Y-2M3DT-4H-5M-6.5S", -14, 3, -14_706_500_000_000),
        ("PT-0.000001S", 0, 0, -1000),
        ("P1M", 1, 0, 0),
        ("PT1M", 0, 0, 60_000_000_000),
        ("P1YT1M", 12, 0, 60_000_000_000),
        ("P178956970Y7M", 2**31 - 1, 0, 0),
    ],
)
def test_parts(load_text: LoadText, text: str, months: int, days: int, nanoseconds: int) -> None:
    assert load_text(pg_types.INTERVAL, [text])[0].as_py() == pa.MonthDayNano([months, days, nanoseconds])  # type: ignore[call-arg, arg-type] # its stub has fields


@pytest.mark.parametrize("text", ["infinity", "-infinity", "PT2562047H47M16.854776S", "PT-2562048H"])
def test_what_nanoseconds_cannot_hold_is_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds .* nanoseconds cannot hold|infinity"):
        load_text(pg_types.INTERVAL, ["P1D", text])


@pytest.mark.parametrize("number", ["1000000000000", "-1000000000000", "-9223372036854775808", "99999999999999999999"])
@pytest.mark.parametrize("beside", ["P1D", "PT1.5S"])
def test_a_number_that_no_server_sends_is_refused(load_text: LoadText, number: str, beside: str) -> None:
    with pytest.raises(ValueOutOfRange):
        load_text(pg_types.INTERVAL, [beside, f"P{number}D"])


@pytest.mark.parametrize(
    "text", ["", "1 day", "P1", "1D", "PT1.5", "P1DP1D", "04:05:06", "PY", "P1-2", "P1T2H", "1P2D"]
)
def test_another_style_is_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange):
        load_text(pg_types.INTERVAL, [text])
