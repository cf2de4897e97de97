"""Where the watch over the catalog meets what else moves a table: kept changes, failed copies, names, processes."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from etl_core.batch import WatermarkMove, WriteBatch
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.replication.prepare import Preparation
from etl_core.replication.table_errors import failed_update, kept_update
from etl_core.source.connection import Connection
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

T = TableName("public", "t")


@pytest.fixture
def two(lab: Lab) -> Lab:
    """Tables t and o, both configured by name."""
    for table in ("t", "o"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    tables = (T, TableName("public", "o"))
    lab.config = replace(lab.config, source=replace(lab.config.source, tables=tables))
    return lab


def keep_changes(pipeline: Watched) -> TableStatus:
    """t stops with an error; its changes are kept from here on, as when a batch of it was refused."""
    status = pipeline.find(T)
    kept = pipeline.source.keep_changes(status.table_id)
    assert kept is not None
    watermark = pipeline.destination.positions().tables[status.table_id]
    lsn = max(watermark, kept.confirmed_lsn)
    pipeline.destination.write(WriteBatch((), {status.table_id: WatermarkMove(watermark, lsn)}, None))
    error = TableError("refused", table=str(T))
    update = kept_update(status, error, kept.slot, lsn, 1 << 30, timedelta(minutes=1))
    return pipeline.store.transition(status, TableState.ERRORED, update)


def look(pipeline: Watched) -> TableStatus:
    with pipeline.source.connect("look") as connection:
        pipeline.watch.look_now(connection)
    return pipeline.find(T)


def test_kept_changes_with_a_gap_are_not_gone_on_with(two: Lab) -> None:
    pipeline = two.synced()
    slot = keep_changes(pipeline).sync_slot
    pipeline.close()
    two.execute("INSERT INTO t VALUES (2)")
    two.execute("DROP PUBLICATION lab_pub")
    two.execute("INSERT INTO t VALUES (3)")
    pipeline = two.pipeline()
    assert pipeline.find(T).state is TableState.INIT
    pipeline.sync()
    two.assert_equal(pipeline)
    assert slot not in two.slots()


def test_a_copy_that_fails_after_a_gap_waits_for_its_time(two: Lab) -> None:
    pipeline = two.synced()
    two.execute("ALTER PUBLICATION lab_pub DROP TABLE t")
    assert look(pipeline).state is TableState.ERRORED
    two.execute("ALTER PUBLICATION lab_pub ADD TABLE t")
    status = pipeline.store.transition(look(pipeline), TableState.DATA_SYNC)
    update = failed_update(TableError("its copy failed", table=str(T)), 1, timedelta(hours=1))
    pipeline.store.transition(status, TableState.ERRORED, update)
    status = look(pipeline)
    assert (status.state, status.attempts) == (TableState.ERRORED, 1)


def test_what_another_process_has_just_copied_stays(two: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for its turn does not judge by what it saw before."""
    wait = Preparation._wait_for_turn
    waited: list[Preparation] = []

    def after_another(preparation: Preparation, connection: Connection) -> None:
        waited.append(preparation)
        if len(waited) == 1:
            assert len(two.pipeline().sync()) == 2
        wait(preparation, connection)

    monkeypatch.setattr(Preparation, "_wait_for_turn", after_another)
    pipeline = two.pipeline()
    assert {status.state for status in pipeline.store.tables()} == {TableState.FINISHED_COPY}
    two.assert_equal(pipeline)
