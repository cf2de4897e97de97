"""What Dagster adds: from a commit to its visibility across hand-overs of the stream run, ticks, imports, events.

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
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency import RATES, load_name
from benchmarks.server import Kind
from benchmarks.session import Result, Session
from etl_core.lsn import Lsn
from etl_core.silence import WatchedConnection
from etl_core.state.sql_store import open_store
from etl_core.state.store import StateStore
from etl_dagster import names
from etl_dagster.testing import DagsterDev, dagster_dev

_PIPELINE = "bench_dagster"
_SECONDS = 100
"""Over each kind of connection, in equal parts at each rate."""
_LEASES = 5
_REPORTS = 10
"""How many leases and intervals of reports the seconds are."""
_LOOK = 0.01
_PATIENCE = 300.0


def orchestration(session: Session) -> Result:
    """At each rate over TCP and TLS; what is not latency is measured over the first of them."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    kinds = [kind for kind in session.kinds if kind != "unix"]  # waits as TCP does
    for kind in kinds:
        measured, more = _measure(session, kind)
        figures, details[kind] = measured | figures, more
    return Result(figures | {"import_etl_dagster_ratio": _import_ratio(2 * session.runs - 1)}, details)


def _measure(session: Session, kind: Kind) -> tuple[dict[str, float], dict[str, float]]:
    server, database = session.server_for([kind]), f"dagster_{kind}"
    with server.connect("postgres") as connection:
        connection.execute(f"CREATE DATABASE {database}")
    with server.connect(database) as connection:
        connection.execute("CREATE TABLE ticks (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
        connection.execute("CREATE PUBLICATION bench_pub FOR TABLE ticks")
    directory = session.directory / database
    directory.mkdir()
    workspace = directory / "workspace.yaml"
    location = {"relative_path": str(Path(__file__).with_name("location.py")), "working_directory": str(Path.cwd())}
    workspace.write_text(json.dumps({"load_from": [{"python_file": location}]}))
    state = f"sqlite:///{directory / 'state.db'}"
    seconds = session.seconds or _SECONDS
    environment = {
        "BENCH_DSN": server.dsn(database, kind),
        "BENCH_STATE": state,
        "BENCH_DUCKDB": str(directory / "bench.duckdb"),
        "BENCH_LEASE": str(seconds / _LEASES),
        "BENCH_REPORT": str(seconds / _REPORTS),
    }
    home = directory / "home"
    with (
        patch.dict(os.environ, environment),
        dagster_dev(workspace, home) as dev,
        server.connect(database) as connection,
    ):
        return _stream(connection, kind, seconds, dev, state, Storage(home, directory / "state.db"))


@dataclass(frozen=True, slots=True)
class Storage:
    """What grows: Dagster's files and the state store."""

    home: Path
    state: Path

    def sizes(self) -> dict[str, int]:
        """Bytes, by what they are for."""
        files = {file: file.stat().st_size for file in self.home.rglob("*") if file.is_file()}
        ticks = sum(size for file, size in files.items() if file.is_relative_to(self.home / "schedules"))
        return {
            "ticks": ticks,
            "runs": sum(files.values()) - ticks,
            "state": self.state.stat().st_size,  # without SQLite's WAL, which is bounded
        }


def _growth(before: dict[str, int], after: dict[str, int], seconds: float, events: int, runs: int) -> dict[str, float]:
    """Per hour at this benchmark's cadence: a sensor's tick every 4 s, a run every lease, an event every interval."""
    hours = seconds / 3600
    grown = {name: (after[name] - before[name]) / 1e6 for name in before}
    return {
        "events_per_hour": events / hours,
        "runs_per_hour": runs / hours,
        "dagster_runs_and_events_mb_per_hour": grown["runs"] / hours,
        "dagster_ticks_mb_per_hour": grown["ticks"] / hours,
        "state_mb_per_hour": grown["state"] / hours,
    }


def _stream(
    connection: WatchedConnection, kind: Kind, seconds: float, dev: DagsterDev, state: str, storage: Storage
) -> tuple[dict[str, float], dict[str, float]]:
    if dev.wait_run(dev.launch(names.sync_job_name(_PIPELINE)), _PATIENCE) != "SUCCESS":
        raise RuntimeError(f"the initial sync failed; see {dev.log}")
    sensor, job = names.stream_sensor_name(_PIPELINE), names.stream_job_name(_PIPELINE)
    before, started = storage.sizes(), time.monotonic()
    dev.start_sensor(sensor)
    with closing(open_store(state, _PIPELINE)) as store:
        commits, looks = _commit_and_look(connection, seconds / len(RATES), store)
    dev.stop_sensor(sensor)
    ticks = [tick["endTimestamp"] - tick["timestamp"] for tick in dev.ticks(sensor) if tick["endTimestamp"]]
    runs = dev.runs(job)
    events = dev.materializations("duckdb", "public", "ticks")
    growth = _growth(before, storage.sizes(), time.monotonic() - started, len(events) - 1, len(runs))
    dev.end_runs(job, _PATIENCE)
    figures: dict[str, float] = {}
    details: dict[str, float] = {"hand_overs": len(runs) - 1}
    for rate, committed in commits.items():
        milliseconds, key = _visible_after(committed, looks), load_name(kind, rate)
        figures |= {f"dagster_latency{key}_p{p}_ms": float(np.percentile(milliseconds, p)) for p in (50, 99)}
        details |= {f"max_ms{key}": float(milliseconds.max()), f"commits{key}": len(committed)}
    figures["sensor_tick_ms"] = statistics.median(ticks) * 1000
    # The initial sync is one; a run that gives way reports what has come since its last report.
    figures["events_per_table_and_interval"] = (len(events) - 1) / (_REPORTS + len(runs) - 1)
    return figures, details | growth


def _visible_after(commits: list[tuple[int, float]], looks: list[tuple[int, float]]) -> NDArray[np.float64]:
    """Milliseconds from each commit to the first look that saw its position passed."""
    at = np.array([seen for _, seen in looks])
    reached = np.array([lsn for lsn, _ in looks], np.uint64)
    visible = at[np.searchsorted(reached, np.array([lsn for lsn, _ in commits], np.uint64))]
    milliseconds: NDArray[np.float64] = (visible - np.array([committed for _, committed in commits])) * 1000
    return milliseconds


def _commit_and_look(
    connection: WatchedConnection, seconds: float, store: StateStore
) -> tuple[dict[int, list[tuple[int, float]]], list[tuple[int, float]]]:
    """(LSN, time) of every commit by their rate, once the stream runs, and of every position seen."""
    looks: list[tuple[int, float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK):
            progress = store.progress()
            if progress is not None and (not looks or progress.flushed_lsn > looks[-1][0]):
                looks.append((int(progress.flushed_lsn), time.monotonic()))

    def commit() -> tuple[int, float]:
        connection.execute("INSERT INTO ticks DEFAULT VALUES")
        committed = time.monotonic()
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return int(Lsn.parse(row[0])), committed

    looking = threading.Thread(target=look)
    looking.start()
    commits: dict[int, list[tuple[int, float]]] = {}
    try:
        first, _ = commit()
        _until(lambda: bool(looks) and looks[-1][0] >= first)
        for rate in RATES:
            commits[rate] = committed = []
            started = time.monotonic()
            for number in range(int(seconds * rate)):
                time.sleep(max(0.0, started + number / rate - time.monotonic()))
                committed.append(commit())
        last = committed[-1][0]
        _until(lambda: looks[-1][0] >= last)
    finally:
        stop.set()
        looking.join()
    return commits, looks


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError("the stream did not come to what was committed")
        time.sleep(0.05)


def _import_ratio(times: int) -> float:
    """Seconds to import etl_dagster's definitions, by those to import dagster; medians of processes in turn."""
    seconds: dict[str, list[float]] = {"dagster": [], "etl_dagster.definitions.factory": []}
    for _ in range(times):
        for module, measured in seconds.items():
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            measured.append(float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    return statistics.median(seconds["etl_dagster.definitions.factory"]) / statistics.median(seconds["dagster"])
