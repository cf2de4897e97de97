"""Streaming a backlog, beside `pg_recvlogical` on the same one; what it costs, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.backlog import Backlog, Into, make_backlog
from benchmarks.measuring import details, in_turn, ratio
from benchmarks.server import Kind, Server
from benchmarks.session import Result, Session
from benchmarks.workload import create_workload, insert_rows, mix_changes, update_rows


def inserted(session: Session) -> Backlog:
    """Inserts in transactions of 1,000, for a destination that stores nothing."""
    return session.once("inserted", lambda: _make(session, "inserted", insert_rows))


def mixed(session: Session) -> Backlog:
    """70 % inserts, 20 % updates, 10 % deletes on a table that has as many rows as there are changes."""
    base = session.rows
    return session.once(
        "mixed",
        lambda: _make(
            session, "mixed", lambda server, database, rows: mix_changes(server, database, rows, base), base=base
        ),
    )


def one_transaction(session: Session) -> Backlog:
    """Twice as many inserts in one transaction."""
    rows = 2 * session.rows
    return session.once(
        "transaction",
        lambda: _make(session, "transaction", lambda server, database, _: insert_rows(server, database, rows, rows)),
    )


def _make(
    session: Session,
    database: str,
    change: Callable[[Server, str, int], int],
    *,
    base: int = 0,
) -> Backlog:
    create_workload(session.server, database, base=base)
    make_changes = lambda: change(session.server, database, session.rows)  # noqa: E731
    return make_backlog(session.server, database, session.directory, make_changes)


def stream_arrow(session: Session) -> Result:
    return _compare(session, inserted(session), "stream_arrow_ratio", "null")


def stream_arrow_unix(session: Session) -> Result:
    return _compare(session, inserted(session), "stream_arrow_unix_ratio", "null", "unix")


def stream_duckdb(session: Session) -> Result:
    return _compare(session, mixed(session), "stream_duckdb_ratio", "duckdb")


def _compare(session: Session, backlog: Backlog, key: str, into: Into, kind: Kind = "tcp") -> Result:
    ours, reference = in_turn(lambda: backlog.stream(into, kind), lambda: backlog.receive(kind), session.runs)
    return Result({key: ratio(ours, reference)}, details(ours, reference))


def cost(session: Session) -> Result:
    """The two halves, each the median of its runs."""
    runs = [inserted(session).halves() for _ in range(session.runs)]
    keys = ("decode_us_per_row", "read_us_per_row")
    return Result({key: sorted(run[key] for run in runs)[len(runs) // 2] for key in keys}, {"runs": runs})


def transaction(session: Session) -> Result:
    """Every row of a table updated in one transaction, over the same in transactions of 1,000, both into DuckDB."""
    rows = session.rows
    whole = _make(session, "at_once", lambda server, database, _: update_rows(server, database, rows, rows), base=rows)
    small = _make(session, "updated", update_rows, base=rows)
    ours, reference = in_turn(lambda: whole.stream("duckdb"), lambda: small.stream("duckdb"), session.runs)
    figures = {
        "transaction_ratio": ratio(ours, reference),
        "transaction_peak_rss_mb": max(run.peak_rss_mb or 0.0 for run in ours),
    }
    return Result(figures, details(ours, reference))


def memory(session: Session) -> Result:
    """The larger of two peaks: a backlog of small transactions, and one transaction that does not fit into memory."""
    backlog, transaction = mixed(session).stream("duckdb"), one_transaction(session).stream("duckdb")
    assert backlog.peak_rss_mb is not None
    assert transaction.peak_rss_mb is not None
    figures = {
        "peak_rss_mb": max(backlog.peak_rss_mb, transaction.peak_rss_mb),
        "peak_rss_backlog_mb": backlog.peak_rss_mb,
        "peak_rss_transaction_mb": transaction.peak_rss_mb,
    }
    return Result(figures, {"transaction_rows_per_second": round(transaction.rows_per_second)})
