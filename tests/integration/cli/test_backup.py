"""`etl backup`: made while a run writes, put back, and the run gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb

from tests.integration.cli.conftest import Project


def _count(path: Path) -> int:
    with duckdb.connect(path, read_only=True) as warehouse:
        return int(warehouse.execute("SELECT count(*) FROM public.orders").fetchall()[0][0])


def test_a_backup_of_a_running_pipeline_is_put_back(project: Project) -> None:
    running = project.start("run")
    running.wait_for("public.orders: is ready")
    copied = project.run("backup", "copy.duckdb")
    assert copied.status == 0, copied.err
    assert "copy.duckdb: " in copied.out
    assert _count(project.folder / "copy.duckdb") == 1000
    again = project.run("backup", "copy.duckdb")
    assert again.status == 1
    assert "exists already" in again.err

    project.database.execute("INSERT INTO orders VALUES (0, 'zero')")
    running.wait_for("public.orders +1")
    running.signal()
    running.wait()
    assert _count(project.warehouse) == 1001

    shutil.copy(project.folder / "copy.duckdb", project.warehouse)
    stopped = project.run("run", "--until-caught-up")
    assert stopped.status == 1
    assert "etl resync public.orders" in stopped.err
    assert project.run("resync", "public.orders", "public.items").status == 0
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("verify").status == 0
