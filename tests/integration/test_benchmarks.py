"""The benchmarks run, on little: what they measure is no matter here, that they can be run is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]
TOGETHER = [
    ("stream_arrow", "stream_arrow_unix", "stream_duckdb", "cost", "memory"),
    ("copy_arrow", "copy_duckdb", "latency", "bigquery_encode", "bigquery_merge"),
]
"""What shares a server and a backlog, in one call each."""
LONG = ("copy_bigquery", "orchestration")
"""They need an emulator and a `dagster dev` of their own: type-checked only."""

pytestmark = pytest.mark.timeout(900)  # a dozen processes, each importing everything, on a machine that has other work


def run(out: Path, *names: str) -> dict[str, float]:
    """`make bench BENCH_ARGS=…` on as little as it takes; the figures it wrote."""
    little = ["--rows", "1000", "--runs", "1", "--seconds", "2", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks", *names, *little]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    written = json.loads(out.read_text())
    assert list(written["details"]) == list(names)
    return {key: value for key, value in written.items() if key not in ("details", "environment")}


def test_none_is_left_out() -> None:
    assert sorted([name for names in TOGETHER for name in names] + [*LONG]) == sorted(BENCHMARKS)


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_it_measures_something(tmp_path: Path, names: tuple[str, ...]) -> None:
    figures = run(tmp_path / "figures.json", *names)
    assert figures
    assert all(value >= 0 for value in figures.values()), figures
