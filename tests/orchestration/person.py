"""Someone who uses a real `dagster dev`, for the tests of it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import psutil

from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import presence
from etl_dagster.testing import DagsterDev, dagster_dev

PATIENCE = 300.0
TABLES = ("orders", "customers", "notes")


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

    def events(self, run_id: str) -> list[str]:
        """The types of the run's events, as Dagster has stored them."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return [entry.dagster_event_type.value for entry in instance.all_logs(run_id) if entry.dagster_event_type]

    def evaluated(self, run_id: str) -> set[str]:
        """The names of the checks that the run evaluated."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.dagster_event for entry in entries if entry.dagster_event]
        return {event.asset_check_evaluation_data.check_name for event in found}

    def kills(self, run_id: str) -> None:
        """The run's process, found by its session's port on the source."""
        with self.replication.connect("test") as connection:
            [ends] = connection.execute(
                "SELECT client_port, inet_server_port() FROM pg_stat_activity WHERE application_name = %s",
                (f"etl_{self.replication.name}_{presence.role_of(run_id)}",),
            ).fetchall()
        # By both ends: to another server, of another test, one of the same port may lead.
        [pid] = {
            peer.pid
            for peer in psutil.net_connections("tcp")
            if peer.pid and peer.laddr and peer.raddr and (peer.laddr.port, peer.raddr.port) == ends
        }
        os.kill(pid, signal.SIGKILL)

    def streaming_run(self, dev: DagsterDev) -> str:
        """The run that reads the slot now."""

        def found() -> list[str]:
            with self.replication.connect("test") as connection:
                rows = connection.execute(
                    "SELECT application_name FROM pg_stat_activity a JOIN pg_locks l USING (pid)"
                    " WHERE l.locktype = 'advisory' AND l.granted AND application_name LIKE %s",
                    (f"etl_{self.replication.name}_turn_%",),
                ).fetchall()
            begins = [name.rsplit("_", 1)[1] for (name,) in rows]
            return [run["runId"] for run in dev.runs(self.stream_job) if run["runId"][:8] in begins]

        streaming: list[str] = []

        def streams() -> bool:
            streaming.extend(found())
            return bool(streaming)

        until(streams, "a run that streams")
        return streaming[0]


def until(happened: Callable[[], Any], what: str) -> None:
    """Waits, and looks ever less often: a look takes Dagster's web server, or DuckDB to open a file, 20 ms or more."""
    give_up_at = time.monotonic() + PATIENCE
    pause = 0.1
    while not happened():
        assert time.monotonic() < give_up_at, f"{what} did not happen"
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)
