"""The benchmarks run, on little: what they measure is no matter here, that they can be run is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.load import SHAPES

ROOT = Path(__file__).parents[2]
TOGETHER = [
    ("stream_arrow", "stream_arrow_unix", "stream_duckdb", "cost", "memory"),
    ("copy_arrow", "copy_duckdb", "verify", "transaction", "destinations", "bigquery_encode", "bigquery_merge"),
]
"""What shares a server and a backlog, in one call each."""
OVER_KINDS = [
    (("shapes", "--kinds", "tls"), "shape_{shape}_tls_ratio", tuple(SHAPES)),
    (("shapes", "--kinds", "tcp,unix", "--shapes", "large"), "shape_{shape}_unix_to_tcp", ("large",)),
    (("latency", "--kinds", "tcp,tls"), "latency_{shape}_tls_p50_ms", ("50", "500")),
]
"""What is measured over each kind of connection, and a key that it must give; shapes are compared with the source."""
LONG = ("copy_bigquery", "orchestration")
"""They need an emulator and a `dagster dev` of their own: type-checked only."""

pytestmark = pytest.mark.timeout(900)  # a dozen processes, each importing everything, on a machine that has other work


def run(out: Path, *arguments: str) -> dict[str, float]:
    """`make bench BENCH_ARGS=…` on as little as it takes; the figures it wrote."""
    little = ["--rows", "1000", "--runs", "1", "--seconds", "2", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks", *arguments, *little]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    written = json.loads(out.read_text())
    assert list(written["details"]) == [argument for argument in arguments if argument in BENCHMARKS]
    return {key: value for key, value in written.items() if key not in ("details", "environment")}


def test_none_is_left_out() -> None:
    together = [name for names in TOGETHER for name in names]
    assert sorted({*together, *(arguments[0] for arguments, _, _ in OVER_KINDS), *LONG}) == sorted(BENCHMARKS)


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_it_measures_something(tmp_path: Path, names: tuple[str, ...]) -> None:
    figures = run(tmp_path / "figures.json", *names)
    assert figures
    assert all(value >= 0 for value in figures.values()), figures


@pytest.mark.parametrize(("arguments", "key", "shapes"), OVER_KINDS, ids=["shapes-tls", "shapes-tcp-unix", "latency"])
def test_it_measures_over_a_kind_of_connection(
    tmp_path: Path, arguments: tuple[str, ...], key: str, shapes: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    if "tls" in arguments[2]:
        request.getfixturevalue("tls_postgres")  # skips where no PostgreSQL has TLS
    figures = run(tmp_path / "figures.json", *arguments)
    assert figures.keys() >= {key.format(shape=shape) for shape in shapes}
    assert all(value > 0 for value in figures.values()), figures
