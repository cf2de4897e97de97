"""A source or a destination that is not what it was is refused with an explanation, and nothing is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from etl_core.errors import SourceChanged
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.pipeline import Pipeline
from etl_core.state.store import ReplicationProgress
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import create_database, temporary_postgres
from tests.integration.replication.conftest import Lab


@pytest.fixture
def pipeline(lab: Lab) -> Pipeline:
    """Two tables, streaming, with a change after the copy."""
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int)")
    lab.execute("INSERT INTO a SELECT i, i FROM generate_series(1, 10) i; INSERT INTO b SELECT * FROM a")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("UPDATE a SET n = 0 WHERE id < 5")
    lab.caught_up(pipeline)
    return pipeline


def slot_dropped(lab: Lab, _: Pipeline) -> None:
    lab.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^etl_lab'"
        " AND database = current_database()"
    )


def slot_created_again(lab: Lab, pipeline: Pipeline) -> None:
    slot_dropped(lab, pipeline)
    lab.execute("INSERT INTO a VALUES (100, 100)")
    lab.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [pipeline.source.main_slot])


def slot_read_by_someone_else(lab: Lab, pipeline: Pipeline) -> None:
    lab.execute("INSERT INTO a VALUES (100, 100)")
    lab.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [pipeline.source.main_slot])


def another_cluster(_: Lab, pipeline: Pipeline) -> None:
    identity = pipeline.store.source_identity()
    assert identity is not None
    pipeline.store.save_source_identity(replace(identity, system_identifier="7000000000000000001"))


def another_timeline(_: Lab, pipeline: Pipeline) -> None:
    identity = pipeline.store.source_identity()
    assert identity is not None
    pipeline.store.save_source_identity(replace(identity, timeline=identity.timeline + 1))


def restored_to_an_earlier_point(_: Lab, pipeline: Pipeline) -> None:
    pipeline.store.save_progress(ReplicationProgress(Lsn(pipeline.current_lsn() + (1 << 40))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (slot_dropped, "is gone"),
        (slot_created_again, "created again"),
        (slot_read_by_someone_else, "read by someone else"),
        (another_cluster, "another PostgreSQL cluster"),
        (another_timeline, "on timeline"),
        (restored_to_an_earlier_point, "restored to an earlier point"),
    ],
)
def test_another_source_is_refused(
    lab: Lab, pipeline: Pipeline, change: Callable[[Lab, Pipeline], None], said: str
) -> None:
    lab._until_released(pipeline)  # the server may take a moment to see that the stream has ended
    change(lab, pipeline)
    before = (pipeline.store.tables(), pipeline.store.progress(), pipeline.destination.positions(), lab.slots())
    with pytest.raises(SourceChanged, match=said) as refused:
        lab.pipeline()
    assert "etl teardown" in str(refused.value.hint)
    assert before == (pipeline.store.tables(), pipeline.store.progress(), pipeline.destination.positions(), lab.slots())
    # As the hint says.
    pipeline.teardown()
    lab.execute("DELETE FROM b WHERE id = 1")
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.assert_equal(pipeline)


def test_an_older_destination_stops_the_tables(lab: Lab, pipeline: Pipeline) -> None:
    pipeline.close()
    shutil.copy(lab.path, lab.path.with_suffix(".old"))
    lab.execute("INSERT INTO a VALUES (100, 100)")
    lab.caught_up(pipeline)
    pipeline.close()
    shutil.copy(lab.path.with_suffix(".old"), lab.path)

    lab.execute("INSERT INTO a VALUES (101, 101)")
    pipeline = lab.caught_up(lab.pipeline())
    for status in pipeline.store.tables():
        assert status.state is TableState.ERRORED, status
        assert "restored or replaced" in str(status.hint)
    pipeline.sync([TableName("public", "a"), TableName("public", "b")])
    lab.assert_equal(pipeline)
    lab.execute("INSERT INTO a VALUES (102, 102)")
    lab.assert_equal(lab.pipeline())


def test_a_copy_older_than_the_tables_snapshot_stops_that_table(lab: Lab, pipeline: Pipeline) -> None:
    pipeline.close()
    shutil.copy(lab.path, lab.path.with_suffix(".old"))
    pipeline.sync([TableName("public", "b")])  # no batch of the stream is written after it
    lab.caught_up(pipeline)
    pipeline.close()
    shutil.copy(lab.path.with_suffix(".old"), lab.path)
    pipeline = lab.caught_up(lab.pipeline())
    assert {status.name.name: status.state for status in pipeline.store.tables()} == {
        "a": TableState.READY,
        "b": TableState.ERRORED,
    }
    pipeline.sync([TableName("public", "b")])
    lab.assert_equal(pipeline)


def test_a_slot_that_somebody_else_made_is_left_alone(lab: Lab) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY)")
    lab.publish()
    slot = f"etl_{lab.config.pipeline}"
    lab.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    with pytest.raises(SourceChanged, match="did not create it") as refused:
        lab.pipeline()
    assert slot in str(refused.value.hint)
    assert lab.slots() == {slot}
    # As the hint says.
    lab.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    lab.execute("INSERT INTO a VALUES (1)")
    lab.assert_equal(lab.synced())


def test_an_invalidated_slot_is_refused(tmp_path: Path) -> None:
    with temporary_postgres(
        settings={"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    ) as server:
        lab = Lab(create_database(server), tmp_path)
        with closing(lab):
            lab.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
            lab.publish()
            pipeline = lab.synced()
            lab.execute("INSERT INTO a VALUES (2)")
            for _ in range(4):
                lab.execute("SELECT pg_logical_emit_message(false, 'fill', 'x'), pg_switch_wal()")
            lab.execute("CHECKPOINT")
            before = (pipeline.store.tables(), pipeline.store.progress(), pipeline.destination.positions())
            with pytest.raises(SourceChanged, match="has invalidated replication slot") as refused:
                lab.pipeline()
            assert "max_slot_wal_keep_size" in str(refused.value.hint)
            assert before == (pipeline.store.tables(), pipeline.store.progress(), pipeline.destination.positions())
            assert lab.rows("SELECT id FROM public.a") == [(1,)]
            pipeline.teardown()
            lab.assert_equal(lab.synced())
