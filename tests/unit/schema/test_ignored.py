"""Changes that are ignored: what is kept, what has to wait, what is told; and that it comes back as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_core.schema.alterations import cannot_be_told
from etl_core.schema.change_id import take_over_id
from etl_core.schema.ignored import as_kept, ignored, ignoring, not_ignorable
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from tests.unit.schema.test_alterations import BIGINT, INT, TEXT, VARCHAR, known, numeric, table

ID, N, NOTE = (
    Column("id", INT, attnum=1),
    Column("n", known(1700), numeric(8, 2), attnum=2),
    Column("s", TEXT, attnum=3),
)
BEFORE = table(ID, N, NOTE)
ADDED = Column("c", INT, attnum=4, missing_value="5")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (table(ID, N, NOTE, ADDED), "column c (added)"),
        (table(ID, N), "column s (dropped)"),
        (table(ID, replace(N, name="m"), NOTE), "column n (renamed to m)"),
        (table(ID, replace(N, type_modifier=numeric(6, 2)), NOTE), "column n (numeric(8,2) changed to numeric(6,2))"),
        (table(ID, N, replace(NOTE, type=VARCHAR, type_modifier=9)), "column s (text changed to varchar(5))"),
        (table(replace(ID, name="s"), N, key=("s",)), "column s (dropped), column id (renamed to s)"),
    ],
)
def test_what_is_ignored_leaves_the_table_as_it_was(now: TableSchema, told: str) -> None:
    assert not not_ignorable(BEFORE, now)
    after = ignoring(BEFORE, now)
    assert ", ".join(ignored(after)) == told
    kept = as_kept(after)
    assert [(one.name, one.attnum, one.type, one.type_modifier) for one in kept.columns] == [
        (one.name, one.attnum, one.type, one.type_modifier) for one in BEFORE.columns
    ]
    assert kept.key == ("id",)
    assert ignoring(after, now) == after
    # A later change is of what was kept first, and what was ignored may come back to what it was.
    assert ignored(ignoring(after, replace(BEFORE, columns=(*now.columns, replace(ADDED, attnum=5)), key=now.key)))
    assert "dropped" in told or ignoring(after, BEFORE) == BEFORE


@pytest.mark.parametrize(
    ("now", "step"),
    [
        (table(ID, replace(N, type_modifier=numeric(9, 2)), NOTE), "n changed"),
        (table(replace(ID, type=BIGINT), N, NOTE), "id changed"),
        (table(ID, N, NOTE, key=("id", "n")), "the key changed"),
        (table(replace(ID, attnum=9), N, NOTE), "the key changed from (id) to (id)"),
        (table(ADDED, key=()), "was dropped"),
        (replace(table(ID, N, key=()), replica_identity=ReplicaIdentity.FULL), "column s (text) was dropped"),
    ],
)
def test_what_would_have_to_be_guessed_waits(now: TableSchema, step: str) -> None:
    assert any(step in str(one) for one in not_ignorable(BEFORE, now))
    after = ignoring(BEFORE, table(ID, N, NOTE, ADDED))
    assert any(step in str(one) for one in not_ignorable(after, now))


def test_a_table_that_nothing_is_ignored_of_is_the_very_same() -> None:
    assert as_kept(BEFORE) is BEFORE
    assert ignoring(BEFORE, BEFORE).kept is None
    assert ignored(BEFORE) == ()


def test_columns_that_cannot_be_told_are_not_taken_for_dropped() -> None:
    untold = cannot_be_told(table(replace(ID, attnum=0), replace(N, attnum=0)))
    assert ignoring(BEFORE, untold) == untold
    after = ignoring(BEFORE, table(ID, N, NOTE, ADDED))
    assert not any(column.fill_known for column in as_kept(ignoring(after, untold)).columns)


def test_what_is_taken_over_is_one_change_however_it_came() -> None:
    now, later = table(ID, N, NOTE, ADDED), table(ID, N, NOTE, ADDED, replace(ADDED, name="d", attnum=5))
    after = ignoring(BEFORE, now)
    assert take_over_id(after, after) == take_over_id(BEFORE, now) == take_over_id(after, now)
    assert take_over_id(after, later) == take_over_id(BEFORE, later) != take_over_id(BEFORE, now)
