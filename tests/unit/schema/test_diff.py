"""Schema changes: which are carried forward, which are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableId, TableName
from etl_core.schema.diff import SchemaDiff, diff
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


INT, BIGINT, TEXT, VARCHAR = known(23), known(20), known(25), known(1043)


def table(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(TableId(7), TableName("public", "t"), columns, key)


ID = Column("id", INT, nullable=False, attnum=1)
A = Column("a", TEXT, attnum=2)
B = Column("b", VARCHAR, 24, attnum=3)


def test_nothing_changed() -> None:
    changed_elsewhere = replace(table(ID, replace(A, nullable=False)), replica_identity=ReplicaIdentity.FULL)
    assert diff(table(ID, A), changed_elsewhere) == SchemaDiff()
    assert not diff(table(ID, A), table(ID, A))


def test_added_and_dropped() -> None:
    assert diff(table(ID, A), table(ID, B)) == SchemaDiff(added=(B,), dropped=(A,))
    assert diff(table(ID), table(ID, A, B)) == SchemaDiff(added=(A, B))
    assert diff(table(ID, A, B), table(ID)) == SchemaDiff(dropped=(A, B))


def test_dropped_and_added_again_under_its_name() -> None:
    again = Column("a", BIGINT, attnum=9)
    assert diff(table(ID, A), table(ID, again)) == SchemaDiff(added=(again,), dropped=(A,))
    same_type = replace(A, attnum=9)
    assert diff(table(ID, A), table(ID, same_type)) == SchemaDiff(added=(same_type,), dropped=(A,))


def test_without_attribute_numbers_only_a_clear_case_is_carried() -> None:
    unnumbered = replace(A, attnum=0)
    assert not diff(table(ID, A), table(ID, unnumbered))
    assert diff(table(ID), table(ID, unnumbered)) == SchemaDiff(added=(unnumbered,))
    with pytest.raises(CopiedAgain, match=r"column a \(text\) is gone and z \(text\) is new"):
        diff(table(ID, unnumbered), table(ID, replace(unnumbered, name="z")))
    with pytest.raises(CopiedAgain, match=r"column a \(text\) is gone and z \(int8\) is new"):
        diff(table(ID, unnumbered), table(ID, Column("z", BIGINT)))  # renamed, and its type changed


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (table(ID, replace(A, type=BIGINT), B), "column a changed from text to int8"),
        (table(ID, A, replace(B, type_modifier=34)), r"column b changed from varchar\(20\) to varchar\(30\)"),
        (table(ID, replace(A, name="z"), B), r"column a \(text\) was renamed to z \(text\)"),
        (table(ID, replace(A, name="b"), replace(B, name="a")), r"was renamed"),
        (table(ID, replace(A, name="z"), replace(A, attnum=4), B), r"column a \(text\) was renamed to z"),
        (table(ID, A, B, key=()), r"the key changed from \(id\) to none"),
        (table(ID, A, B, key=("id", "a")), r"the key changed from \(id\) to \(id, a\)"),
        (table(replace(ID, attnum=5), A, B), r"key column id \(int4\) was dropped and added again \(int4\)"),
        (table(A, B, key=()), "the key changed"),
    ],
)
def test_refused(new: TableSchema, message: str) -> None:
    with pytest.raises(CopiedAgain, match=message) as raised:
        diff(table(ID, A, B), new)
    assert raised.value.table == "public.t"
    assert "public.t" in str(raised.value)
    assert raised.value.hint is not None
    assert raised.value.hint == COPIED_AGAIN


def test_a_type_that_was_replaced_under_its_name_is_not_said_to_be_itself() -> None:
    mood, other = (PgType(oid, "mood", "public", TypeKind.ENUM) for oid in (50_001, 50_002))
    with pytest.raises(CopiedAgain, match=r"from the type public\.mood to another type of that name"):
        diff(table(ID, Column("m", mood, attnum=2)), table(ID, Column("m", other, attnum=2)))
