"""Numbers with more digits than a decimal has, and what becomes of values beyond a type's range."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.destination.bigquery.ranges import RANGE
from etl_core.errors import CopiedAgain, ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, numeric_modifier
from etl_core.schema.table import Column, PgType
from etl_core.shape.retyping import retyped
from etl_core.type_options import OutOfRange, ValueRange
from etl_core.values import load
from etl_core.values.digits import digits_in
from etl_core.values.ranges import DAY

EXACT = Context(prec=500)
DIGITS = st.integers(0, 60).flatmap(lambda count: st.text("0123456789", min_size=count, max_size=count))


def loaded(texts: Sequence[str | None], oid: int, modifier: int = -1, policy: OutOfRange = OutOfRange.REFUSE) -> Any:
    pg_type = builtin(oid)
    assert pg_type is not None
    column = Column("c", pg_type, modifier, out_of_range=policy)
    values = load(pa.array(texts, pa.string()), column, TableName("public", "t"))
    values.validate(full=True)
    around = load(pa.array(["0", *texts, None], pa.string()).slice(1, len(texts)), column, TableName("public", "t"))
    assert around.equals(values) or pa.types.is_floating(values.type)
    return values


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """As numeric_out prints: no zero more before the point than one, any number of them at the end."""
    whole, fraction = draw(DIGITS).lstrip("0") or "0", draw(DIGITS) + "0" * draw(st.integers(0, 40))
    return draw(st.sampled_from(["", "-"])) + whole + (f".{fraction}" if fraction else "")


@pytest.mark.parametrize("policy", [OutOfRange.NULL, OutOfRange.CLAMP])
def test_negative_zero_becomes_zero_where_it_is_not_held(policy: OutOfRange) -> None:
    limits, name = ValueRange(negative_zero=False), TableName("public", "t")
    cases: dict[str, tuple[Column, str]] = {
        "-0": (column_of(pg_types.FLOAT4), "0"),
        "-0.0": (column_of(pg_types.FLOAT8), "0"),
        "{-0,NULL,1.5,-1e-300,NaN}": (column_of(1022), "{0,NULL,1.5,-1e-300,NaN}"),
        "(-0,1)": (column_of(pg_types.POINT), "(0,1)"),
        "((-0,1),(2,-0))": (column_of(pg_types.POLYGON), "((0,1),(2,0))"),
        "[-0,1]": (Column("c", PgType(70_004, "vector", "public"), 2), "[0,1]"),
    }
    for text, (plain, zero) in cases.items():
        column = retyped(plain, {"out_of_range": policy.value}, is_key=False, value_range=limits)
        values = load(pa.array([zero, text, None]).slice(1), column, name)
        values.validate(full=True)
        assert repr(values.to_pylist()) == repr(load(pa.array([zero, None]), plain, name).to_pylist())
        assert "-0.0" in repr(load(pa.array([text]), plain, name).to_pylist())


def column_of(oid: int) -> Column:
    pg_type = builtin(oid)
    assert pg_type is not None
    return Column("c", pg_type)


@given(st.lists(st.none() | numbers(), max_size=3), st.integers(1, 38), st.data())
def test_a_number_is_exactly_itself_or_refused(texts: list[str | None], precision: int, data: st.DataObject) -> None:
    """Arrow alone keeps the last 128 bits of what has more than 38 digits."""
    scale = data.draw(st.integers(0, precision))
    values = [None if text is None else EXACT.create_decimal(text) for text in texts]
    wider = [value for value in values if value is not None and not fits(value, precision, scale)]
    modifier = numeric_modifier(precision, scale)
    if wider:
        with pytest.raises(
            ValueOutOfRange, match=r"column c of table public\.t holds a number with more digits than D"
        ):
            loaded(texts, pg_types.NUMERIC, modifier)
    else:
        assert loaded(texts, pg_types.NUMERIC, modifier).to_pylist() == values


@given(st.lists(st.none() | numbers(), max_size=3), st.integers(0, 38))
def test_digits_beyond_those_that_were_counted_are_told(texts: list[str | None], scale: int) -> None:
    """Where another DECIMAL may hold them, the table is copied again."""
    pg_type = builtin(pg_types.NUMERIC)
    assert pg_type is not None
    column = Column("c", pg_type, numeric_modifier(38, scale), fraction_digits=scale)
    each = [digits_in(text) for text in texts if text is not None]
    most = max((one.whole + one.fraction for one in each), default=0)
    whole, fraction = (max((getattr(one, part) for one in each), default=0) for part in ("whole", "fraction"))
    if whole <= 38 - scale and fraction <= scale:
        loaded = load(pa.array(texts, pa.string()), column, TableName("public", "t")).to_pylist()
        assert loaded == [None if text is None else EXACT.create_decimal(text) for text in texts]
        return
    with pytest.raises(ValueOutOfRange if most > 38 else CopiedAgain) as caught:
        load(pa.array(texts, pa.string()), column, TableName("public", "t"))
    came = f"{fraction} digits? after" if fraction > scale else f"{whole} digits? before"
    assert re.search(f"a number of {most} digits" if most > 38 else came, str(caught.value))


def fits(value: Decimal, precision: int, scale: int) -> bool:
    unscaled = EXACT.scaleb(value, scale)
    return unscaled == EXACT.to_integral_value(unscaled) and EXACT.abs(unscaled) < 10**precision


LAST = 2**63 - 2
LONGEST = (2**31 - 1, 2**31 - 1, (2**63 - 1) // 1000 * 1000)
CASES: dict[str, tuple[int, int, list[str | None], list[Any], list[Any]]] = {
    "decimal": (
        pg_types.NUMERIC,
        numeric_modifier(5, 2),
        ["NaN", "1.5000000", None, "Infinity", "-Infinity"],
        [None, Decimal("1.50"), None, None, None],
        [None, Decimal("1.50"), None, Decimal("999.99"), Decimal("-999.99")],
    ),
    "double": (
        pg_types.FLOAT8,
        -1,
        ["Infinity", "1" + "0" * 400, None, "-1" + "0" * 309, "2"],
        [float("inf"), None, None, None, 2.0],
        [float("inf"), 1.7976931348623157e308, None, -1.7976931348623157e308, 2.0],
    ),
    "timestamp": (
        pg_types.TIMESTAMP,
        -1,
        ["294276-12-31 00:00:00", None, "294247-01-10 04:00:54.775807", "infinity", "1970-01-01 00:00:00.000001"],
        [None, None, None, 2**63 - 1, 1],
        [LAST, None, LAST, 2**63 - 1, 1],
    ),
    "interval": (
        pg_types.INTERVAL,
        -1,
        ["infinity", "P1D", None, "-infinity", "PT2562048H", "PT-2562048H"],
        [None, (0, 1, 0), None, None, None, None],
        [LONGEST, (0, 1, 0), None, tuple(-part for part in LONGEST), (0, 0, LONGEST[2]), (0, 0, -LONGEST[2])],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_out_of_range_is_refused_null_or_the_nearest_value(name: str) -> None:
    oid, modifier, texts, nulled, clamped = CASES[name]
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds") as caught:
        loaded(texts, oid, modifier)
    assert "types.out_of_range: null (or clamp)" in (caught.value.hint or "")
    for policy, expected in ((OutOfRange.NULL, nulled), (OutOfRange.CLAMP, clamped)):
        found = loaded(texts, oid, modifier, policy)
        assert (found.cast(pa.int64()) if name == "timestamp" else found).to_pylist() == expected
    with pytest.raises(ValueOutOfRange, match="is not a value of type"):
        loaded(["nonsense", "infinity"], oid, modifier, OutOfRange.NULL)


def test_a_destination_may_hold_less() -> None:
    """As BigQuery does: years 1 to 9999 without infinity, times before 24:00, intervals of 10,000 years."""
    nested = "{infinity,2024-02-29,NULL,10000-01-01}"
    cases: dict[int, tuple[list[str | None], list[Any], list[Any]]] = {
        pg_types.DATE: (["-infinity", None, "9999-12-31"], [None, None, 2_932_896], [-719_162, None, 2_932_896]),
        1182: ([nested], [[None, 19_782, None, None]], [[2_932_896, 19_782, None, 2_932_896]]),
        pg_types.TIMESTAMP: (["294276-12-31 00:00:00", None], [None, None], [(2_932_896 + 1) * DAY - 1, None]),
        pg_types.TIME: (["24:00:00", "23:59:59.999999"], [None, DAY - 1], [DAY - 1, DAY - 1]),
        pg_types.INTERVAL: (
            ["P10001Y", "P-3660001D", None, "infinity", "P10000Y"],
            [None, None, None, None, (120_000, 0, 0)],
            [(120_000, 0, 0), (0, -3_660_000, 0), None, (120_000, 3_660_000, LONGEST[2]), (120_000, 0, 0)],
        ),
    }
    for oid, (texts, nulled, clamped) in cases.items():
        pg_type = builtin(oid)
        assert pg_type is not None
        for policy, expected in ((OutOfRange.NULL, nulled), (OutOfRange.CLAMP, clamped)):
            column = Column("c", pg_type, out_of_range=policy, value_range=RANGE)
            values: Any = load(pa.array(texts, pa.string()), column, TableName("public", "t"))
            numbers = {pg_types.DATE: pa.int32(), 1182: pa.list_(pa.int32()), pg_types.INTERVAL: values.type}
            assert values.cast(numbers.get(oid, pa.int64())).to_pylist() == expected
