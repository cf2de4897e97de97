"""`python -m benchmarks [names…] [--rows N] [--runs N]`: measures, prints the table, writes out/latest.json."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.copying import copy_arrow, copy_bigquery, copy_duckdb
from benchmarks.figures import OUT, Report
from benchmarks.latency import latency
from benchmarks.orchestration import orchestration
from benchmarks.server import running_server
from benchmarks.session import Result, Session
from benchmarks.streaming import cost, memory, stream_arrow, stream_arrow_unix, stream_duckdb


def bigquery_encode(session: Session) -> Result:
    """Imported when it runs: it needs the extra bigquery."""
    from benchmarks.bigquery import bigquery_encode as encode

    return encode(session)


def bigquery_merge(session: Session) -> Result:
    """See there."""
    from benchmarks.bigquery import bigquery_merge as merge

    return merge(session)


BENCHMARKS: Mapping[str, Callable[[Session], Result]] = {
    "stream_arrow": stream_arrow,
    "stream_arrow_unix": stream_arrow_unix,
    "stream_duckdb": stream_duckdb,
    "copy_arrow": copy_arrow,
    "copy_duckdb": copy_duckdb,
    "cost": cost,
    "memory": memory,
    "latency": latency,
    "orchestration": orchestration,
    "copy_bigquery": copy_bigquery,
    "bigquery_encode": bigquery_encode,
    "bigquery_merge": bigquery_merge,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures beside PostgreSQL's own tools.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which (default: all): {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="changes in a backlog, half the rows of a table that is copied",
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="how often each is run, in turn with what it is compared to"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    if options.rows < 10_000 or options.runs < 1:
        parser.error("--rows must be at least 10000, --runs at least 1")
    report = Report({}, {})
    with running_server() as server, tempfile.TemporaryDirectory(prefix="etl-bench-") as directory:
        session = Session(server, Path(directory), options.rows, options.runs)
        for name in options.names or BENCHMARKS:
            started, load = time.monotonic(), os.getloadavg()[0]
            result = BENCHMARKS[name](session)
            report.add(name, result.figures, result.details)
            figures = ", ".join(f"{key} {value:.3g}" for key, value in result.figures.items())
            print(f"{name}: {figures} ({time.monotonic() - started:.0f} s, load before {load:.1f})", flush=True)
            numbers = {key: value for key, value in result.details.items() if isinstance(value, int | float)}
            if numbers:
                print(f"  {', '.join(f'{key} {value:.3g}' for key, value in numbers.items())}", flush=True)
        environment = {"postgres": server.postgres.version_num, "rows": options.rows, "runs": options.runs}
    report.print()
    report.write(environment)
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
