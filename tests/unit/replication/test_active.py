"""The active tables, step by step."""

from __future__ import annotations

from etl_core.batch import WatermarkMove
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.schema.pg_types import INT8, builtin
from etl_core.schema.table import Column, TableSchema

ID = TableId(16384)
INT8_TYPE = builtin(INT8)
assert INT8_TYPE is not None
SCHEMA = TableSchema(ID, TableName("public", "Orders"), (Column("id", INT8_TYPE),), ("id",))
WIDER = TableSchema(ID, SCHEMA.name, (*SCHEMA.columns, Column("more", INT8_TYPE)), ("id",))


def active_at(lsn: int) -> ActiveTables:
    active = ActiveTables()
    active.activate(ID, Lsn(lsn), SCHEMA)
    return active


def test_a_table_is_active_until_it_is_deactivated() -> None:
    active = active_at(10)
    assert ID in active
    assert active.watermarks() == {ID: 10}
    assert active.schema(ID) == SCHEMA
    assert active.named('public."Orders"') == ID
    active.deactivate(ID)
    active.deactivate(ID)
    assert ID not in active
    assert active.watermarks() == {}
    assert active.schema(ID) is None
    assert active.named('public."Orders"') is None


def test_a_write_moves_the_watermark() -> None:
    active = active_at(10)
    active.advance({ID: WatermarkMove(Lsn(10), Lsn(20)), TableId(7): WatermarkMove(Lsn(1), Lsn(2))})
    assert active.watermarks() == {ID: 20}


def test_a_write_that_ends_after_the_table_left_does_not_bring_it_back() -> None:
    active = active_at(10)
    active.deactivate(ID)
    active.advance({ID: WatermarkMove(Lsn(10), Lsn(20))})
    active.set_schema(WIDER)
    assert ID not in active
    assert active.schema(ID) is None


def test_a_write_that_ends_after_the_table_was_copied_again_leaves_the_new_watermark() -> None:
    active = active_at(10)
    active.deactivate(ID)
    active.activate(ID, Lsn(50), SCHEMA)
    active.advance({ID: WatermarkMove(Lsn(10), Lsn(20))})
    assert active.watermarks() == {ID: 50}


def test_the_schema_is_what_the_destination_was_brought_to() -> None:
    active = active_at(10)
    active.set_schema(WIDER)
    assert active.schema(ID) == WIDER


def test_watermarks_are_a_copy() -> None:
    active = active_at(10)
    active.watermarks()[ID] = Lsn(99)
    assert active.watermarks() == {ID: 10}
