"""A real `dagster dev`, used as a person uses it, and what happens to its processes and to the source meanwhile."""

from pathlib import Path

import pytest

from etl_core.testing.postgres import Database, Postgres
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.supervisor import START_GRACE
from tests.orchestration.person import PATIENCE, Person, until
from tests.orchestration.syncing import launchpad

ORDERS = ("duckdb", "public", "orders")
CHECKS = {"replication_lag", "table_state", "schema_matches", "equals_source"}

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def person(replication: PostgresReplicationResource, database: Database, tmp_path: Path) -> Person:
    return Person(replication, database, tmp_path / "home")


def test_the_whole_way_and_two_deaths_of_the_stream(person: Person) -> None:
    with person.dagster() as dev:
        person.copies(dev)
        dev.start_sensor(person.sensor)
        person.notes()
        person.sees_it()

        killed = person.streaming_run(dev)
        person.kills(killed)
        person.notes()
        person.sees_it()
        until(lambda: dev.status(killed) == "FAILURE", "the killed run's failure")

        terminated = person.streaming_run(dev)
        assert terminated != killed
        dev.terminate(terminated)
        person.notes()
        person.sees_it()
        until(lambda: dev.status(terminated) == "CANCELED", "the end of the terminated run")

        streaming = person.streaming_run(dev)
        again = dev.launch(person.sync_job, assets=[ORDERS], run_config=launchpad(full_refresh=True))
        person.notes(20)
        assert dev.wait_run(again, PATIENCE) == "SUCCESS"
        person.notes()
        person.sees_it()
        person.proves_it()

        # The page's button names all checks of what it materialises.
        page = dev.launch("__ASSET_JOB", assets=[ORDERS], checks=[(ORDERS, check) for check in CHECKS])
        assert dev.wait_run(page, PATIENCE) == "SUCCESS"
        assert person.evaluated(page) == CHECKS - {"equals_source"}
        told = [entry for each in dev.materializations(*ORDERS) for entry in each["metadataEntries"]]
        assert {"copy", "stream"} <= {entry.get("text") for entry in told if entry["label"] == "etl/brought_up_by"}

        preview = dev.preview(person.sensor)
        assert preview["error"] is None
        assert streaming[:8] in preview["skipReason"]
        dev.reload()
        person.notes()
        person.sees_it()
        assert dev.wait_run(dev.launch(names.check_job_name(person.replication.name)), PATIENCE) == "SUCCESS"
        assert person.streaming_run(dev) == streaming
        until(lambda: len(dev.materializations("duckdb", "public", "notes")) > 2, "reports of the stream")
        assert len(dev.runs(person.stream_job, in_flight=True)) == 1


def test_leases_change_hands_and_dagster_is_stopped_and_started(person: Person) -> None:
    with person.dagster(lease=1.5 * START_GRACE) as dev:  # a run without a session is thought of as dead by then
        person.copies(dev)
        dev.start_sensor(person.sensor)
        first = person.streaming_run(dev)
        while person.streaming_run(dev) == first:
            person.notes(3)
        until(lambda: dev.status(first) == "SUCCESS", "the end of the first lease")
        person.sees_it()
    assert "PIPELINE_SUCCESS" in person.events(first)
    assert "PIPELINE_FAILURE" not in person.events(first), "a run that gave way was reported dead by its successor"
    person.notes()
    with person.dagster() as dev:
        person.sees_it()
        person.notes()
        person.sees_it()
    person.proves_it()


def test_a_second_dagster_waits_and_says_so_and_a_source_that_is_away_is_named(
    person: Person, postgres: Postgres, tmp_path: Path
) -> None:
    with person.dagster() as dev:
        person.copies(dev)
        dev.start_sensor(person.sensor)
        person.streaming_run(dev)
        with person.dagster(home=tmp_path / "second") as second:
            second.start_sensor(person.sensor)
            until(
                lambda: any(
                    "another Dagster instance" in str(tick["skipReason"]) for tick in second.ticks(person.sensor)
                ),
                "the second instance's reason",
            )
            assert second.runs(person.stream_job) == []
        person.notes()
        person.sees_it()

        postgres.stop()
        until(
            lambda: any("cannot connect" in str(tick["skipReason"]) for tick in dev.ticks(person.sensor)),
            "the reason that the source is away",
        )
        with person.dagster(home=tmp_path / "third") as third:  # the location loads
            assert third.repository
        postgres.start()
        person.notes()
        person.sees_it()
        person.proves_it()
