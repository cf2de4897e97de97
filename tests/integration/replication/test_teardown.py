"""A teardown drops what the pipeline made, where it made it: a name proves nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etl_core.config import StateConfig
from etl_core.errors import SourceChanged, SourceUnavailable
from etl_core.identifiers import TableName
from etl_core.replication.other_slots import examine_other_slots
from etl_core.source.finding import Severity
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database, Postgres, create_database
from tests.integration.replication.conftest import Lab

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline

A = TableName("public", "a")


@pytest.fixture
def pipeline(lab: Lab) -> Pipeline:
    """One table; the pipeline has created its publication, and has nothing open."""
    lab.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    lab.config = replace(lab.config, source=replace(lab.config.source, tables=(A,)))
    pipeline = lab.synced()
    pipeline.close()
    return pipeline


@pytest.fixture
def elsewhere(postgres: Postgres) -> Iterator[Database]:
    """Another database, where somebody else has a publication of the same name."""
    other = create_database(postgres)
    other.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION lab_pub FOR TABLE a")
    yield other
    other.drop()


def publications(database: Database) -> list[str]:
    return [name for (name,) in database.execute("SELECT pubname FROM pg_publication")]


def test_on_another_cluster_nothing_is_dropped(lab: Lab, pipeline: Pipeline) -> None:
    """The same server stands for it: what the store remembers is another."""
    store = pipeline.store
    identity = store.source_identity()
    assert identity is not None
    store.save_source_identity(replace(identity, system_identifier="7000000000000000001"))
    [slot] = store.owned_slots()
    store.record_slot(slot.name, None, "7000000000000000001")
    [left] = pipeline.plan_teardown().left
    for said in (slot.name, "lab_pub", "7000000000000000001", str(identity.address), "pg_drop_replication_slot"):
        assert said in left
    assert pipeline.teardown() == []
    assert lab.slots() == {slot.name}
    assert publications(lab.database) == ["lab_pub"]
    assert store.source_identity() is None


def test_a_source_out_of_reach_keeps_everything_and_it_is_said(lab: Lab, pipeline: Pipeline) -> None:
    lab.config = replace(lab.config, source=replace(lab.config.source, dsn="postgresql://nobody@127.0.0.1:1/nowhere"))
    with lab.unprepared() as moved, pytest.raises(SourceUnavailable, match=pipeline.source.main_slot) as refused:
        moved.teardown()
    assert lab.database.name in str(refused.value)
    assert pipeline.store.source_identity() is not None


def test_on_another_database_its_publication_stays(lab: Lab, pipeline: Pipeline, elsewhere: Database) -> None:
    lab.config = replace(lab.config, source=replace(lab.config.source, dsn=elsewhere.dsn))
    with lab.unprepared() as moved:
        plan = moved.plan_teardown()
        assert [slot.name for slot in plan.slots] == [pipeline.source.main_slot]  # slots are the cluster's
        assert not plan.drops_publication
        assert lab.database.name in plan.left[0]
        moved.teardown()
    assert publications(elsewhere) == publications(lab.database) == ["lab_pub"]
    assert lab.slots() == set()


def test_a_publication_that_a_person_made_again_stays(lab: Lab, pipeline: Pipeline) -> None:
    lab.execute("DROP PUBLICATION lab_pub; CREATE PUBLICATION lab_pub FOR TABLE a")
    pipeline.teardown()
    assert publications(lab.database) == ["lab_pub"]
    assert lab.slots() == set()


def test_what_a_killed_copy_has_staged_goes_too(lab: Lab, pipeline: Pipeline) -> None:
    staging = lab.path.with_name(lab.path.name + ".staging") / lab.config.pipeline / "16400"
    staging.mkdir(parents=True)
    (staging / "0.arrow").write_bytes(b"rows")
    pipeline.teardown()
    pipeline.close()
    assert [file.name for file in lab.path.parent.iterdir() if file.name.startswith("lab.duckdb")] == ["lab.duckdb"]


def test_the_slot_of_a_renamed_pipeline_is_told_of(
    lab: Lab, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    lab.config = replace(lab.config, pipeline="renamed_" + lab.config.pipeline, destination=lab.config.destination)
    with caplog.at_level(logging.WARNING, "etl_core"), lab.unprepared() as renamed:
        renamed.prepare()
        renamed.prepare()
        renamed.teardown()
    [told] = [record.getMessage() for record in caplog.records if pipeline.source.main_slot in record.getMessage()]
    assert f"SELECT pg_drop_replication_slot('{pipeline.source.main_slot}')" in told
    assert lab.slots() == {pipeline.source.main_slot}


def test_a_renamed_pipeline_is_told_of_the_slot_that_it_left(
    lab: Lab, pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = pipeline.source.main_slot
    drop = f"SELECT pg_drop_replication_slot('{left}')"
    state = StateConfig(f"sqlite:///{tmp_path / 'renamed.db'}")
    renamed = lab.pipeline(pipeline="renamed", state=state)  # which prepares it
    told = [record.message for record in caplog.records if drop in record.message]
    (finding,) = examine_other_slots("renamed", renamed.source, renamed.store)
    assert (finding.severity, finding.check, finding.sql) == (Severity.WARNING, "slots", drop)
    assert told == [f"{finding.message}: {drop}"]
    renamed.prepare()  # as after each lost connection
    assert len([record for record in caplog.records if drop in record.message]) == 1
    lab.execute(drop)
    assert examine_other_slots("renamed", renamed.source, renamed.store) == []
    renamed.teardown()


def test_a_reset_keeps_the_tables_and_begins_with_another_slot(lab: Lab, pipeline: Pipeline) -> None:
    lab.execute(f"SELECT pg_drop_replication_slot('{pipeline.source.main_slot}')")
    lab.execute("INSERT INTO a VALUES (2)")
    with lab.unprepared() as decided:
        with pytest.raises(SourceChanged, match="is gone"):
            decided.prepare()
        [estimate] = decided.copy_estimates(decided.store.tables())
        assert (estimate.table.name, estimate.rows) == (A, 1)
        assert estimate.seconds is not None
        assert decided.reset() == [f"replication slot {pipeline.source.main_slot}"]
        decided.reset()  # a crash may have it begin again
        assert decided.find(A).state is TableState.INIT
        assert [move.to_state for move in decided.store.history(decided.find(A).table_id)].count(TableState.READY) == 1
    assert publications(lab.database) == ["lab_pub"]
    lab.assert_equal(lab.synced())
    with lab.unprepared() as decided:
        decided.teardown()
    assert publications(lab.database) == [], "it is still this pipeline's"


class Killed(BaseException):
    """The process ends here: nothing of the engine handles it."""


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("source", "drop_owned_slot"),
        ("store", "transition"),
        ("destination", "forget"),
        ("destination", "discard_staging"),
        ("store", "forget_source"),
    ],
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_reset_that_was_killed_is_repeated_and_nothing_streams_in_between(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, part: str, method: str, is_done: bool
) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)")  # not streamed: only a copy may bring them
    work = getattr(getattr(pipeline, part), method)

    def killed(_: object, *arguments: object) -> None:
        if is_done:
            work(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(getattr(pipeline, part)), method, killed)
        with pytest.raises(Killed):
            pipeline.reset()
    pipeline.close()
    if not lab.slots() and (part, method, is_done) != ("store", "forget_source", True):
        with lab.unprepared() as next_process, pytest.raises(SourceChanged, match="is gone"):
            next_process.prepare()
    with lab.unprepared() as again:
        again.reset()
    lab.assert_equal(lab.synced())


def test_a_reset_on_another_cluster_forgets_the_tables(lab: Lab, pipeline: Pipeline) -> None:
    store = pipeline.store
    identity = store.source_identity()
    assert identity is not None
    store.save_source_identity(replace(identity, system_identifier="7000000000000000001"))
    [slot] = store.owned_slots()
    store.record_slot(slot.name, None, "7000000000000000001")
    assert pipeline.plan_teardown().is_elsewhere
    assert pipeline.reset() == []
    assert (list(store.tables()), store.source_identity()) == ([], None)
    assert lab.slots() == {slot.name}
