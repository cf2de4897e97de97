"""Which columns a Relation message means: a table of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from etl_core.identifiers import TableId, TableName
from etl_core.protocol.messages import RelationColumn
from etl_core.replication.relation_columns import Known, as_known, identify
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, TableSchema

INT, TEXT, VARCHAR = 23, 25, 1043


def column(name: str, attnum: int, oid: int = INT, modifier: int = -1) -> Column:
    pg_type = builtin(oid)
    assert pg_type is not None
    return Column(name, pg_type, modifier, attnum=attnum)


def schema(*columns: Column) -> TableSchema:
    return TableSchema(TableId(7), TableName("public", "t"), columns, ("id",))


def sent(*columns: tuple[str, int] | str) -> list[RelationColumn]:
    """What a message has of columns that are (name, type), or int."""
    pairs = [(each, INT) if isinstance(each, str) else each for each in columns]
    return [RelationColumn(False, name, oid, -1) for name, oid in pairs]


ID, A, B = column("id", 1), column("a", 2), column("b", 3)
APPLIED = schema(ID, A, B)


@dataclass(frozen=True)
class Case:
    """A message, what the catalog has by then, and the numbers it means; None if they cannot be told."""

    message: Sequence[tuple[str, int] | str]
    catalog: Sequence[Column]
    numbers: tuple[int, ...] | None
    dropped: tuple[int, ...] = ()
    applied: TableSchema = APPLIED
    last: int | None = 3
    unaltered: tuple[int, ...] = ()
    has_files: bool = True


X, C = column("x", 2), column("c", 4)
PROVEN = {
    "renamed": Case(["id", "x", "b"], [ID, X, B], (1, 2, 3)),
    "not yet renamed": Case(["id", "a", "b"], [ID, X, B], (1, 2, 3)),
    "renamed twice, the first of them": Case(["id", "y", "b"], [ID, X, B], (1, 2, 3)),
    "swapped": Case(["id", "b", "a"], [ID, column("b", 2), column("a", 3)], (1, 2, 3)),
    "not yet swapped": Case(["id", "a", "b"], [ID, column("b", 2), column("a", 3)], (1, 2, 3)),
    "renamed, and its type changed since": Case(
        ["id", "x", "b"], [ID, column("x", 2, TEXT), B], (1, 2, 3), has_files=False
    ),
    "one came": Case(["id", "a", "b", "c"], [ID, A, B, C], (1, 2, 3, 4)),
    "one came and is called otherwise now": Case(["id", "a", "b", "d"], [ID, A, B, C], (1, 2, 3, 4)),
    "before one came": Case(["id", "a", "b"], [ID, A, B, C], (1, 2, 3)),
    "the old name was given to one that came": Case(["id", "x", "b", "a"], [ID, X, B, column("a", 4)], (1, 2, 3, 4)),
    "one went": Case(["id", "b"], [ID, B], (1, 3), dropped=(2,)),
    "before one went": Case(["id", "a", "b"], [ID, B], (1, 2, 3), dropped=(2,)),
    "one went, another was renamed": Case(["id", "a"], [ID, column("a", 3)], (1, 3), dropped=(2,)),
    "one went and one of another type came": Case(
        ["id", "a", ("c", TEXT)], [ID, A, column("c", 4, TEXT)], (1, 2, 4), dropped=(3,)
    ),
    "before one went and one of another type came": Case(
        ["id", "a", "b"], [ID, A, column("c", 4, TEXT)], (1, 2, 3), dropped=(3,)
    ),
    "one went before others that nobody altered": Case(["id", "b"], [ID, B, C], (1, 3), dropped=(2,), unaltered=(1, 3)),
    "one came behind others that nobody altered": Case(
        ["id", "b", "z"], [ID, B, C], (1, 3, 4), dropped=(2,), unaltered=(1, 3)
    ),
}
UNPROVEN = {
    "one went and one came: which is sent": Case(["id", "a", "c"], [ID, A, C], None, dropped=(3,), unaltered=(1, 2)),
    "dropped, added under its name, renamed": Case(["id", "b"], [ID, column("z", 4)], None, dropped=(2, 3)),
    "one came and was renamed, its name was given to another": Case(
        ["id", "d"], [ID, column("z", 4), column("d", 5)], None, applied=schema(ID)
    ),
    "one went, another took its name and lost it again": Case(
        ["id", "a", "d"], [ID, column("y", 3), column("d", 4), column("e", 5)], None, dropped=(2,)
    ),
    "another type, but every row was written anew": Case(
        ["id", "a", ("c", TEXT)], [ID, A, column("c", 4, TEXT)], None, dropped=(3,), has_files=False
    ),
    "text and varchar may be one column": Case(
        ["id", "a", ("c", VARCHAR)],
        [ID, A, column("c", 4, VARCHAR)],
        None,
        dropped=(3,),
        applied=schema(ID, A, column("b", 3, TEXT)),
    ),
    "one came and went, or not": Case(["id", "a", "b", "x"], [ID, A, B, column("c", 5)], None, dropped=(4,)),
    "more than there ever were": Case(["id", "a", "b", "x", "y"], [ID, A, B], None),
    "fewer than there must be": Case(["id", "a"], [ID, A, B], None),
    "a column that was not published": Case(["id", "p", "b"], [ID, A, B, column("p", 4)], None, last=4),
    "the base's numbers are not known": Case(
        ["id", "x", "b"], [ID, X, B], None, applied=schema(ID, replace(A, attnum=0), B)
    ),
    "no fingerprint": Case(["id", "x", "b"], [ID, X, B], None, last=None),
}


def known(case: Case) -> Known:
    return Known(case.applied, schema(*case.catalog), case.dropped, case.last, case.unaltered, case.has_files)


@pytest.mark.parametrize("case", PROVEN.values(), ids=PROVEN)
def test_there_is_one_way_only(case: Case) -> None:
    found = identify(sent(*case.message), known(case))
    assert found.is_proven
    assert tuple(column.attnum for column in found.columns) == case.numbers
    for column, message in zip(found.columns, sent(*case.message), strict=True):
        assert (column.name, column.type.oid, column.fill_known) == (message.name, message.type_oid, True)


@pytest.mark.parametrize("case", UNPROVEN.values(), ids=UNPROVEN)
def test_what_may_be_told_in_several_ways_is_not_told(case: Case) -> None:
    found = identify(sent(*case.message), known(case))
    assert not found.is_proven
    assert all(column.attnum == 0 for column in found.columns)


def test_a_message_that_says_what_is_known_needs_nothing_more() -> None:
    today = schema(ID, replace(A, comment="new"), B)
    found = as_known(sent("id", "a", "b"), Known(APPLIED, today))
    assert found is not None
    assert found.columns == today.columns
    for message in (["id", "a"], ["id", "x", "b"], ["id", "b", "a"], ["id", ("a", TEXT), "b"]):
        assert as_known(sent(*message), Known(APPLIED, today)) is None
    assert as_known(sent("id", "a", "b"), Known(APPLIED, schema(ID, column("a", 4), B))) is None
    gone = as_known(sent("id", "a", "b"), Known(APPLIED, None))
    assert gone is not None
    assert gone.columns == APPLIED.columns


def test_the_modifier_is_the_message_s() -> None:
    today = schema(ID, column("a", 2, VARCHAR, 24), B)
    before = schema(ID, column("a", 2, VARCHAR, 9), B)
    message = [*sent("id"), RelationColumn(False, "a", VARCHAR, 9), *sent("b")]
    for found in (as_known(message, Known(before, today)), identify(message, Known(before, today, (), 3))):
        assert found is not None
        assert [column.type_modifier for column in found.columns] == [-1, 9, -1]


def test_a_table_that_is_not_replicated_or_gone() -> None:
    found = identify(sent("id", "a", "z"), Known(None, APPLIED))
    assert [column.attnum for column in found.columns] == [1, 2, 0]
    assert not identify(sent("id", "a"), Known(APPLIED, None, (), 3)).is_proven


def test_a_thousand_columns_of_which_some_came_and_went() -> None:
    many = [column(f"c{number}", number) for number in range(1, 1001)]
    message = [one.name for one in many]
    case = Case(message, [*many, column("late", 1002)], None, dropped=(1001,), applied=schema(*many), last=1000)
    found = identify(sent(*message), known(case))
    assert [one.attnum for one in found.columns] == list(range(1, 1001))
