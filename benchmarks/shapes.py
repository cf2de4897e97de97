"""Seven shapes of load, each over every kind of connection, into nothing and into DuckDB, beside `pg_recvlogical`.

All runs of one shape read the same backlog, in turn: kind by kind our stream into nothing, `pg_recvlogical` over the
same kind, our stream into DuckDB. After the first run into DuckDB its tables are compared with the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.backlog import Backlog, make_backlog
from benchmarks.load import SHAPES, create_shape, make_changes
from benchmarks.measuring import Run, median_of, ratio
from benchmarks.server import Kind, Server
from benchmarks.session import Result, Session


@dataclass(frozen=True, slots=True)
class _Sides:
    """The runs over one kind of connection."""

    null: list[Run]
    reference: list[Run]
    duckdb: list[Run]


def shapes(session: Session) -> Result:
    """The shapes and kinds of connection that the session asks for."""
    server = session.server_for(session.kinds)
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    peaks: list[float] = []
    for shape in session.shapes:
        measured = _measure(session, server, shape)
        figures |= _figures(shape, measured)
        rates = (f"{kind} {side} {_rate(runs):,}" for kind, sides in measured.items() for side, runs in _by_side(sides))
        print(f"  {shape}, rows/s: {', '.join(rates)}", flush=True)  # all of them take half an hour
        for kind, sides in measured.items():
            details |= {f"{shape}_{kind}_{side}": _rate(runs) for side, runs in _by_side(sides)}
            details[f"{shape}_{kind}_runs"] = {side: [asdict(run) for run in runs] for side, runs in _by_side(sides)}
            peaks += [run.peak_rss_mb for run in (*sides.null, *sides.duckdb) if run.peak_rss_mb is not None]
    figures["shape_peak_rss_mb"] = max(peaks)
    return Result(figures, details | {"server_version": server.postgres.version_num})


def _measure(session: Session, server: Server, shape: str) -> dict[Kind, _Sides]:
    database = f"shape_{shape}"
    transactions = max(2, SHAPES[shape].transactions * session.rows // 1_000_000)
    create_shape(server, database, SHAPES[shape])
    backlog = make_backlog(
        server, database, session.directory, lambda: make_changes(server, database, SHAPES[shape], transactions)
    )
    backlog.receive(session.kinds[0])  # warms the server's caches
    measured = {kind: _Sides([], [], []) for kind in session.kinds}
    for number in range(session.runs):
        for kind, sides in measured.items():
            _run(backlog, kind, sides, verify=number == 0)
    server.drop_slot(database, backlog.master)  # the WAL of the next shape is enough to keep
    shutil.rmtree(backlog.directory)
    return measured


def _run(backlog: Backlog, kind: Kind, sides: _Sides, *, verify: bool) -> None:
    sides.null.append(backlog.stream("null", kind))
    sides.reference.append(backlog.receive(kind))
    sides.duckdb.append(backlog.stream("duckdb", kind, verify=verify))


def _figures(shape: str, measured: dict[Kind, _Sides]) -> dict[str, float]:
    """TCP has no word in a key: it is the kind that all others are compared to."""
    figures = {}
    for kind, sides in measured.items():
        key = f"shape_{shape}" if kind == "tcp" else f"shape_{shape}_{kind}"
        figures[f"{key}_ratio"] = ratio(sides.null, sides.reference)
        figures[f"{key}_duckdb_ratio"] = ratio(sides.duckdb, sides.null)
    if "tcp" in measured and "unix" in measured:
        figures[f"shape_{shape}_unix_to_tcp"] = ratio(measured["unix"].null, measured["tcp"].null)
    return figures


def _by_side(sides: _Sides) -> Iterator[tuple[str, Sequence[Run]]]:
    yield "null", sides.null
    yield "pg_recvlogical", sides.reference
    yield "duckdb", sides.duckdb


def _rate(runs: Sequence[Run]) -> int:
    """Rows a second."""
    return round(median_of(runs, lambda run: run.rows_per_second))
