"""Schema changes: the steps they are made of, which are carried forward, which are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableId, TableName
from etl_core.schema.alterations import (
    AddColumn,
    Alteration,
    ChangeKey,
    ChangeType,
    DropColumn,
    RenameColumn,
    RenameTable,
    alterations,
    check_carried,
    origins,
)
from etl_core.schema.pg_types import builtin, format_type
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


INT, BIGINT, TEXT, VARCHAR = known(23), known(20), known(25), known(1043)


def table(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(TableId(7), TableName("public", "t"), columns, key)


def numeric(precision: int, scale: int) -> int:
    """The modifier of numeric(precision, scale)."""
    return ((precision << 16) | scale) + 4


def carried(old: TableSchema, new: TableSchema) -> tuple[Alteration, ...]:
    steps = alterations(old, new)
    check_carried(old, new, steps)
    return steps


ID = Column("id", INT, nullable=False, attnum=1)
A = Column("a", TEXT, attnum=2)
B = Column("b", VARCHAR, 24, attnum=3)


def test_nothing_changed() -> None:
    changed_elsewhere = replace(table(ID, replace(A, nullable=False)), replica_identity=ReplicaIdentity.FULL)
    assert not alterations(table(ID, A), changed_elsewhere)
    assert not alterations(table(ID, A), table(A, ID))


def test_added_and_dropped() -> None:
    assert alterations(table(ID, A), table(ID, B)) == (DropColumn(A), AddColumn(B))
    assert alterations(table(ID), table(ID, A, B)) == (AddColumn(A), AddColumn(B))
    assert alterations(table(ID, A, B), table(ID)) == (DropColumn(A), DropColumn(B))


def test_dropped_and_added_again_under_its_name() -> None:
    again = Column("a", BIGINT, attnum=9)
    assert alterations(table(ID, A), table(ID, again)) == (DropColumn(A), AddColumn(again))
    same_type = replace(A, attnum=9)
    assert alterations(table(ID, A), table(ID, same_type)) == (DropColumn(A), AddColumn(same_type))


def test_renamed() -> None:
    z, swapped = replace(A, name="z"), (replace(A, name="b"), replace(B, name="a"))
    assert carried(table(ID, A, B), table(ID, z, B)) == (RenameColumn(A, z),)
    assert carried(table(ID, A, B), table(ID, *swapped)) == (RenameColumn(A, swapped[0]), RenameColumn(B, swapped[1]))
    another = replace(A, attnum=4)
    assert carried(table(ID, A, B), table(ID, z, another, B)) == (RenameColumn(A, z), AddColumn(another))
    uid = replace(ID, name="uid")
    assert carried(table(ID, A), table(uid, A, key=("uid",))) == (RenameColumn(ID, uid),)


def test_renamed_table() -> None:
    before, after = table(ID), replace(table(ID), name=TableName("other", "renamed"))
    assert carried(before, after) == (RenameTable(before.name, after.name),)
    assert str(carried(before, after)[0]) == f"the table was renamed from {before.name} to other.renamed"


def test_a_name_that_another_column_has_now_is_not_taken_for_the_one_it_had() -> None:
    z, unnumbered = replace(A, name="z"), replace(A, attnum=0)
    assert alterations(table(ID, A), table(ID, z, unnumbered)) == (RenameColumn(A, z), AddColumn(unnumbered))
    assert origins({"a": 2, "b": 0}, [z, unnumbered, B]) == {"z": "a", "b": "b"}


def test_another_key() -> None:
    assert carried(table(ID, A, B), table(ID, A, B, key=("id", "a"))) == (ChangeKey(("id",), ("id", "a")),)
    uid = replace(ID, name="uid")
    assert carried(table(ID, A), table(uid, A, key=("a",))) == (RenameColumn(ID, uid), ChangeKey(("id",), ("a",)))


NUMERIC = known(1700)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Column("v", VARCHAR, 9), Column("v", VARCHAR, 24)),
        (Column("v", VARCHAR, 9), Column("v", TEXT)),
        (Column("v", TEXT), Column("v", VARCHAR)),
        (Column("v", NUMERIC, numeric(10, 2)), Column("v", NUMERIC, numeric(14, 2))),
        (Column("v", NUMERIC, numeric(10, 2)), Column("v", NUMERIC)),
        (Column("v", known(1114), 3), Column("v", known(1114))),
        (Column("v", PgType(50_000, "code", "public", TypeKind.DOMAIN, VARCHAR, 9)), Column("v", TEXT)),
    ],
    ids=lambda column: format_type(column),
)
def test_types_that_grow_keep_their_values(before: Column, after: Column) -> None:
    old, new = (table(ID, replace(column, attnum=2)) for column in (before, after))
    assert carried(old, new) == (ChangeType(old.columns[1], new.columns[1]),)
    rewritten = replace(new, columns=(ID, replace(new.columns[1], fill_known=False)))
    with pytest.raises(CopiedAgain, match=r"column v changed from .*written anew"):
        carried(old, rewritten)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Column("v", NUMERIC, numeric(10, 2)), Column("v", NUMERIC, numeric(14, 3))),
        (Column("v", NUMERIC, numeric(10, 2)), Column("v", NUMERIC, numeric(8, 2))),
        (Column("v", NUMERIC), Column("v", NUMERIC, numeric(14, 2))),
        (Column("v", known(650)), Column("v", known(869))),  # a cidr of one address is printed with its mask
        (Column("v", known(1042), 9), Column("v", known(1042), 24)),
        (Column("v", INT), Column("v", known(26))),  # -1 is 4294967295 as an oid
        (Column("v", INT), Column("v", BIGINT)),
    ],
    ids=lambda column: format_type(column),
)
def test_types_whose_values_may_read_otherwise_are_copied_again(before: Column, after: Column) -> None:
    with pytest.raises(CopiedAgain, match=r"column v changed from .*cannot be applied"):
        carried(table(ID, replace(before, attnum=2)), table(ID, replace(after, attnum=2)))


def test_without_attribute_numbers_only_a_clear_case_is_carried() -> None:
    unnumbered = replace(A, attnum=0)
    assert not carried(table(ID, A), table(ID, unnumbered))
    assert carried(table(ID), table(ID, unnumbered)) == (AddColumn(unnumbered),)
    with pytest.raises(CopiedAgain, match=r"column a \(text\) is gone and z \(text\) is new"):
        carried(table(ID, unnumbered), table(ID, replace(unnumbered, name="z")))
    with pytest.raises(CopiedAgain, match=r"column a \(text\) is gone and z \(int8\) is new"):
        carried(table(ID, unnumbered), table(ID, Column("z", BIGINT)))  # renamed, and its type changed


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (table(ID, replace(A, type=BIGINT), B), "column a changed from text to int8"),
        (
            table(*(replace(column, fill_known=False) for column in (ID, A, B))),
            "which of them its rows are of can no longer be told",
        ),
        (table(ID, A, replace(B, attnum=5, fill_known=False)), "column b came, and the WAL does not hold"),
        (table(ID, A, B, key=()), r"the key changed from \(id\) to none"),
        (table(ID, A, B, Column("c", INT, attnum=4), key=("id", "c")), r"the key changed from \(id\) to \(id, c\)"),
        (
            replace(table(ID, A, B, key=("a",)), replica_identity=ReplicaIdentity.FULL),
            r"the key changed from \(id\) to \(a\), and with its replica identity",
        ),
        (table(replace(ID, attnum=5), A, B), "key column id was dropped and added again"),
        (table(A, B, key=()), "the key changed"),
    ],
)
def test_refused(new: TableSchema, message: str) -> None:
    with pytest.raises(CopiedAgain, match=message) as raised:
        carried(table(ID, A, B), new)
    assert raised.value.table == "public.t"
    assert "public.t" in str(raised.value)
    assert raised.value.hint is not None
    assert raised.value.hint == COPIED_AGAIN


def test_a_type_that_was_replaced_under_its_name_is_not_said_to_be_itself() -> None:
    mood, other = (PgType(oid, "mood", "public", TypeKind.ENUM) for oid in (50_001, 50_002))
    with pytest.raises(CopiedAgain, match=r"from the type public\.mood to another type of that name"):
        carried(table(ID, Column("m", mood, attnum=2)), table(ID, Column("m", other, attnum=2)))
