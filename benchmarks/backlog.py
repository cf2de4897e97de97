"""A backlog: changes that wait behind a slot, and a pipeline that has come up to their beginning.

Every run begins with a copy of the same slot, the same state and the same DuckDB file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.measuring import Run, run_child
from benchmarks.pipelines import PIPELINE, build_pipeline, watermarks_of
from benchmarks.server import Kind, Server
from etl_core.errors import EtlError
from etl_core.identifiers import main_slot_name
from etl_core.lsn import Lsn

_SLOT = main_slot_name(PIPELINE)
Into: TypeAlias = Literal["null", "duckdb"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """`rows` row changes of `database` up to `until`, behind slot `master`."""

    server: Server
    database: str
    directory: Path
    rows: int
    until: Lsn
    watermarks: dict[str, int]

    @property
    def master(self) -> str:
        return master_slot(self.database)

    def receive(self, kind: Kind = "tcp") -> Run:
        """One run of `pg_recvlogical`."""
        return self.server.receive(self.database, self.master, self.until, self.rows, kind)

    def stream(self, into: Into, kind: Kind = "tcp", *, verify: bool = False) -> Run:
        """One run of the pipeline in a process of its own: until everything is durable, in DuckDB, or let go.

        `verify`: what is in DuckDB is compared with the source afterwards, and AssertionError raised if it differs.
        """
        self.server.copy_slot(self.database, self.master, _SLOT)
        work = self._fresh_directory()
        server_before = self.server.backend_cpu()
        measured = run_child("stream", self._spec(work, kind) | {"into": into, "verify": verify})
        self.server.wait_for_backends(self.database)
        server_cpu = self.server.backend_cpu() - server_before
        self.server.drop_slot(self.database, _SLOT)
        assert measured["rows"] == self.rows, f"{measured['rows']} of {self.rows} changes came"
        assert not measured["different"], f"differ after the run: {measured['different']}"
        return Run(self.rows, measured["seconds"], measured["cpu"], server_cpu, measured["peak_rss_mb"])

    def halves(self) -> dict[str, Any]:
        """What reading and decoding cost apart, CPU in µs per row; see child.py."""
        self.server.copy_slot(self.database, self.master, _SLOT)
        measured = run_child("halves", self._spec(self._fresh_directory()))
        self.server.drop_slot(self.database, _SLOT)
        return measured

    def verify(self) -> Run:
        """A comparison of all tables as they were before the backlog, in a process of its own."""
        self.server.copy_slot(self.database, self.master, _SLOT)
        measured = run_child("verify", self._spec(self._fresh_directory()))
        self.server.drop_slot(self.database, _SLOT)
        return Run(measured["rows"], measured["seconds"], measured["cpu"], None, measured["peak_rss_mb"])

    def _spec(self, work: Path, kind: Kind = "tcp") -> dict[str, Any]:
        return {
            "dsn": self.server.dsn(self.database, kind),
            "directory": str(work),
            "until": int(self.until),
            "watermarks": self.watermarks,
        }

    def _fresh_directory(self) -> Path:
        work = self.directory.with_name(f"{self.database}-run")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.directory, work)
        return work


def master_slot(database: str) -> str:
    """The slot that stands at the beginning of a backlog; only copies of it are read."""
    return f"master_{database}"


def make_backlog(server: Server, database: str, directory: Path, make_changes: Callable[[], int]) -> Backlog:
    """Copies the tables of `database`, streams up to now, then has `make_changes` make the backlog."""
    state = directory / database
    state.mkdir()
    with build_pipeline(server.dsn(database), state) as pipeline:
        pipeline.prepare()
        for result in pipeline.sync():
            if isinstance(result, EtlError):
                raise result
        pipeline.stream(until=pipeline.current_lsn())
        watermarks = watermarks_of(pipeline.destination)
    server.copy_slot(database, _SLOT, master_slot(database))
    server.drop_slot(database, _SLOT)
    rows = make_changes()
    return Backlog(server, database, state, rows, server.current_lsn(), watermarks)
