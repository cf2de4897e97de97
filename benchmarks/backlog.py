"""A backlog: changes that wait behind a slot, and a pipeline that has come up to their beginning.

Every run begins with a copy of the same slot, the same state and the same DuckDB file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Run, run_child
from benchmarks.pipelines import PIPELINE, build_pipeline, watermarks_of
from benchmarks.server import Server
from etl_core.destination.null import NullDestination
from etl_core.errors import EtlError
from etl_core.identifiers import main_slot_name
from etl_core.lsn import Lsn

_SLOT = main_slot_name(PIPELINE)


@dataclass(frozen=True, slots=True)
class Backlog:
    """`rows` row changes of `database` up to `until`, behind slot `master`. `is_null`: nothing is stored of them."""

    server: Server
    database: str
    directory: Path
    rows: int
    until: Lsn
    watermarks: dict[str, int]
    is_null: bool

    @property
    def master(self) -> str:
        return master_slot(self.database)

    def receive(self, *, unix: bool = False) -> Run:
        """One run of `pg_recvlogical`."""
        return self.server.receive(self.database, self.master, self.until, self.rows, unix=unix)

    def stream(self, *, unix: bool = False) -> Run:
        """One run of the pipeline in a process of its own: until everything is durable."""
        self.server.copy_slot(self.database, self.master, _SLOT)
        work = self._fresh_directory()
        server_before = self.server.backend_cpu()
        measured = run_child("stream", self._spec(work, unix=unix))
        self.server.wait_for_backends(self.database)
        server_cpu = self.server.backend_cpu() - server_before
        self.server.drop_slot(self.database, _SLOT)
        assert measured["rows"] == self.rows, f"{measured['rows']} of {self.rows} changes came"
        return Run(self.rows, measured["seconds"], measured["cpu"], server_cpu, measured["peak_rss_mb"])

    def halves(self) -> dict[str, Any]:
        """What reading and decoding cost apart, CPU in µs per row; see child.py."""
        self.server.copy_slot(self.database, self.master, _SLOT)
        measured = run_child("halves", self._spec(self._fresh_directory(), unix=False))
        self.server.drop_slot(self.database, _SLOT)
        return measured

    def _spec(self, work: Path, *, unix: bool) -> dict[str, Any]:
        return {
            "dsn": self.server.dsn(self.database, unix=unix),
            "directory": str(work),
            "until": int(self.until),
            "watermarks": self.watermarks if self.is_null else None,
        }

    def _fresh_directory(self) -> Path:
        work = self.directory.with_name(f"{self.database}-run")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.directory, work)
        return work


def master_slot(database: str) -> str:
    """The slot that stands at the beginning of a backlog; only copies of it are read."""
    return f"master_{database}"


def make_backlog(
    server: Server, database: str, directory: Path, make_changes: Callable[[], int], *, is_null: bool = False
) -> Backlog:
    """Copies the table of `database`, streams up to now, then has `make_changes` make the backlog."""
    state = directory / database
    state.mkdir()
    destination = NullDestination() if is_null else None
    with build_pipeline(server.dsn(database), state, destination=destination) as pipeline:
        pipeline.prepare()
        for result in pipeline.sync():
            if isinstance(result, EtlError):
                raise result
        pipeline.stream(until=pipeline.current_lsn())
        watermarks = watermarks_of(pipeline.destination)
    server.copy_slot(database, _SLOT, master_slot(database))
    server.drop_slot(database, _SLOT)
    rows = make_changes()
    return Backlog(server, database, state, rows, server.current_lsn(), watermarks, is_null)
