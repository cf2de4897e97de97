"""Each destination beside its own client: a copy, and a batch of changes, in CPU seconds of the process that loads.

What a server does for it is not counted: it is the same rows for both sides.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.loading import BY_HAND
from benchmarks.measuring import Run, median_of, run_child
from benchmarks.session import Result, Session
from etl_core.testing.servers.seaweedfs import SeaweedFS, running

_LAKES = Path(sys.prefix) / "lakes"
"""The DuckDB that has extensions; `make venv` puts it there."""


def destinations(session: Session) -> Result:
    """A table of `session.rows` rows; a tenth as many changes of it, scattered."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name in BY_HAND:
        measured = [
            (_run(session, name, by_hand=False), _run(session, name, by_hand=True)) for _ in range(session.runs)
        ]
        for step, per in (("copied", 1_000_000), ("changed", 100_000)):
            pairs = [(ours[step], by_hand[step]) for ours, by_hand in measured]
            key = f"into_{name}_{step}"
            figures[f"{key}_cpu_s"] = _cpu([ours for ours, _ in pairs], per)
            figures[f"{key}_ratio"] = statistics.median(_ratio(ours, by_hand) for ours, by_hand in pairs)
            details[f"{key}_by_hand_cpu_s"] = _cpu([by_hand for _, by_hand in pairs], per)
            details[f"{key}_runs"] = [[asdict(ours), asdict(by_hand)] for ours, by_hand in pairs]
    return Result(figures, details)


def _run(session: Session, name: str, *, by_hand: bool) -> Mapping[str, Run]:
    directory = session.directory / "into"
    directory.mkdir()
    spec = {"destination": name, "rows": session.rows, "by_hand": by_hand, "directory": str(directory)}
    with _place(session, name) as where:
        measured = run_child("load", {**spec, "where": where}, _LAKES if name in ("ducklake", "iceberg") else None)
    shutil.rmtree(directory)
    return {
        step: Run(one["rows"], one["seconds"], one["cpu"], None, one["peak_rss_mb"]) for step, one in measured.items()
    }


@contextmanager
def _place(session: Session, name: str) -> Iterator[Mapping[str, str]]:
    """A new database or warehouse, where the destination needs a server."""
    if name == "postgres":
        database = session.server.database("into")
        yield {"dsn": session.server.dsn("into")}
        session.server.wait_for_backends("into")
        database.drop()
    elif name == "iceberg":
        access = session.once("seaweedfs", lambda: _seaweedfs(session)).access()
        yield {option: value for option, value in asdict(access).items() if value is not None}
    else:
        yield {}


def _seaweedfs(session: Session) -> SeaweedFS:
    directory = session.directory / "seaweedfs"
    directory.mkdir()
    return session.open.enter_context(running(str(_LAKES / "bin" / "weed"), directory))


def _cpu(runs: list[Run], per: int) -> float:
    return median_of(runs, lambda run: None if run.cpu is None else run.cpu / run.rows * per)


def _ratio(ours: Run, by_hand: Run) -> float:
    assert ours.cpu is not None
    assert by_hand.cpu is not None
    return ours.cpu / by_hand.cpu
