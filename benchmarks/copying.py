"""The initial copy, beside psycopg draining the same COPY, and into BigQuery."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.backlog import make_backlog
from benchmarks.measuring import Run, cpu_per_million, details, in_turn, ratio, run_child
from benchmarks.session import Result, Session
from benchmarks.workload import create_workload
from etl_core.testing.servers.bigquery_emulator import running_emulator

_DATABASE = "copied"
_FEW = "copied_few"
_MOST_ROWS = 200_000
"""For BigQuery: the emulator takes ten thousand rows a second."""


def copy_arrow(session: Session) -> Result:
    ours, reference = _compare(session, "copy")
    figures = {"copy_arrow_ratio": ratio(ours, reference), "copy_cpu_s_per_million_rows": cpu_per_million(ours)}
    return Result(figures, details(ours, reference))


def copy_duckdb(session: Session) -> Result:
    ours, reference = _compare(session, "sync")
    return Result({"copy_duckdb_ratio": ratio(ours, reference)}, details(ours, reference))


def copy_bigquery(session: Session) -> Result:
    """Into an emulator, whose own time says nothing of BigQuery's: what counts is the CPU that the copy takes here."""
    rows = min(2 * session.rows, _MOST_ROWS)
    session.once(_FEW, lambda: create_workload(session.server, _FEW, base=rows))
    with running_emulator() as emulator:
        options = emulator.options("bench_{namespace}")
        runs = [_run(session, "sync", _FEW, rows, bigquery=options) for _ in range(session.runs)]
    figures = {"bigquery_copy_cpu_s_per_million_rows": cpu_per_million(runs)}
    return Result(figures, details(runs, runs)["ours"])


def verify(session: Session) -> Result:
    """The same table compared with DuckDB: rows a second over those of its copy into DuckDB."""
    rows = 2 * session.rows
    session.once(_DATABASE, lambda: create_workload(session.server, _DATABASE, base=rows))
    backlog = session.once("verified", lambda: make_backlog(session.server, _DATABASE, session.directory, lambda: 0))
    ours, reference = in_turn(backlog.verify, lambda: _run(session, "sync", _DATABASE, rows), session.runs)
    assert all(run.rows == rows for run in ours), "rows are missing in the comparison"
    figures = {
        "verify_ratio": ratio(ours, reference),
        "verify_peak_rss_mb": max(run.peak_rss_mb or 0.0 for run in ours),
    }
    return Result(figures, details(ours, reference))


def _compare(session: Session, task: str) -> tuple[list[Run], list[Run]]:
    rows = 2 * session.rows
    session.once(_DATABASE, lambda: create_workload(session.server, _DATABASE, base=rows))
    return in_turn(
        lambda: _run(session, task, _DATABASE, rows), lambda: _run(session, "drain", _DATABASE, rows), session.runs
    )


def _run(session: Session, task: str, database: str, rows: int, **spec: Any) -> Run:
    directory = session.directory / "copy"
    directory.mkdir()
    server_before = session.server.backend_cpu()
    measured = run_child(task, {"dsn": session.server.dsn(database), "directory": str(directory), **spec})
    session.server.wait_for_backends(database)
    server_cpu = session.server.backend_cpu() - server_before
    shutil.rmtree(directory)
    assert measured["rows"] == rows, f"{measured['rows']} of {rows} rows came"
    return Run(measured["rows"], measured["seconds"], measured["cpu"], server_cpu, measured["peak_rss_mb"])
