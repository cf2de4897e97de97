"""date, time, timestamp and timestamptz, from 4713 BC to infinity."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import ValueOutOfRange
from etl_core.schema import pg_types
from etl_core.values.datetimes import INFINITE_DAYS, INFINITE_MICROSECONDS

LoadText = Callable[..., Any]

DAY = 86_400_000_000


def day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 by PostgreSQL's date2j (src/backend/utils/adt/datetime.c); year 0 is 1 BC."""
    if month > 2:
        month += 1
        year += 4800
    else:
        month += 13
        year += 4799
    century = year // 100
    julian = year * 365 - 32167 + year // 4 - century + century // 4
    return julian + 7834 * month // 256 + day - 2440588


def date_text(year: int, month: int, day: int) -> tuple[str, str]:
    """`YYYY-MM-DD` and what ends the value."""
    return (f"{year:04}-{month:02}-{day:02}", "") if year > 0 else (f"{1 - year:04}-{month:02}-{day:02}", " BC")


def clock_text(microseconds: int) -> str:
    seconds, fraction = divmod(microseconds, 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return text + f".{fraction:06}".rstrip("0") if fraction else text


def days(first_year: int, last_year: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(st.integers(first_year, last_year), st.integers(1, 12), st.integers(1, 28))


CLOCKS = st.integers(0, DAY - 1) | st.integers(0, 86399).map(lambda seconds: seconds * 1_000_000)


def integers(loaded: pa.Array[Any]) -> list[int | None]:
    width = pa.int32() if pa.types.is_date(loaded.type) else pa.int64()
    result: list[int | None] = loaded.view(width).to_pylist()
    return result


@given(st.lists(st.none() | days(-4712, 9999) | days(1, 5_874_896), max_size=20))
def test_date(load_text: LoadText, values: list[Any]) -> None:
    texts = [None if value is None else "".join(date_text(*value)) for value in values]
    expected = [None if value is None else day_number(*value) for value in values]
    assert integers(load_text(pg_types.DATE, texts)) == expected


@given(st.lists(st.dates(), max_size=20))
def test_date_agrees_with_python(load_text: LoadText, values: list[date]) -> None:
    assert load_text(pg_types.DATE, [value.isoformat() for value in values]).to_pylist() == values


@pytest.mark.parametrize(("oid", "zone"), [(pg_types.TIMESTAMP, ""), (pg_types.TIMESTAMPTZ, "+00")])
@given(values=st.lists(st.none() | st.tuples(days(-4712, 9999) | days(1, 294_246), CLOCKS), max_size=20))
def test_timestamp(load_text: LoadText, oid: int, zone: str, values: list[Any]) -> None:
    texts: list[str | None] = []
    expected: list[int | None] = []
    for value in values:
        if value is None:
            texts.append(None)
            expected.append(None)
        else:
            day, end = date_text(*value[0])
            texts.append(f"{day} {clock_text(value[1])}{zone}{end}")
            expected.append(day_number(*value[0]) * DAY + value[1])
    assert integers(load_text(oid, texts)) == expected


@given(st.lists(st.datetimes(), max_size=20))
def test_timestamptz_agrees_with_python(load_text: LoadText, values: list[datetime]) -> None:
    texts = [value.isoformat(" ") + "+00" for value in values]
    loaded = integers(load_text(pg_types.TIMESTAMPTZ, texts))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert loaded == [(value.replace(tzinfo=UTC) - epoch) // timedelta(microseconds=1) for value in values]


@pytest.mark.parametrize(
    ("oid", "infinite", "usual", "expected"),
    [
        (pg_types.DATE, INFINITE_DAYS, "1970-01-02", 1),
        (pg_types.TIMESTAMP, INFINITE_MICROSECONDS, "1970-01-02 00:00:00", DAY),
        (pg_types.TIMESTAMPTZ, INFINITE_MICROSECONDS, "1970-01-02 00:00:00+00", DAY),
    ],
)
def test_infinity_is_the_largest_integer(
    load_text: LoadText, oid: int, infinite: int, usual: str, expected: int
) -> None:
    loaded = load_text(oid, ["infinity", None, usual, "-infinity"])
    assert integers(loaded) == [infinite, None, expected, -infinite]


def test_the_last_timestamp_below_infinity(load_text: LoadText) -> None:
    loaded = load_text(pg_types.TIMESTAMP, ["294247-01-10 04:00:54.775806"])
    assert integers(loaded) == [INFINITE_MICROSECONDS - 1]


@pytest.mark.parametrize(
    "text", ["294247-01-10 04:00:54.775807", "294247-01-11 00:00:00", "294276-12-31 23:59:59.999999"]
)
def test_a_timestamp_beyond_64_bits_is_refused(load_text: LoadText, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds a time after the year 294246"):
        load_text(pg_types.TIMESTAMP, ["2024-01-01 00:00:00", text])


@given(st.lists(st.none() | CLOCKS | st.just(DAY), max_size=20))
def test_time(load_text: LoadText, values: list[int | None]) -> None:
    texts = [None if value is None else clock_text(value) for value in values]
    assert integers(load_text(pg_types.TIME, texts)) == values


@given(st.lists(st.times(), max_size=20))
def test_time_agrees_with_python(load_text: LoadText, values: list[time]) -> None:
    assert load_text(pg_types.TIME, [value.isoformat() for value in values]).to_pylist() == values


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (pg_types.DATE, "01/02/2024"),
        (pg_types.DATE, "2024-02-30"),
        (pg_types.DATE, ""),
        (pg_types.DATE, "12024-01-01 AD"),
        (pg_types.TIMESTAMP, "2024-01-01 00:00:00+00"),
        (pg_types.TIMESTAMPTZ, "2024-01-01 00:00:00"),
        (pg_types.TIMESTAMPTZ, "0044-03-15 00:00:00+01 BC"),
        (pg_types.TIMESTAMP, "Mon Jan 01 00:00:00 2024"),
        (pg_types.TIME, "24:00:00.000001"),
        (pg_types.TIME, "10:00"),
        (pg_types.TIME, "10:00:00+01"),
        (pg_types.TIME, "1a:00:00"),
        (pg_types.TIME, "10-00-00"),
    ],
)
def test_another_style_is_refused(load_text: LoadText, oid: int, text: str) -> None:
    with pytest.raises(ValueOutOfRange, match="holds text that is not a value") as raised:
        load_text(oid, [text])
    assert raised.value.hint is not None
    assert "DateStyle" in raised.value.hint
