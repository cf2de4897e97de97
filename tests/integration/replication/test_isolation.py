"""Nothing about one table stops another: it stops alone, says why, keeps its changes, and goes on by itself."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from etl_core.batch import WatermarkMove, WriteBatch
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import ConfigError, CopyNeeded, DestinationUnavailable, EtlError, SourceChanged, TableError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.pipeline import Pipeline
from etl_core.replication import stopped_tables
from etl_core.replication.active import ActiveTables
from etl_core.replication.source import KeptChanges
from etl_core.replication.stopped_tables import Keeping, StoppedTables
from etl_core.state.sql_store import open_store
from etl_core.state.store import ReplicationProgress, StateStore, TableStatus
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab

MakeTables = Callable[..., None]


class Refusing(DuckDBDestination):
    """Refuses the changes of table `bad`, until told otherwise."""

    is_refusing = True

    def write(self, batch: WriteBatch) -> None:
        parts = list(batch.parts)
        if self.is_refusing and any(part.schema.name.name == "bad" for part in parts):
            raise TableError("a value that cannot be written", table="public.bad")
        super().write(replace(batch, parts=parts))


def states_of(pipeline: Pipeline, table: str) -> list[TableState]:
    """Newest first."""
    status = pipeline.find(TableName("public", table))
    return [transition.to_state for transition in pipeline.store.history(status.table_id)]


@pytest.mark.parametrize("restarted", [False, True], ids=["while running", "at the next start"])
def test_a_table_that_failed_goes_on_where_it_stopped(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    churned("bad", "good", rows=20)
    lab.publish()
    lab.synced()
    if not restarted:
        monkeypatch.setattr(stopped_tables, "FIRST_RETRY", timedelta(0))
    destination = Refusing(lab.path, lab.config.pipeline)
    pipeline = lab.pipeline(destination=destination)
    copies = states_of(pipeline, "bad").count(TableState.DATA_SYNC)
    with lab.running(pipeline):
        lab.execute("UPDATE bad SET n = n + 1; UPDATE good SET n = n + 1")
        pipeline.observer.until_state("bad", TableState.ERRORED)
        # Passed over by the main stream, and kept; an unchanged value is still looked up in the rows that are there.
        lab.execute("UPDATE bad SET n = n + 1, id = id + 1000; DELETE FROM bad WHERE id < 1005")
        lab.execute("UPDATE good SET n = n + 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        status = pipeline.find(TableName("public", "bad"))
        assert status.sync_slot in lab.slots()
        if not restarted:
            destination.is_refusing = False
            pipeline.observer.until_ready("bad")
    if restarted:
        assert status.error == "a value that cannot be written"
        assert "kept on the source, up to 1,024 MiB" in (status.hint or "")
    lab.assert_equal()
    assert states_of(pipeline, "bad").count(TableState.DATA_SYNC) == copies


def test_a_table_that_keeps_nothing_is_copied_again(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    churned("bad", "good", rows=20)
    lab.publish()
    lab.synced()
    monkeypatch.setattr(stopped_tables, "FIRST_RETRY", timedelta(0))
    pipeline = lab.pipeline(
        destination=Refusing(lab.path, lab.config.pipeline), batch=replace(lab.config.batch, kept_wal=0)
    )
    with lab.running(pipeline):
        lab.execute("UPDATE bad SET n = n + 1; UPDATE good SET n = n + 1")
        pipeline.observer.until_state("bad", TableState.ERRORED)
        pipeline.observer.until_ready("bad")
    assert tuple(state for name, state in pipeline.observer.states if name == "bad")[2:4] == (
        TableState.DATA_SYNC,
        TableState.FINISHED_COPY,
    )
    lab.assert_equal()


NAME = TableName("public", "bad")


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    store.save_progress(ReplicationProgress(Lsn(100)))
    return store


def stopped_in(
    store: StateStore,
    *,
    confirmed: int = 90,
    kept_wal: int | None = 0,
    complete_up_to: Callable[[TableId, WatermarkMove], None] = lambda *_: None,
) -> tuple[StoppedTables, TableStatus]:
    """A READY table with the watermark 95, and what decides when it fails."""
    active = ActiveTables()
    status = store.add_table(TableId(7), NAME)
    for state in (TableState.DATA_SYNC, TableState.FINISHED_COPY, TableState.READY):
        status = store.transition(status, state)
    active._watermarks[TableId(7)] = Lsn(95)
    keeping = Keeping(
        lambda _: KeptChanges("kept", Lsn(confirmed)),
        complete_up_to,
        lambda _: kept_wal,
        1 << 20,
    )
    return StoppedTables(store, active, keeping), status


@pytest.mark.parametrize("kept_wal", [(1 << 20) + 1, None], ids=["too much", "lost"])
def test_a_table_whose_slot_is_beyond_the_budget_is_copied_again(store: StateStore, kept_wal: int | None) -> None:
    stopped, status = stopped_in(store, kept_wal=kept_wal)
    status = store.transition(status, TableState.ERRORED, stopped.stop(status, TableError("no", table=str(NAME))))
    assert (status.sync_slot, status.snapshot_lsn) == ("kept", 95)
    assert [(to, update.sync_slot) for _, to, update in stopped.due([status])] == [(TableState.INIT, None)]


def test_a_table_without_changes_for_long_is_complete_up_to_where_its_slot_begins(store: StateStore) -> None:
    moves: list[WatermarkMove] = []
    stopped, status = stopped_in(store, confirmed=98, complete_up_to=lambda _, move: moves.append(move))
    update = stopped.stop(status, TableError("no", table=str(NAME)))
    assert (update.sync_slot, update.snapshot_lsn) == ("kept", 95)
    assert moves == []  # not before that is stored
    for _ in range(2):
        stopped.complete(status.table_id)
    assert moves == [WatermarkMove(Lsn(95), Lsn(98))]


def test_the_stream_goes_on_if_the_destination_cannot_be_told(store: StateStore) -> None:
    """The table is copied again then: its slot begins beyond its watermark."""

    def refuse(_: TableId, move: WatermarkMove) -> None:
        raise DestinationUnavailable(f"not {move.new}")

    stopped, status = stopped_in(store, confirmed=98, complete_up_to=refuse)
    assert stopped.stop(status, TableError("no", table=str(NAME))).sync_slot == "kept"
    stopped.complete(status.table_id)


def test_within_the_budget_it_is_tried_at_a_start_and_then_when_its_time_comes(store: StateStore) -> None:
    stopped, status = stopped_in(store)
    status = store.transition(status, TableState.ERRORED, stopped.stop(status, TableError("no", table=str(NAME))))
    [(_, to, update)] = stopped.due([status])
    assert to is TableState.FINISHED_COPY
    assert (update.sync_slot, update.snapshot_lsn, update.attempts) == ("kept", 95, 1)
    assert stopped.due([status]) == []  # not before `retry_at`


@pytest.mark.parametrize("error", [CopyNeeded("of another type", table=str(NAME)), SourceChanged("the slot is lost")])
def test_nothing_is_kept_for_an_error_that_only_a_copy_cures(store: StateStore, error: EtlError) -> None:
    stopped, status = stopped_in(store)
    update = stopped.stop(status, error)
    assert update.sync_slot is None
    assert (update.retry_at is None) == isinstance(error, CopyNeeded)  # a person decides on the new shape


def test_a_slot_beyond_what_is_stored_is_not_trusted(store: StateStore) -> None:
    stopped, status = stopped_in(store, confirmed=101)
    assert stopped.stop(status, TableError("no", table=str(NAME))).sync_slot is None


def test_tables_that_the_source_no_longer_offers_stop_alone_and_come_back(lab: Lab) -> None:
    names = ("keep", "gone", "unlisted")
    for name in names:
        lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1)")

    def listing(*tables: str) -> None:
        listed = tuple(TableName("public", table) for table in tables)
        lab.config = replace(lab.config, source=replace(lab.config.source, tables=listed))

    listing(*names, "misspelt")
    with pytest.raises(ConfigError, match=r"no table public\.misspelt"):
        lab.pipeline()
    listing(*names)
    lab.synced().close()
    lab.execute("DROP TABLE gone")
    lab.execute("ALTER PUBLICATION lab_pub DROP TABLE unlisted")
    lab.execute("INSERT INTO keep VALUES (2); INSERT INTO unlisted VALUES (2)")
    pipeline = lab.pipeline()
    lab.assert_equal(pipeline, errored=("gone", "unlisted"))
    errors = {name: str(error) for name, error in pipeline.observer.errors.items()}
    assert "it was dropped" in errors["gone"]
    assert "no longer published by lab_pub" in errors["unlisted"]
    assert 'ADD TABLE ONLY "public"."unlisted"' in (pipeline.find(TableName("public", "unlisted")).hint or "")
    pipeline.close()
    lab.execute("CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (3)")
    lab.execute("ALTER PUBLICATION lab_pub ADD TABLE unlisted, gone")
    lab.assert_equal(lab.synced())
