"""`python -m benchmarks [names…] [--rows N] [--runs N] [--seconds N] …`: beside PostgreSQL's own tools.

Each benchmark is printed and written (to out/latest.json) when it has ended; the table comes after the last.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.copying import copy_arrow, copy_bigquery, copy_duckdb, verify
from benchmarks.destinations import destinations
from benchmarks.figures import OUT, Report
from benchmarks.latency import latency
from benchmarks.load import SHAPES
from benchmarks.orchestration import orchestration
from benchmarks.server import KINDS, running_server
from benchmarks.session import Result, Session
from benchmarks.shapes import shapes
from benchmarks.streaming import cost, memory, stream_arrow, stream_arrow_unix, stream_duckdb, transaction


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
    "shapes": shapes,
    "transaction": transaction,
    "verify": verify,
    "latency": latency,
    "orchestration": orchestration,
    "destinations": destinations,
    "copy_bigquery": copy_bigquery,
    "bigquery_encode": bigquery_encode,
    "bigquery_merge": bigquery_merge,
}


def main() -> int:
    options = _options()
    report, failed = Report({}, {}), []
    with (
        running_server() as server,
        tempfile.TemporaryDirectory(prefix="etl-bench-") as directory,
        ExitStack() as stack,
    ):
        session = Session(
            server,
            Path(directory),
            options.rows,
            options.runs,
            options.seconds,
            options.shapes,
            options.kinds,
            stack,
        )
        environment = {
            "postgres": server.postgres.version_num,
            "rows": options.rows,
            "runs": options.runs,
            "seconds": options.seconds,
        }
        for name in options.names or BENCHMARKS:
            try:
                _measure(name, session, report)
            except Exception:  # the others took long, and say something without it
                traceback.print_exc()
                print(f"{name}: failed, see above", flush=True)
                failed.append(name)
            report.write(options.out, environment)
    report.print()
    print(f"written to {options.out}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
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
    parser.add_argument(
        "--seconds", type=float, help="how long a latency is measured (default: a minute, with Dagster 100 seconds)"
    )
    parser.add_argument(
        "--shapes",
        type=lambda text: _chosen(text, SHAPES),
        default=tuple(SHAPES),
        metavar="A,B",
        help=f"which shapes of load (default: all): {', '.join(SHAPES)}",
    )
    parser.add_argument(
        "--kinds",
        type=lambda text: _chosen(text, KINDS),
        default=KINDS,
        metavar="A,B",
        help=f"over which kinds of connection shapes and latencies are measured (default: all): {', '.join(KINDS)}",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the file that is written after each benchmark")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    if options.rows < 1_000 or options.runs < 1 or (options.seconds is not None and options.seconds < 1):
        parser.error("--rows must be at least 1000, --runs and --seconds at least 1")
    return options


def _chosen(text: str, known: Iterable[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def _measure(name: str, session: Session, report: Report) -> None:
    """Runs one benchmark, prints what it measured and adds it to the report."""
    started, load = time.monotonic(), os.getloadavg()[0]
    result = BENCHMARKS[name](session)
    report.add(name, result.figures, result.details)
    figures = ", ".join(f"{key} {value:.3g}" for key, value in result.figures.items())
    print(f"{name}: {figures} ({time.monotonic() - started:.0f} s, load before {load:.1f})", flush=True)
    numbers = {key: value for key, value in result.details.items() if isinstance(value, int | float)}
    if numbers:
        print(f"  {', '.join(f'{key} {value:.3g}' for key, value in numbers.items())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
