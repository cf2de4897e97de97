"""`etl run` as a process: interrupted once and twice, losing its server, meeting another on its slot."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from contextlib import closing

import duckdb
import pytest

from tests.integration.cli.conftest import Project

READY = "public.orders: is ready"


def insert(project: Project, first: int, last: int) -> None:
    project.database.execute("INSERT INTO orders SELECT g, 'x' FROM generate_series(%s::int, %s) g", (first, last))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_it_cleanly(project: Project, number: signal.Signals) -> None:
    running = project.start("run")
    running.wait_for(READY)
    insert(project, 2001, 2100)
    running.wait_for("streamed 100 row changes")
    running.signal(number)
    running.wait_for("stopping at the next transaction boundary; press Ctrl-C again to stop at once")
    ended = running.wait()
    assert ended.status == 0
    assert "stopped at " in ended.out
    assert "Traceback" not in ended.err
    assert project.run("verify").status == 0


def test_the_second_signal_ends_it_at_once(project: Project) -> None:
    # While somebody else holds the file, the first one has no boundary to end at for a minute.
    with duckdb.connect(project.warehouse):
        running = project.start("run")
        wait_until_migrated(project)
        running.signal()
        running.wait_for("stopping at the next transaction boundary")
        began = time.monotonic()
        running.signal()
        ended = running.wait()
    assert ended.status == 130
    assert time.monotonic() - began < 30  # the file is waited for twice as long
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("verify").status == 0


def wait_until_migrated(project: Project) -> None:
    """The first thing a run does; the next is to open the destination."""
    store = project.folder / f"{project.pipeline}.state.db"
    while True:
        if store.exists():
            with closing(sqlite3.connect(store)) as connection:
                if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'etl_migrations'").fetchone():
                    return
        time.sleep(0.05)


def test_ending_at_once_loses_and_doubles_nothing(project: Project) -> None:
    running = project.start("run")
    running.wait_for(READY)
    ended = threading.Event()

    def work() -> None:
        first = 10_000
        while not ended.is_set():
            insert(project, first, first + 99)
            project.database.execute("UPDATE items SET price = price + 1 WHERE line = 1")
            first += 100

    worker = threading.Thread(target=work)
    worker.start()
    try:
        running.wait_for("streamed ")
        running.signal()
        running.signal()
        # Two signals of a kind that come together may be one to the kernel.
        assert running.wait().status in (0, 130)
    finally:
        ended.set()
        worker.join()
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("verify").status == 0


def test_an_unbounded_run_outlives_its_server(project: Project) -> None:
    running = project.start("run")
    running.wait_for(READY)
    project.database.server.stop()
    running.wait_for("trying again in")
    project.database.server.start()
    insert(project, 2001, 2100)
    running.wait_for("streamed 100 row changes")
    running.signal()
    assert running.wait().status == 0
    assert project.run("verify").status == 0


def test_a_run_can_begin_before_its_server(project: Project) -> None:
    project.database.server.stop()
    running = project.start("run")
    running.wait_for("cannot connect to", "trying again in")
    project.database.server.start()
    running.wait_for(READY)
    running.signal()
    assert running.wait().status == 0


def test_a_second_run_waits_for_the_slot_and_says_who_has_it(project: Project) -> None:
    first = project.start("run")
    first.wait_for(READY)
    [(pid,)] = project.database.execute(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (project.slot,)
    )
    bounded = project.run("stream", "--until-caught-up")
    assert bounded.status == 1
    assert str(pid) in bounded.err
    refused = project.run("teardown", "--yes")
    assert refused.status == 1
    assert "is streaming" in refused.err

    second = project.start("stream")
    second.wait_for("the replication slot is read by server process", str(pid))
    held = project.run("verify")  # the running stream is held for it
    assert held.status == 0, held.out + held.err
    first.signal()
    assert first.wait().status == 0
    insert(project, 2001, 2100)
    second.wait_for("streamed 100 row changes")
    second.signal()
    assert second.wait().status == 0


def test_a_table_paused_and_resumed_while_it_runs(project: Project) -> None:
    running = project.start("run")
    running.wait_for(READY)
    project.run("pause", "orders")
    insert(project, 2001, 2100)
    project.run("resume", "orders")
    running.wait_for("public.orders: copied 1,100 rows")
    running.wait_for(READY)
    assert project.run("verify").status == 0
    running.signal()
    assert running.wait().status == 0
