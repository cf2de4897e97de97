"""A batch that fails with an error naming no table: the tables at fault are found, all others are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import DestinationError, Stopped
from etl_core.identifiers import TableId
from etl_core.replication.isolation import Group, find_failing

TABLES = [TableId(number) for number in range(1, 33)]


@given(st.sets(st.sampled_from(TABLES)))
def test_every_table_is_written_or_named(bad: set[TableId]) -> None:
    written: list[TableId] = []

    def write(group: Group) -> DestinationError | None:
        if bad & set(group):
            return DestinationError("refused")
        written.extend(group)
        return None

    failing = find_failing(TABLES, write, lambda: False)
    assert failing.keys() == bad
    assert sorted(written) == sorted(set(TABLES) - bad)


def test_one_table_is_found_in_few_writes() -> None:
    groups: list[Group] = []

    def write(group: Group) -> DestinationError | None:
        groups.append(group)
        return DestinationError("refused") if TABLES[20] in group else None

    assert find_failing(TABLES, write, lambda: False).keys() == {TABLES[20]}
    assert len(groups) == 10


def test_it_hears_a_stop() -> None:
    with pytest.raises(Stopped):
        find_failing(TABLES, lambda _: None, lambda: True)
