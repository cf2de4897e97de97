"""The `etl` command in a folder of its own: short runs in this process, long ones as a process to be signalled."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import etl_core
from etl_core.cli import main
from etl_core.testing.postgres import Database

WAIT = 60.0
"""Seconds after which an event that a test awaits counts as lost."""


@dataclass(frozen=True)
class Result:
    """What one run of the command said, and its exit status."""

    status: int
    out: str
    err: str


class Running:
    """`etl` as a process. Its stderr is read line by line."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(etl_core.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "etl_core.cli", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_for(self, *fragments: str) -> str:
        """The first line from now on that contains all fragments."""
        while True:
            line = self._queue.get(timeout=WAIT)
            if line is None:
                raise AssertionError(f"ended without {fragments}: {self.lines}")
            self.lines.append(line)
            if all(fragment in line for fragment in fragments):
                return line

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self) -> Result:
        status = self.process.wait(WAIT)
        self._reader.join(WAIT)
        while (line := self._queue.get(timeout=WAIT)) is not None:
            self.lines.append(line)
        assert self.process.stdout is not None
        return Result(status, self.process.stdout.read(), "\n".join(self.lines))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        self._reader.join(WAIT)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@dataclass
class Project:
    """A folder with an etl.yaml for a database."""

    folder: Path
    database: Database
    _running: list[Running] = field(default_factory=list)

    def configure(self, tables: str = "[public.orders, public.items]", dsn: str | None = None, more: str = "") -> None:
        (self.folder / "etl.yaml").write_text(
            f"pipeline: {self.pipeline}\n"
            "source:\n"
            f'  dsn: "{dsn or self.database.dsn}"\n'
            "  publication: shop_pub\n"
            f"  tables: {tables}\n"
            "destination: {type: duckdb, path: shop.duckdb}\n"
            f"{more}\n"
        )

    @property
    def pipeline(self) -> str:
        """Slots belong to the whole server: as unique as the database."""
        return self.database.name

    @property
    def slot(self) -> str:
        return f"etl_{self.pipeline}"

    @property
    def warehouse(self) -> Path:
        return self.folder / "shop.duckdb"

    def run(self, *arguments: str) -> Result:
        """Runs the command in this process, to its end."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(self.folder):
            status: Any
            try:
                status = main(arguments)
            except SystemExit as ended:
                status = ended.code
        return Result(status, out.getvalue(), err.getvalue())

    def start(self, *arguments: str) -> Running:
        self._running.append(Running(self.folder, *arguments))
        return self._running[-1]

    def close(self) -> None:
        for running in self._running:
            running.close()


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Iterator[Project]:
    """A project whose database has 1,000 orders and 200 items, as yet unconfigured beyond the usual."""
    database.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, note text);"
        "INSERT INTO orders SELECT g, 'note ' || g FROM generate_series(1, 1000) g;"
        "CREATE TABLE items (order_id int, line int, price numeric(10,2), PRIMARY KEY (order_id, line));"
        "INSERT INTO items SELECT g, g % 3, g FROM generate_series(1, 200) g"
    )
    project = Project(tmp_path, database)
    project.configure()
    yield project
    project.close()
