"""Keys as numbers: equal if and only if the keys are, however long, short or odd their texts."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.decode.keys import key_texts, number_keys
from etl_core.decode.split import Cells
from etl_core.errors import PermanentError
from etl_core.protocol.segment import PADDING


def lay(texts: list[bytes | None], at: int) -> Cells:
    """The cells of texts that stand end to end from position `at` on."""
    ends = np.array(list(accumulate((len(text or b"") for text in texts), initial=at)), np.int32)
    null = np.array([text is None for text in texts], np.bool_)
    return Cells(ends[:-1], ends[1:], null if null.any() else None, None)


def number(*columns: list[Any], old: int = 0) -> list[int]:
    """The numbers of keys given column by column; the last `old` of them belong to old tuples."""
    split_at = len(columns[0]) - old
    data = np.frombuffer(b"".join(text or b"" for column in columns for text in column) + PADDING, np.uint8)
    pairs, at = [], 0
    for column in columns:
        cells = lay(column, at)
        at = int(cells.end[-1])
        pairs += key_texts(data, cells.take(np.arange(split_at)), cells.take(np.arange(split_at, len(column))))
    new, rest = number_keys(pairs)
    assert (len(new), len(rest)) == (split_at, old)
    return [*new.tolist(), *rest.tolist()]


# At most as many bytes as one word holds, as two do, and more; with bytes that a number drops at either end.
TEXTS = st.one_of(
    st.sampled_from([b"", b"\0", b"\0\0", b"a", b"a\0", b"\0a", b"ab", b"1234567", b"12345678", b"1234567\0"]),
    st.binary(max_size=7),
    st.sampled_from([b"12345678901234", b"1234567890123", b"12345678901235", b"2234567890123"]),
)
LONG = st.one_of(TEXTS, st.sampled_from([b"123456789012345", b"x" * 36, b"x" * 35 + b"y"]))


@given(
    st.tuples(st.integers(1, 3), st.sampled_from([TEXTS, LONG])).flatmap(
        lambda drawn: st.lists(st.tuples(*[drawn[1]] * drawn[0]), min_size=1, max_size=12)
    ),
    st.integers(0, 3),
)
@settings(max_examples=500)
def test_numbers_are_equal_if_and_only_if_the_keys_are(keys: list[tuple[bytes, ...]], old: int) -> None:
    numbers = number(*[list(column) for column in zip(*keys, strict=True)], old=min(old, len(keys)))
    assert len(set(zip(keys, numbers, strict=True))) == len(set(keys)) == len(set(numbers))
    assert 0 <= min(numbers) <= max(numbers) < len(keys)


@pytest.mark.parametrize("first", [10**6, 10**7 - 2500, 10**14 - 2500])
def test_keys_that_count_up_past_the_length_of_a_word(first: int) -> None:
    keys = [b"%d" % (first + n) for n in range(5000)]
    assert len(set(number(keys))) == 5000
    assert number([*keys, keys[7]], old=1)[-1] == number(keys)[7]


@pytest.mark.parametrize("width", [4, 20])
def test_sixteen_key_columns_of_all_different_values_do_not_overflow(width: int) -> None:
    count = 5000
    column = [b"%0*d" % (width, n) for n in range(count)]
    numbers = number(*[column[shift:] + column[:shift] for shift in range(16)])
    assert len(set(numbers)) == count
    assert min(numbers) >= 0


def test_a_null_in_a_key_is_refused() -> None:
    with pytest.raises(PermanentError, match="a key column holds NULL"):
        number([b"a", None])


def test_no_old_tuples_and_no_new_ones() -> None:
    nothing = pa.nulls(0, pa.binary())
    new, old = number_keys([(nothing, nothing)])
    assert new.size == old.size == 0
    assert number([b"1", b"2"], old=2) == [0, 1]
