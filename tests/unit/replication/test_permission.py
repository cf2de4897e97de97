"""What was approved is exactly one change of exactly one table as it was."""

from __future__ import annotations

from dataclasses import replace

from etl_core.identifiers import TableId, TableName
from etl_core.schema.alterations import alterations
from etl_core.schema.change_id import change_id
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


INT, TEXT = known(23), known(25)
ID, A, B = Column("id", INT, attnum=1), Column("a", INT, attnum=2), Column("b", TEXT, attnum=3)
KINDS = (PgType(70001, "kind", "public"), PgType(70002, "kind", "public"))


def table(*columns: Column) -> TableSchema:
    return TableSchema(TableId(7), TableName("public", "t"), columns, ("id",))


def identified(before: TableSchema, after: TableSchema) -> str:
    return change_id(before, alterations(before, after))


def test_no_two_changes_are_alike() -> None:
    base = table(ID, A, B)
    seen = [
        identified(base, after)
        for after in (
            table(ID, A),
            table(ID, B),
            table(ID),
            table(ID, A, replace(B, name="c")),
            table(ID, A, B, Column("c", TEXT, attnum=4)),
            table(ID, A, B, Column("c", TEXT, attnum=5)),  # another one of that name came in between
            table(ID, A, replace(B, attnum=4)),  # dropped and added again
            *(table(ID, A, replace(B, type=kind)) for kind in KINDS),
            replace(base, key=("id", "a")),
        )
    ]
    seen += [
        identified(table(ID, A), base),
        identified(table(ID, replace(A, attnum=9), B), table(ID, B)),
    ]
    assert len(set(seen)) == len(seen)


def test_the_same_change_is_told_again_whatever_else_is_known_since() -> None:
    before, after = table(ID, A, B), table(ID, A)
    again = replace(after, comment="kept until 2030", columns=(ID, replace(A, nullable=False, fill_known=False)))
    assert identified(before, after) == identified(replace(before, described_at=None), again)
