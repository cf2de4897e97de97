"""The figures: what each must reach, how they are printed, and where they are written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out" / "latest.json"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure must reach, and what bounds it when it does not."""

    limit: float
    at_least: bool
    bound: str

    def reached_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def _at_least(limit: float, bound: str) -> Goal:
    return Goal(limit, True, bound)


def _at_most(limit: float, bound: str) -> Goal:
    return Goal(limit, False, bound)


_SHAPES = {
    # Over TCP and over TLS, × pg_recvlogical on the same backlog and the same kind of connection.
    "batch": (1.9, 1.35),
    "single": (2.0, 1.4),
    "oltp": (1.7, 1.4),
    "tables": (1.5, 1.2),
    "wide": (1.1, 1.1),
    "large": (1.15, 1.0),
    "typed": (1.4, 1.2),
}
_CORES = "walsender, reader and decoder share the processors: the CPU seconds above say which of them it is"
_UNIX = "a unix socket has no low-water mark, every send wakes us"
_TLS = "one record per message: each is read and decrypted by itself"
_MEMORY = "one batch being read, one being written, and DuckDB's memory_limit"
GOALS: Mapping[str, Goal] = {
    "stream_arrow_ratio": _at_least(1.00, _CORES),
    "stream_arrow_unix_ratio": _at_least(0.75, f"{_UNIX}; {_CORES}"),
    "stream_duckdb_ratio": _at_least(0.90, f"DuckDB's own CPU comes on top; {_CORES}"),
    "copy_arrow_ratio": _at_least(
        0.70, "two backends and our two threads share the processors; Python's lock lets one of ours run"
    ),
    "copy_duckdb_ratio": _at_least(0.55, "staging and DuckDB's compression come on top of the copy"),
    "copy_cpu_s_per_million_rows": _at_most(1.3, "libpq hands out one row at a time"),
    "decode_us_per_row": _at_most(1.2, "memory bandwidth, and Arrow's parsing of text"),
    "read_us_per_row": _at_most(2.5, "libpq hands out one row at a time; recv()"),
    "peak_rss_mb": _at_most(500, _MEMORY),
    **{f"shape_{shape}_ratio": _at_least(tcp, _CORES) for shape, (tcp, _) in _SHAPES.items()},
    **{f"shape_{shape}_tls_ratio": _at_least(tls, f"{_TLS}; {_CORES}") for shape, (_, tls) in _SHAPES.items()},
    **{
        f"shape_{shape}{kind}_duckdb_ratio": _at_least(0.75, "DuckDB's own CPU comes on top")
        for shape in _SHAPES
        for kind in ("", "_tls", "_unix")
    },
    **{f"shape_{shape}_unix_to_tcp": _at_least(1.0, _UNIX) for shape in _SHAPES},
    "shape_peak_rss_mb": _at_most(300, _MEMORY),
    "transaction_ratio": _at_least(1.0, "what does not fit into memory is written to a file and read again"),
    "transaction_peak_rss_mb": _at_most(300, _MEMORY),
    "verify_ratio": _at_least(1.0, "both sides are read, and hashed here"),
    "verify_peak_rss_mb": _at_most(300, "a block of either side for each connection, and DuckDB's memory_limit"),
    **{
        f"{run}latency{load}_{percentile}_ms": _at_most(limit, "what a batch gathers, and the length of a flush" + more)
        for run, more in (("", ""), ("dagster_", "; the hand-over from run to run"))
        for load, p50, p99 in (("", 100, 500), ("_50_tls", 100, 500), ("_500", 150, 600), ("_500_tls", 150, 600))
        for percentile, limit in (("p50", p50), ("p99", p99))
    },
    **{
        f"into_{destination}_{step}_ratio": _at_most(1.5, "the rows' way through a file, and the fence")
        for destination in ("duckdb", "postgres", "ducklake", "iceberg")
        for step in ("copied", "changed")
    },
    "bigquery_encode_us_per_row": _at_most(
        5, "memory bandwidth: a matrix of bytes per stretch of rows, joined by Arrow"
    ),
    "bigquery_copy_cpu_s_per_million_rows": _at_most(
        3, "libpq hands out one row at a time; Arrow's IPC and gRPC on top"
    ),
    "import_etl_dagster_ratio": _at_most(1.15, "what etl_dagster imports beside Dagster"),
    "sensor_tick_ms": _at_most(300, "a connection to the source, and Dagster's queries for runs"),
    "events_per_table_and_interval": _at_most(1.0, "one report per interval, and one at each hand-over"),
}


@dataclass(slots=True)
class Report:
    """Everything that was measured: `figures` by key, `details` by benchmark (all runs, in seconds and rows)."""

    figures: dict[str, float]
    details: dict[str, Any]

    def add(self, benchmark: str, figures: Mapping[str, float], details: Mapping[str, Any]) -> None:
        self.figures |= figures
        self.details[benchmark] = dict(details)

    def print(self) -> None:
        """The figures, then what a comparison's ratio is made of, then what bounds the figures that are not reached."""
        console = Console()
        table = Table("key", "value", "must reach", "reached")
        missed = []
        for key, value in self.figures.items():
            goal = GOALS.get(key)
            reached = "" if goal is None else "yes" if goal.reached_by(value) else "no"
            table.add_row(key, f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}", str(goal or ""), reached)
            if goal is not None and reached == "no":
                missed.append((key, goal))
        console.print(table)
        self._print_sides(console)
        for bound in dict.fromkeys(goal.bound for _, goal in missed):
            keys = ", ".join(key for key, goal in missed if goal.bound == bound)
            console.print(f"Not reached: {keys}. What bounds it: {bound}.")

    def _print_sides(self, console: Console) -> None:
        table = Table("benchmark", "side", "rows/s", "CPU s per 1 M rows", "of the server for it")
        for benchmark, measured in self.details.items():
            for side in ("ours", "reference"):
                if side in measured:
                    one = measured[side]
                    cpu, server_cpu = one["cpu_s_per_million_rows"], one["server_cpu_s_per_million_rows"]
                    table.add_row(benchmark, side, f"{one['rows_per_second']:,}", str(cpu), str(server_cpu))
        if table.row_count:
            console.print(table)

    def write(self, file: Path, environment: Mapping[str, Any]) -> None:
        """One JSON object: the figures by key, then `details` and `environment`."""
        file.parent.mkdir(exist_ok=True)
        content = {**self.figures, "details": self.details, "environment": {**_environment(), **environment}}
        file.write_text(json.dumps(content, indent=2) + "\n")


def _environment() -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
