"""The benchmarks run, on little: what they measure is no matter here, that they can be run is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.load import SHAPES, create_shape, make_changes
from benchmarks.server import Server
from etl_core.testing.postgres import Database, Postgres, PostgresServer

ROOT = Path(__file__).parents[2]
TOGETHER = [
    ("stream_arrow", "stream_arrow_unix", "stream_duckdb", "cost", "memory"),
    ("copy_arrow", "copy_duckdb", "verify", "transaction", "destinations", "bigquery_encode", "bigquery_merge"),
]
"""What shares a server and a backlog, in one call each."""
OVER_KINDS = [
    (("shapes", "--kinds", "tcp,tls,unix", "--shapes", "oltp"), {"shape_oltp_tls_ratio", "shape_oltp_unix_to_tcp"}),
    (("latency", "--kinds", "tcp,tls"), {"latency_50_tls_p50_ms", "latency_500_tls_p50_ms"}),
]
"""What is measured over each kind of connection, and keys that it must give; the shape is compared with the source."""
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
    assert sorted({*together, *(arguments[0] for arguments, _ in OVER_KINDS), *LONG}) == sorted(BENCHMARKS)


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_it_measures_something(tmp_path: Path, names: tuple[str, ...]) -> None:
    figures = run(tmp_path / "figures.json", *names)
    assert figures
    assert all(value >= 0 for value in figures.values()), figures


@pytest.mark.parametrize(("arguments", "keys"), OVER_KINDS, ids=["shapes", "latency"])
@pytest.mark.usefixtures("tls_postgres")  # skips where no PostgreSQL has TLS
def test_it_measures_over_each_kind_of_connection(tmp_path: Path, arguments: tuple[str, ...], keys: set[str]) -> None:
    figures = run(tmp_path / "figures.json", *arguments)
    assert figures.keys() >= keys
    assert all(value > 0 for value in figures.values()), figures


def test_every_shape_makes_its_changes(postgres: Postgres) -> None:
    if not isinstance(postgres, PostgresServer):
        pytest.skip("the unix socket of a container is not on this machine")
    postgres.start()
    server = Server(postgres)
    for name, shape in SHAPES.items():
        create_shape(server, f"shape_{name}", shape)
        with server.connect(f"shape_{name}") as connection:
            before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            assert make_changes(server, f"shape_{name}", shape, 4) == 4 * shape.rows
            assert connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone() != before
        Database(postgres, f"shape_{name}").drop()
