"""The initial copy, beside psycopg draining the same COPY."""

from __future__ import annotations

import shutil

from benchmarks.measuring import Run, cpu_per_million, details, in_turn, ratio, run_child
from benchmarks.session import Result, Session
from benchmarks.workload import create_workload

_DATABASE = "copied"


def copy_arrow(session: Session) -> Result:
    ours, reference = _compare(session, "copy")
    figures = {"copy_arrow_ratio": ratio(ours, reference), "copy_cpu_s_per_million_rows": cpu_per_million(ours)}
    return Result(figures, details(ours, reference))


def copy_duckdb(session: Session) -> Result:
    ours, reference = _compare(session, "sync")
    return Result({"copy_duckdb_ratio": ratio(ours, reference)}, details(ours, reference))


def _compare(session: Session, task: str) -> tuple[list[Run], list[Run]]:
    session.once(_DATABASE, lambda: create_workload(session.server, _DATABASE, base=2 * session.rows))
    return in_turn(lambda: _run(session, task), lambda: _run(session, "drain"), session.runs)


def _run(session: Session, task: str) -> Run:
    directory = session.directory / "copy"
    directory.mkdir()
    server_before = session.server.backend_cpu()
    measured = run_child(task, {"dsn": session.server.dsn(_DATABASE), "directory": str(directory)})
    session.server.wait_for_backends(_DATABASE)
    server_cpu = session.server.backend_cpu() - server_before
    shutil.rmtree(directory)
    assert measured["rows"] == 2 * session.rows, f"{measured['rows']} of {2 * session.rows} rows came"
    return Run(measured["rows"], measured["seconds"], measured["cpu"], server_cpu, measured["peak_rss_mb"])
