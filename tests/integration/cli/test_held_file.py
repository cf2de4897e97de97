"""Another process holds the DuckDB file: what status says, and how a stop ends."""

from __future__ import annotations

import json
import signal
from typing import Any

import duckdb

from tests.integration.cli.conftest import Project

READY = "public.orders: is ready"


def insert(project: Project, first: int, last: int) -> None:
    project.database.execute("INSERT INTO orders SELECT g, 'x' FROM generate_series(%s::int, %s) g", (first, last))


def status(project: Project) -> dict[str, Any]:
    """As another process sees it: in this one the file is open."""
    ended = project.start("status", "--json").wait()
    assert ended.status == 0, ended.err
    known: dict[str, Any] = json.loads(ended.out)
    return known


def test_the_lag_grows_status_names_the_holder_and_a_stop_waits_for_nobody(project: Project) -> None:
    running = project.start("run")
    running.wait_for(READY)
    insert(project, 2001, 2100)
    running.wait_for("streamed 100 row changes")
    with duckdb.connect(project.warehouse):
        insert(project, 3001, 3100)
        lag = 0.0
        while lag < 3:  # the stream notes it by itself while it waits
            known = status(project)
            assert "is held by" in known["destination"]["error"]
            lag = known["stream"]["lag_seconds"]
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert ended.status == 0, ended.err
    assert "stopped at " in ended.out
    assert "gave up waiting" not in ended.err
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("verify").status == 0
