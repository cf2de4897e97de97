"""When a table is renamed without a row: the WAL has the last word, and a name is due once after each look."""

from __future__ import annotations

from dataclasses import replace

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.renames import Renames
from etl_core.testing.destination_tables import orders

ID = TableId(16_400)
OLD, NEW = TableName("public", "orders"), TableName("public", "sales")


def test_due_when_the_stream_has_passed_the_look_and_once_after_each() -> None:
    schema = orders()
    renames = Renames({ID: schema}.get)
    renames.noted({ID: OLD}, Lsn(100))
    assert not renames.is_due(Lsn(900))
    renames.noted({ID: NEW, TableId(7): NEW}, Lsn(200))
    assert not renames.is_due(Lsn(199))
    assert renames.is_due(Lsn(200))
    assert renames.take(Lsn(200)) == {ID: NEW}
    assert renames.take(Lsn(900)) == {}
    renames.noted({ID: NEW}, Lsn(300))  # it could not be written: tried again after the next look
    assert renames.take(Lsn(250)) == {ID: NEW}


def test_a_stream_that_is_behind_each_look_comes_to_the_first_that_had_the_name() -> None:
    renames = Renames({ID: orders()}.get)
    for lsn in (100, 200, 300, 400):
        renames.noted({ID: NEW}, Lsn(lsn))
    assert renames.take(Lsn(100)) == {ID: NEW}


def test_a_name_that_a_row_has_said_since_the_look_before_is_not_taken_back() -> None:
    """The transaction of a rename may be in the WAL and not yet in the catalog."""
    told = {ID: replace(orders(name="sales"), described_at=Lsn(150))}
    renames = Renames(told.get)
    renames.noted({ID: OLD}, Lsn(100))
    renames.noted({ID: OLD}, Lsn(160))
    assert renames.take(Lsn(900)) == {}
    renames.noted({ID: NEW}, Lsn(200))
    assert renames.take(Lsn(900)) == {}
    renames.noted({ID: OLD}, Lsn(300))  # renamed back, without a row
    assert renames.take(Lsn(900)) == {ID: OLD}


def test_a_table_put_aside_gets_the_name_it_has() -> None:
    told = {ID: replace(orders(), described_at=Lsn(150))}
    renames = Renames(told.get)
    renames.put_aside({ID})
    renames.noted({ID: OLD}, Lsn(100))
    assert renames.take(Lsn(900)) == {}  # the look is older than what a row has said
    renames.noted({ID: OLD}, Lsn(200))
    assert renames.take(Lsn(900)) == {ID: OLD}
    renames.put_aside(frozenset())
    renames.noted({ID: OLD}, Lsn(300))
    assert renames.take(Lsn(900)) == {}
