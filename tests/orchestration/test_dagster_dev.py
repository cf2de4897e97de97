"""A real `dagster dev`, used as a person uses it, and what happens to its processes and to the source meanwhile."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from etl_core.testing.postgres import Database, Postgres
from etl_dagster import names, presence
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.testing import DagsterDev, dagster_dev

PATIENCE = 120.0
TABLES = ("orders", "customers", "notes")

pytestmark = pytest.mark.timeout(600)


class Person:
    """Someone in front of Dagster's pages, with a terminal open on the source and on the destination."""

    def __init__(self, replication: PostgresReplicationResource, database: Database, home: Path) -> None:
        self.replication = replication
        self.database = database
        self.home = home
        self.noted = 0
        self.sync_job = names.sync_job_name(replication.name)
        self.stream_job = names.stream_job_name(replication.name)
        self.sensor = names.stream_sensor_name(replication.name)
        workspace = home.parent / "workspace.yaml"
        workspace.write_text(
            f"load_from: [{{python_file: {{relative_path: {Path(__file__).with_name('location.py')}, "
            f"location_name: tested, working_directory: {Path(__file__).parent.parent.parent}}}}}]\n"
        )
        self.workspace = workspace

    @contextlib.contextmanager
    def dagster(self, home: Path | None = None, lease: float = 900.0) -> Iterator[DagsterDev]:
        path = self.replication.destination.options()["path"]
        environment = {
            "TEST_PIPELINE": self.replication.name,
            "TEST_DSN": self.database.dsn,
            "TEST_STATE": self.replication.state.url,
            "TEST_DUCKDB": path,
            "TEST_LEASE": str(lease),
        }
        with dagster_dev(self.workspace, home or self.home, environment=environment) as dev:
            yield dev

    def copies(self, dev: DagsterDev) -> None:
        run_id = dev.launch(self.sync_job)
        assert dev.wait_run(run_id, PATIENCE) == "SUCCESS", dev.log.read_text()[-3000:]

    def notes(self, count: int = 5) -> None:
        for _ in range(count):
            self.noted += 1
            self.database.execute("INSERT INTO notes VALUES (%s, 'x')", [self.noted])
            self.database.execute("UPDATE orders SET n = n + 1 WHERE id <= 3")

    def sees_it(self) -> None:
        """Waits until the destination has every note."""
        until(lambda: self.count("notes") == self.noted, f"{self.noted} notes in the destination")

    def count(self, table: str) -> int:
        path = Path(self.replication.destination.options()["path"])
        with contextlib.suppress(duckdb.IOException), duckdb.connect(path, read_only=True) as destination:
            return int(destination.execute(f'SELECT count(*) FROM public."{table}"').fetchall()[0][0])  # noqa: S608
        return -1  # it is being written

    def proves_it(self) -> None:
        with self.replication.pipeline() as pipeline:
            comparisons = pipeline.verify()
        assert len(comparisons) == len(TABLES)
        assert all(comparison.is_equal for comparison in comparisons), comparisons

    def kills(self, run_id: str) -> None:
        """The run's process, found by its session's port on the source."""
        with self.replication.connect("test") as connection:
            [(port,)] = connection.execute(
                "SELECT client_port FROM pg_stat_activity WHERE application_name = %s",
                (f"etl_{self.replication.name}_{presence.role_of(run_id)}",),
            ).fetchall()
        [pid] = {peer.pid for peer in psutil.net_connections("tcp") if peer.laddr and peer.laddr.port == port}
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def streaming_run(self, dev: DagsterDev) -> str:
        """The run that reads the slot now."""

        def found() -> list[str]:
            with self.replication.connect("test") as connection:
                rows = connection.execute(
                    "SELECT application_name FROM pg_stat_activity a JOIN pg_locks l USING (pid)"
                    " WHERE l.locktype = 'advisory' AND l.granted AND application_name LIKE %s",
                    (f"etl_{self.replication.name}_run_%",),
                ).fetchall()
            begins = [name.rsplit("_", 1)[1] for (name,) in rows]
            return [run["runId"] for run in dev.runs(self.stream_job) if run["runId"][:8] in begins]

        streaming: list[str] = []
        until(lambda: streaming.extend(found()) or streaming, "a run that streams")
        return streaming[0]


def until(happened: Callable[[], Any], what: str) -> None:
    event = threading.Event()
    for _ in range(int(PATIENCE / 0.1)):
        if happened():
            return
        event.wait(0.1)
    raise AssertionError(f"{what} did not happen")


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
        again = dev.launch(person.sync_job, assets=[("duckdb", "public", "orders")])
        person.notes(20)
        assert dev.wait_run(again, PATIENCE) == "SUCCESS"
        person.notes()
        person.sees_it()
        person.proves_it()

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
    with person.dagster(lease=15.0) as dev:
        person.copies(dev)
        dev.start_sensor(person.sensor)
        first = person.streaming_run(dev)
        while person.streaming_run(dev) == first:
            person.notes(3)
        until(lambda: dev.status(first) == "SUCCESS", "the end of the first lease")
        person.sees_it()
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
