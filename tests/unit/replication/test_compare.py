"""Comparing two scans: equal is said only of equal rows, and differing rows are named by their keys."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.identifiers import TableName
from etl_core.replication.compare import Scan, compare, scan_of
from etl_core.replication.content_hash import hash_column, hash_rows

TABLE = TableName("public", "t")


def scan(table: pa.Table, rows_per_batch: int = 1000) -> Scan:
    return scan_of(lambda: iter(table.to_batches(max_chunksize=rows_per_batch)))


def numbered(*numbers: int, changed: int | None = None) -> pa.Table:
    return pa.table({"id": pa.array(numbers, pa.int64()), "v": [f"v{n}" if n != changed else "other" for n in numbers]})


def test_order_and_batches_do_not_matter() -> None:
    result = compare(TABLE, ("id",), scan(numbered(*range(5000))), scan(numbered(*reversed(range(5000))), 7))
    assert result.is_equal
    assert (result.source_rows, result.destination_rows) == (5000, 5000)


def test_missing_extra_and_changed_rows_are_named() -> None:
    source, destination = numbered(*range(1, 3000)), numbered(*range(2, 3001), changed=500)
    result = compare(TABLE, ("id",), scan(source), scan(destination))
    assert not result.is_equal
    assert (result.missing, result.extra, result.changed) == (1, 1, 1)
    assert [(r.first, r.last, r.rows) for r in result.ranges] == [("1", "1", 1), ("500", "500", 1), ("3000", "3000", 1)]


def test_many_differences_become_a_few_ranges() -> None:
    result = compare(TABLE, ("id",), scan(numbered(*range(1000))), scan(numbered()))
    assert result.missing == 1000
    assert len(result.ranges) == 10
    assert (result.ranges[0].first, result.ranges[-1].last) == ("0", "999")


def test_an_empty_table_equals_an_empty_table_only() -> None:
    assert compare(TABLE, ("id",), scan(numbered()), scan(numbered())).is_equal
    assert not compare(TABLE, ("id",), scan(numbered()), scan(numbered(1))).is_equal


def test_without_a_key_rows_count_as_often_as_they_are_there() -> None:
    twice, thrice = numbered(1, 1, 2), numbered(1, 1, 1)
    result = compare(TABLE, (), scan(twice), scan(thrice))
    assert (result.missing, result.extra) == (1, 1)
    assert compare(TABLE, (), scan(twice), scan(numbered(2, 1, 1))).is_equal


VALUES = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(), min_size=2, max_size=6)),
    st.tuples(st.just(pa.binary()), st.lists(st.none() | st.binary(), min_size=2, max_size=6)),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=6)),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans(), min_size=2, max_size=6)),
    st.tuples(
        st.just(pa.list_(pa.string())),
        st.lists(st.none() | st.lists(st.none() | st.text(max_size=3), max_size=4), min_size=2, max_size=6),
    ),
)


@given(VALUES)
def test_values_hash_alike_exactly_if_they_are_alike(typed: tuple[pa.DataType, list[object]]) -> None:
    arrow_type, values = typed
    hashes = hash_column(pa.array(values, arrow_type)).tolist()
    for i, left in enumerate(values):
        for j, right in enumerate(values):
            assert (hashes[i] == hashes[j]) == (left == right)


@given(VALUES)
def test_a_slice_hashes_as_its_values_do(typed: tuple[pa.DataType, list[object]]) -> None:
    array = pa.array(typed[1], typed[0])
    assert hash_column(array.slice(1)).tolist() == hash_column(array).tolist()[1:]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["a", "bc"], ["ab", "c"]),
        ([None, "x"], ["x", None]),
        (["", None], [None, ""]),
    ],
)
def test_a_row_is_more_than_its_values_in_a_line(left: list[str | None], right: list[str | None]) -> None:
    one = hash_rows([pa.array([value], pa.string()) for value in left], 1)
    other = hash_rows([pa.array([value], pa.string()) for value in right], 1)
    assert one[0] != other[0]


def test_decimals_of_one_scale_hash_by_value() -> None:
    array = pa.array([Decimal("1.10"), Decimal("-1.10"), Decimal("1.10")], pa.decimal128(30, 2))
    hashes = hash_column(array).tolist()
    assert hashes[0] == hashes[2] != hashes[1]
