"""How a thing is measured: in a process of its own, in turn with what it is compared to, as a median."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `cpu` is the process's own, `server_cpu` that of the backends which served it; all in seconds."""

    rows: int
    seconds: float
    cpu: float | None = None
    server_cpu: float | None = None
    peak_rss_mb: float | None = None

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def child_command(task: str, spec: Mapping[str, Any]) -> list[str]:
    """The command that runs `task` of benchmarks/child.py in a process of its own."""
    return [sys.executable, "-m", "benchmarks.child", task, json.dumps(spec)]


def run_child(task: str, spec: Mapping[str, Any], packages: Path | None = None) -> dict[str, Any]:
    """Runs a task and returns what it measured. Raises CalledProcessError; what the child says of it is on stderr.

    `packages` is a folder of Python packages that go before those of this environment.
    """
    paths = [*([str(packages)] if packages else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = child_command(task, spec)
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def in_turn(ours: Callable[[], Run], reference: Callable[[], Run], runs: int) -> tuple[list[Run], list[Run]]:
    """A B A B … after one run of the reference that warms the server's caches."""
    reference()
    pairs = [(ours(), reference()) for _ in range(runs)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratio(ours: Sequence[Run], reference: Sequence[Run]) -> float:
    """The median of our rows per second over the reference's, pair by pair."""
    return statistics.median(a.rows_per_second / b.rows_per_second for a, b in zip(ours, reference, strict=True))


def median_of(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float:
    """The median of a measure that every run has."""
    values = [one for one in map(value, runs) if one is not None]
    return statistics.median(values)


def cpu_per_million(runs: Sequence[Run]) -> float:
    """The median CPU seconds of our process per million rows."""
    return median_of(runs, lambda run: None if run.cpu is None else run.cpu / run.rows * 1e6)


def details(ours: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    """All runs, and the CPU seconds per million rows that explain a ratio."""

    def side(runs: Sequence[Run]) -> dict[str, Any]:
        return {
            "rows_per_second": round(median_of(runs, lambda run: run.rows_per_second)),
            "cpu_s_per_million_rows": _per_million(runs, lambda run: run.cpu),
            "server_cpu_s_per_million_rows": _per_million(runs, lambda run: run.server_cpu),
            "runs": [asdict(run) for run in runs],
        }

    return {"ours": side(ours), "reference": side(reference), "load": os.getloadavg()[0]}


def _per_million(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    values = [seconds / run.rows * 1e6 for run in runs if (seconds := value(run)) is not None]
    return round(statistics.median(values), 2) if values else None
