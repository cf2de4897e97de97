"""Finding and gathering the values of tuples: every kind, every shape, in any order."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.decode import split as split_module
from etl_core.decode.split import Cells, RowChanges, gather, split
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.messages import (
    NULL,
    UNCHANGED,
    ColumnKind,
    Delete,
    Insert,
    TupleColumn,
    TupleData,
    Update,
)
from etl_core.protocol.segment import SEGMENT_BYTES, Frames, Segment
from etl_core.testing.source_model import build_frame

ID = TableId(16384)


def text(value: bytes) -> TupleColumn:
    return TupleColumn(ColumnKind.TEXT, value)


def lay(messages: list[Insert | Update | Delete]) -> Frames:
    segment = Segment()
    for message in messages:
        segment.append(build_frame(message))
    frames, _ = segment.split(len(messages), segment.size, Lsn(1), frozenset())
    return frames


def split_all(messages: list[Insert | Update | Delete], columns: int) -> tuple[Frames, RowChanges]:
    frames = lay(messages)
    return frames, split(frames, np.arange(len(messages)), columns)


def value(column: TupleColumn) -> bytes | None:
    return column.data


def is_unchanged(cells: Cells, count: int) -> list[bool]:
    return [False] * count if cells.unchanged is None else cells.unchanged.tolist()


def cells() -> st.SearchStrategy[TupleColumn]:
    return st.one_of(st.just(NULL), st.just(UNCHANGED), st.binary(max_size=12).map(text))


@st.composite
def messages(draw: st.DrawFn) -> tuple[int, list[Insert | Update | Delete]]:
    width = draw(st.integers(1, 5))
    data = st.lists(cells(), min_size=width, max_size=width).map(lambda row: TupleData(tuple(row)))
    # An old tuple never marks a value unchanged, and holds none for an unchanged one: that rule has its own test.
    old = st.just(TupleData((NULL,) * width))
    message = st.one_of(
        st.builds(Insert, st.none(), st.just(ID), data),
        st.builds(Update, st.none(), st.just(ID), st.none(), st.none(), data),
        st.builds(Update, st.none(), st.just(ID), old, st.none(), data),
        st.builds(Update, st.none(), st.just(ID), st.none(), old, data),
        st.builds(Delete, st.none(), st.just(ID), data, st.none()),
        st.builds(Delete, st.none(), st.just(ID), st.none(), data),
    )
    return width, draw(st.lists(message, max_size=8))


@given(messages(), st.lists(st.integers(0, 1000), max_size=12), st.sampled_from([1, 2, 3, 1000]))
@settings(max_examples=400)
def test_every_value_is_found_and_gathered_in_any_order(
    drawn: tuple[int, list[Insert | Update | Delete]], picks: list[int], block: int
) -> None:
    width, sent = drawn
    with patch.multiple(split_module, _BLOCK_ROWS=block, _BLOCK_BYTES=0):
        frames, changes = split_all(sent, width)
    assert bytes(changes.tag) == b"".join(type(message).__name__[:1].encode() for message in sent)
    new = [(row, message.new) for row, message in enumerate(sent) if not isinstance(message, Delete)]
    old = [
        (row, message.key or message.old)
        for row, message in enumerate(sent)
        if not isinstance(message, Insert) and (message.key or message.old)
    ]
    for tuples, expected in ((changes.new, new), (changes.old, old)):
        assert tuples.rows.tolist() == [row for row, _ in expected]
        assert len(tuples.columns) == width
        for number, column in enumerate(tuples.columns):
            values = [data.columns[number] for _, data in expected if data is not None]
            assert gather(frames.data, [column]).to_pylist() == [value(one) for one in values]
            assert is_unchanged(column, len(values)) == [one is UNCHANGED or one == UNCHANGED for one in values]
            chosen = [pick % len(values) for pick in picks] if values else []
            found = gather(frames.data, [column.take(np.array(chosen, np.int64))])
            found.validate(full=True)
            assert found.to_pylist() == [value(values[at]) for at in chosen]


def test_a_choice_of_the_frames() -> None:
    sent: list[Insert | Update | Delete] = [Insert(None, ID, TupleData((text(b"%d" % n),))) for n in range(10)]
    frames = lay(sent)
    changes = split(frames, np.array([2, 3, 7]), 1)
    assert gather(frames.data, [changes.new.columns[0]]).to_pylist() == [b"2", b"3", b"7"]


@pytest.mark.parametrize("columns", [1, 3])
def test_no_rows(columns: int) -> None:
    frames, changes = split_all([], columns)
    assert changes.tag.size == changes.new.rows.size == changes.old.rows.size == 0
    for column in (*changes.new.columns, *changes.old.columns):
        assert gather(frames.data, [column]).equals(pa.array([], pa.binary()))


def test_two_hundred_columns() -> None:
    def row(number: int) -> TupleData:
        return TupleData(tuple(NULL if (at + number) % 7 == 0 else text(b"%d/%d" % (number, at)) for at in range(200)))

    frames, changes = split_all([Insert(None, ID, row(number)) for number in range(20)], 200)
    for at, column in enumerate(changes.new.columns):
        assert gather(frames.data, [column]).to_pylist() == [row(number).columns[at].data for number in range(20)]


def test_a_segment_beyond_its_usual_size() -> None:
    large = b"x" * (SEGMENT_BYTES + 5)
    sent: list[Insert | Update | Delete] = [
        Insert(None, ID, TupleData((text(b"1"), text(b"small")))),
        Insert(None, ID, TupleData((text(b"2"), text(large)))),
        Insert(None, ID, TupleData((text(b"3"), text(b"")))),
    ]
    frames, changes = split_all(sent, 2)
    assert gather(frames.data, [changes.new.columns[1].take(np.array([2, 1, 0]))]).to_pylist() == [b"", large, b"small"]


def test_an_unchanged_value_is_taken_from_the_old_tuple_that_holds_it() -> None:
    full = Update(None, ID, None, TupleData((text(b"k"), text(b"old"))), TupleData((text(b"k"), UNCHANGED)))
    key = Update(None, ID, TupleData((text(b"long key"), NULL)), None, TupleData((UNCHANGED, UNCHANGED)))
    plain = Update(None, ID, None, None, TupleData((text(b"k"), UNCHANGED)))
    frames, changes = split_all([full, key, plain], 2)
    first, second = changes.new.columns
    assert gather(frames.data, [first]).to_pylist() == [b"k", b"long key", b"k"]
    assert first.unchanged is None
    assert gather(frames.data, [second]).to_pylist() == [b"old", None, None]
    assert is_unchanged(second, 3) == [False, True, True]
