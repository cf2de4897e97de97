"""What Dagster adds: from a commit to its visibility across hand-overs of the stream run, ticks, imports, growth.

A transaction counts as visible when the stream's position, stored after the destination is durable, has passed it;
the position is looked at every 10 ms, so the figures are a little too high rather than too low.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.growth import Stored, growth_per_hour, read_stored
from benchmarks.session import Result, Session
from etl_core.lsn import Lsn
from etl_core.state.sql_store import open_store
from etl_core.state.store import StateStore
from etl_dagster import names
from etl_dagster.testing import DagsterDev, dagster_dev

_DATABASE = "dagster"
_PIPELINE = "bench_dagster"
_SECONDS = 100
_PER_SECOND = 20
_LEASE = 20
_REPORT = 10
_LOOK = 0.01
_IMPORTS = 5

_Reached = tuple[int, float]
"""An LSN, and when it was reached."""


def orchestration(session: Session) -> Result:
    with session.server.connect("postgres") as connection:
        connection.execute(f"CREATE DATABASE {_DATABASE}")
    with session.server.connect(_DATABASE) as connection:
        connection.execute("CREATE TABLE ticks (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
        connection.execute("CREATE PUBLICATION bench_pub FOR TABLE ticks")
    directory = session.directory / "dagster"
    directory.mkdir()
    workspace = directory / "workspace.yaml"
    location = {"relative_path": str(Path(__file__).with_name("location.py")), "working_directory": str(Path.cwd())}
    workspace.write_text(json.dumps({"load_from": [{"python_file": location}]}))
    state = directory / "state.db"
    environment = {
        "BENCH_DSN": session.server.dsn(_DATABASE),
        "BENCH_STATE": f"sqlite:///{state}",
        "BENCH_DUCKDB": str(directory / "bench.duckdb"),
        "BENCH_LEASE": str(_LEASE),
        "BENCH_REPORT": str(_REPORT),
    }
    home = directory / "home"
    with patch.dict(os.environ, environment), dagster_dev(workspace, home) as dev:
        figures, details = _stream(session, dev, home, state)
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    details |= {"dagster_home_mb": size / 1e6, "state_mb": state.stat().st_size / 1e6}
    return Result(figures | {"import_etl_dagster_ratio": _import_ratio()}, details)


def _stream(session: Session, dev: DagsterDev, home: Path, state: Path) -> tuple[dict[str, float], dict[str, float]]:
    if dev.wait_run(dev.launch(names.sync_job_name(_PIPELINE)), 120) != "SUCCESS":
        raise RuntimeError(f"the initial sync failed; see {dev.log}")
    sensor, job = names.stream_sensor_name(_PIPELINE), names.stream_job_name(_PIPELINE)
    dev.start_sensor(sensor)
    with closing(open_store(f"sqlite:///{state}", _PIPELINE)) as store:
        before, after, commits, looks = _commit_and_look(session, store, lambda: read_stored(home, state))
    dev.stop_sensor(sensor)
    ticks = [tick["endTimestamp"] - tick["timestamp"] for tick in dev.ticks(sensor) if tick["endTimestamp"]]
    runs = dev.runs(job)
    events = dev.materializations("duckdb", "public", "ticks")
    for run in dev.runs(job, in_flight=True):
        dev.terminate(run["runId"])
        dev.wait_run(run["runId"], 60)
    at = np.array([seen for _, seen in looks])
    reached = np.array([lsn for lsn, _ in looks], np.uint64)
    visible = at[np.searchsorted(reached, np.array([lsn for lsn, _ in commits], np.uint64))]
    milliseconds = (visible - np.array([committed for _, committed in commits])) * 1000
    figures = {
        "dagster_latency_p50_ms": float(np.percentile(milliseconds, 50)),
        "dagster_latency_p99_ms": float(np.percentile(milliseconds, 99)),
        "sensor_tick_ms": statistics.median(ticks) * 1000,
        # The initial sync is one; a run that gives way reports what has come since its last report.
        "events_per_table_and_interval": (len(events) - 1) / (_SECONDS / _REPORT + len(runs) - 1),
    }
    growth = growth_per_hour(before, after)
    _say_growth(before, after, growth)
    details = {"hand_overs": len(runs) - 1, "max_ms": float(milliseconds.max()), "commits": len(commits)}
    return figures | growth, details


def _say_growth(before: Stored, after: Stored, growth: Mapping[str, float]) -> None:
    events, event_bytes, state_bytes = growth.values()
    print(
        f"growth per hour, extrapolated from {after.at - before.at:.0f} s of one table at {_PER_SECOND} commits/s,"
        f" a report every {_REPORT} s, a lease of {_LEASE} s ({after.runs - before.runs} runs began meanwhile):"
        f" {events:,.0f} events and {event_bytes:,.0f} bytes in Dagster's event storage,"
        f" {state_bytes:,.0f} bytes in our state store, in whole pages of 4,096",
        flush=True,
    )


def _commit_and_look(
    session: Session, store: StateStore, read: Callable[[], Stored]
) -> tuple[Stored, Stored, list[_Reached], list[_Reached]]:
    """What is stored before and after; the commits made once the stream runs, and the positions seen."""
    looks: list[_Reached] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK):
            progress = store.progress()
            if progress is not None and (not looks or progress.flushed_lsn > looks[-1][0]):
                looks.append((int(progress.flushed_lsn), time.monotonic()))

    looking = threading.Thread(target=look)
    looking.start()
    commits: list[_Reached] = []
    try:
        with session.server.connect(_DATABASE) as connection:

            def commit(number: int) -> int:
                connection.execute("INSERT INTO ticks VALUES (%s)", (number,))
                row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
                assert row is not None
                return int(Lsn.parse(row[0]))

            first = commit(-1)
            _until(lambda: bool(looks) and looks[-1][0] >= first)
            before = read()
            started = time.monotonic()
            for number in range(_SECONDS * _PER_SECOND):
                time.sleep(max(0.0, started + number / _PER_SECOND - time.monotonic()))
                commits.append((commit(number), time.monotonic()))
            _until(lambda: looks[-1][0] >= commits[-1][0])
            after = read()
    finally:
        stop.set()
        looking.join()
    return before, after, commits, looks


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError("the stream did not come to what was committed")
        time.sleep(0.05)


def _import_ratio() -> float:
    """Seconds to import etl_dagster's definitions, by those to import dagster; medians of processes in turn."""
    seconds: dict[str, list[float]] = {"dagster": [], "etl_dagster.definitions": []}
    for _ in range(_IMPORTS):
        for module, measured in seconds.items():
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            measured.append(float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    return statistics.median(seconds["etl_dagster.definitions"]) / statistics.median(seconds["dagster"])
