"""Initial syncs on Celery: two workers with a queue each, Redis between them, the state in PostgreSQL."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster.resources import PostgresReplicationResource
from tests.orchestration.syncing import at_source, content, slots, state, sync

pytest.importorskip("dagster_celery", reason="dagster-celery is not installed: pip install 'dagster-celery[redis]'")
if shutil.which("redis-server") is None:
    pytest.skip("redis-server is not installed: apt-get install redis-server", allow_module_level=True)

from tests.orchestration import celery_location

TABLES = tuple(table for tables in celery_location.QUEUES.values() for table in tables)
PATIENCE = 300.0


@dataclass
class Celery:
    """Redis and the workers, by queue."""

    config: Path
    environment: dict[str, str]
    workers: dict[str, subprocess.Popen[bytes]]

    def run(self, job: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """A run of a job of `celery_location`, beside the block."""
        command = [sys.executable, "-m", "tests.orchestration.celery_location", job, str(self.config)]
        return running(command, self.config.with_name("run.log"), self.environment)


@pytest.fixture
def pipeline(
    replication: PostgresReplicationResource, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PostgresReplicationResource:
    """The pipeline of `celery_location`: four tables, its state in the source's server."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute("CREATE TABLE items AS SELECT g AS id, g::text AS v FROM generate_series(1, 300) g")
        connection.execute("ALTER TABLE items ADD PRIMARY KEY (id)")
        connection.execute("ALTER PUBLICATION shop_pub ADD TABLE items")
    monkeypatch.setenv("ETL_TEST_NAME", replication.name)
    monkeypatch.setenv("ETL_TEST_STATE", database.dsn)
    monkeypatch.setenv("ETL_TEST_DUCKDB", replication.destination.options()["path"])
    monkeypatch.setenv("ETL_TEST_REACHED", str(tmp_path / "reached"))
    return celery_location.replication()


@pytest.fixture
def celery(pipeline: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path) -> Iterator[Celery]:
    """Redis and a worker for each queue, that load what the environment describes."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))  # a socket's path is short
        socket = directory / "redis.sock"
        stack.enter_context(
            running(
                ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(directory)],
                directory / "log",
            )
        )
        until(socket.exists, "redis-server did not begin", directory / "log")
        broker = f"redis+socket://{socket}"
        config = tmp_path / "celery.yaml"
        # Nested as in a run's configuration: a flat file is ignored without a word.
        config.write_text(yaml.safe_dump({"execution": {"config": {"broker": broker, "backend": broker}}}))
        logs = {queue: tmp_path / f"{queue}.log" for queue in celery_location.QUEUES}
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(instance.root_directory),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        start = ["dagster-celery", "worker", "start", "-A", "dagster_celery.app", "-y", str(config)]
        workers = {
            queue: stack.enter_context(
                running(
                    [*start, "-n", queue, "-q", queue, "--", "--concurrency", "2"],
                    log,
                    environment,
                )
            )
            for queue, log in logs.items()
        }
        for log in logs.values():
            until(lambda log=log: " ready." in log.read_text(), "a worker did not begin", log)  # type: ignore[misc]
        yield Celery(config, environment, workers)


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process beside the block, in a group of its own that ends with it."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(happened: Callable[[], bool], failure: str, log: Path) -> None:
    """Looks again and again, as a process that is not ours tells nobody."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{failure}: {log.read_text() if log.exists() else ''}"
        time.sleep(0.05)


def test_two_workers_copy_different_tables(
    pipeline: PostgresReplicationResource, celery: Celery, instance: dg.DagsterInstance, database: Database
) -> None:
    with celery.run("job") as run:
        assert run.wait(PATIENCE) == 0, celery.config.with_name("run.log").read_text()
    assert steps_by_worker(celery, instance) == {queue: set(tables) for queue, tables in celery_location.QUEUES.items()}
    for table in TABLES:
        assert content(pipeline, table) == at_source(database, table)
        assert state(pipeline, TableName("public", table)) is TableState.FINISHED_COPY
    assert slots(database) == [f"etl_{pipeline.name}"]


def steps_by_worker(celery: Celery, instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """The tables that each worker's processes copied."""
    [run] = instance.get_runs()
    queues = {worker.pid: queue for queue, worker in celery.workers.items()}  # each leads a process group
    found: dict[str, set[str]] = {queue: set() for queue in queues.values()}
    for record in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START):
        event = record.get_dagster_event()
        assert event.pid is not None
        found[queues[os.getpgid(event.pid)]].add(str(event.step_key).rsplit("__", 1)[-1])
    return found


def test_a_worker_is_killed_in_the_middle_of_a_copy(
    pipeline: PostgresReplicationResource, celery: Celery, instance: dg.DagsterInstance, database: Database
) -> None:
    reached = Path(os.environ["ETL_TEST_REACHED"])
    with celery.run("held_job"):
        until(reached.exists, "no copy began", celery.config.with_name("run.log"))
        for worker in celery.workers.values():
            kill(worker)
    # The run knows nothing of it, as Celery tells nobody that a worker has died: a person materialises again.
    assert sync(pipeline, instance, *(TableName("public", table) for table in TABLES)).success
    for table in TABLES:
        assert content(pipeline, table) == at_source(database, table)
    assert slots(database) == [f"etl_{pipeline.name}"]
