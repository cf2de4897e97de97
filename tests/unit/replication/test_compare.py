"""Comparing two scans: equal is said only of equal rows, and differing rows are named by their keys."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import Stopped
from etl_core.identifiers import TableName
from etl_core.replication import compare as comparing
from etl_core.replication.compare import Scan, Sink, compare, scan_of
from etl_core.replication.content_hash import hash_column, hash_prefixes, hash_rows

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


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.list_(pa.int64()), [1]),
        (pa.struct([pa.field("a", pa.int64())]), {"a": 1}),
        (pa.map_(pa.string(), pa.string()), [("a", None)]),
        (pa.list_(pa.float32(), 2), [1.0, 2.0]),
    ],
)
def test_a_key_that_cannot_be_sorted_is_named(kind: pa.DataType, value: object) -> None:
    rows = pa.table({"key": pa.array([value], kind), "v": [1]})
    result = compare(TABLE, ("key",), scan(rows), scan(rows.slice(0, 0)))
    assert [(one.first, one.rows) for one in result.ranges] == [(str(value), 1)]


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


def test_a_row_that_is_there_twice_is_extra_and_named() -> None:
    result = compare(TABLE, ("id",), scan(numbered(*range(100))), scan(numbered(*range(100), 7, 7)))
    assert (result.missing, result.extra, result.changed) == (0, 2, 0)
    assert {(r.first, r.last) for r in result.ranges} == {("7", "7")}


def test_what_does_not_fit_at_once_is_fetched_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 5_000
    monkeypatch.setattr(comparing, "_MATCHED_BYTES", rows * 24 // 4)
    passes: list[bool] = []
    source, destination = numbered(*range(rows)), numbered(*range(10, rows + 5), changed=2_000)
    result = compare(TABLE, ("id",), scan(source), scan(destination), passes.append)
    assert (result.missing, result.extra, result.changed) == (10, 5, 1)
    assert result.problem is None
    assert passes == [False, True]
    passes.clear()
    result = compare(TABLE, ("id",), scan(source), scan(numbered()), passes.append)
    assert result.missing == rows
    assert sum(keys.rows for keys in result.ranges) == rows
    assert passes == [False, True, True, True, True, True]
    monkeypatch.setattr(comparing, "_MATCHES", 2)
    result = compare(TABLE, ("id",), scan(source), scan(numbered()))
    assert 0 < result.missing < rows
    assert result.problem is not None
    assert "parts were examined" in result.problem


def test_long_keys_count_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_MATCHED_BYTES", 100 << 10)
    monkeypatch.setattr(comparing, "_MATCHES", 1)
    keys = pa.table({"id": [f"{n:1000}" for n in range(1000)]})
    result = compare(TABLE, ("id",), scan(keys), scan(keys.slice(0, 0)))
    assert 50 < result.missing <= 100  # 100 kB of keys of 1,000 bytes


def test_both_sides_are_read_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=300)

    def meeting(sink: Sink) -> None:
        both.wait()  # one after the other would break it
        for batch in numbered(1, 2).to_batches():
            sink(batch)

    assert compare(TABLE, ("id",), meeting, meeting).is_equal


@pytest.mark.parametrize("is_source_broken", [True, False])
def test_an_error_of_one_side_ends_the_other(*, is_source_broken: bool) -> None:
    has_failed = threading.Event()
    closed: list[bool] = []

    def broken() -> Iterator[pa.RecordBatch]:
        try:
            raise OSError("broken")
        finally:
            has_failed.set()
        yield

    def endless() -> Iterator[pa.RecordBatch]:
        try:
            while True:
                yield from numbered(*range(20_000)).to_batches()
                assert has_failed.wait(300)
        finally:
            closed.append(True)

    sides = [scan_of(broken), scan_of(endless)]
    gc.disable()  # what is closed is closed by the scan
    try:
        with pytest.raises(OSError, match="broken"):
            compare(TABLE, ("id",), sides[not is_source_broken], sides[is_source_broken])
    finally:
        gc.enable()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("compare")]


def test_a_stop_that_one_side_hears_ends_both() -> None:
    def stopped() -> Iterator[pa.RecordBatch]:
        raise Stopped("stopped")
        yield

    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            yield from numbered(*range(20_000)).to_batches()

    with pytest.raises(Stopped, match="stopped"):
        compare(TABLE, ("id",), scan_of(endless), scan_of(stopped))


def test_small_batches_are_put_together_up_to_a_number_of_bytes() -> None:
    sizes: list[int] = []
    scan(numbered(*range(40_000)), 100)(lambda rows: sizes.append(rows.num_rows))
    assert sum(sizes) == 40_000
    assert len(sizes) == 3
    sizes.clear()
    megabytes = pa.table({"v": ["x" * (1 << 20)] * 4})
    scan(megabytes, 1)(lambda rows: sizes.append(rows.num_rows))
    assert sizes == [1, 1, 1, 1]


VALUES = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(), min_size=2, max_size=6)),
    st.tuples(st.just(pa.binary()), st.lists(st.none() | st.binary(), min_size=2, max_size=6)),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=6)),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans(), min_size=2, max_size=6)),
    st.tuples(
        st.just(pa.list_(pa.string())),
        st.lists(st.none() | st.lists(st.none() | st.text(max_size=3), max_size=4), min_size=2, max_size=6),
    ),
    st.tuples(
        st.just(pa.map_(pa.string(), pa.string())),
        st.lists(
            st.none() | st.lists(st.tuples(st.text(max_size=2), st.none() | st.text(max_size=2)), max_size=3),
            min_size=2,
            max_size=6,
        ),
    ),
    st.tuples(
        st.just(pa.list_(pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.int16(), 2))]))),
        st.lists(
            st.none()
            | st.lists(
                st.none()
                | st.fixed_dictionaries(
                    {
                        "a": st.none() | st.integers(0, 2),
                        "b": st.none() | st.lists(st.integers(0, 1), min_size=2, max_size=2),
                    }
                ),
                max_size=3,
            ),
            min_size=2,
            max_size=6,
        ),
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


LENGTHS = [*range(40), 255, 256, 257, 263, 264, 511, 512, 513, 5000, 70_000]


def letters(length: int, first: int = 0) -> bytes:
    return bytes((first + 31 * n + n // 251) % 256 for n in range(length))


def test_a_text_hashes_alike_wherever_it_lies() -> None:
    values = [letters(length) for length in LENGTHS]
    alone = [hash_column(pa.array([value], pa.binary()))[0] for value in values]
    assert len(set(alone)) == len(values)
    for shift in range(9):  # at each place in a word, at the buffer's beginning and at its end
        shifted = pa.array([letters(shift, 7), *values], pa.binary())
        assert hash_column(shifted).tolist()[1:] == alone
        assert hash_column(shifted[::-1]).tolist()[:-1] == alone[::-1]
    many = pa.array(values * 500, pa.binary())
    assert hash_column(many).tolist() == alone * 500


@pytest.mark.parametrize("length", [length for length in LENGTHS if length])
def test_each_byte_of_a_text_counts_and_where_it_is(length: int) -> None:
    value = letters(length)
    places = {*range(min(length, 70)), *range(max(0, length - 70), length), 255, 256, 257} & {*range(length)}
    others = [value[:place] + bytes([value[place] ^ bit]) + value[place + 1 :] for place in places for bit in (1, 128)]
    others += [value + b"\0", value[:-1], b"\0" + value]
    if length > 8:
        others += [value[8:] + value[:8], value[1:] + value[:1]]
    if length > 512:
        others += [value[256:512] + value[:256] + value[512:]]
    hashes = hash_column(pa.array(sorted({value, *others}), pa.binary())).tolist()
    assert len(set(hashes)) == len(hashes) > len(places)


def test_zeros_of_different_length_differ() -> None:
    hashes = hash_column(pa.array([b"\0" * length for length in range(1000)], pa.binary())).tolist()
    assert len(set(hashes)) == 1000


def test_long_lists_count_each_element_and_its_place() -> None:
    numbers = list(range(50_000))
    swapped = [*numbers[:-2], numbers[-1], numbers[-2]]
    array = pa.array([numbers, swapped, numbers[:-1], None, [], numbers], pa.list_(pa.int64()))
    hashes = hash_column(array).tolist()
    assert hashes[0] == hashes[5]
    assert len(set(hashes)) == 5


def test_a_key_is_hashed_as_it_is_alone() -> None:
    [rows] = numbered(*range(40_000)).to_batches()
    key, content = hash_prefixes(rows.columns, [1, 2], rows.num_rows)
    assert key.tolist() == hash_column(rows.column("id")).tolist()
    assert content.tolist() == hash_rows(rows.columns, rows.num_rows).tolist()


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
