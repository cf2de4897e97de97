"""Streaming a backlog, beside `pg_recvlogical` on the same one; what it costs, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.backlog import Backlog, make_backlog
from benchmarks.measuring import details, in_turn, ratio
from benchmarks.server import Server
from benchmarks.session import Result, Session
from benchmarks.workload import create_workload, insert_rows, mix_changes


def inserted(session: Session) -> Backlog:
    """Inserts in transactions of 1,000, for a destination that stores nothing."""
    return session.once("inserted", lambda: _make(session, "inserted", insert_rows, is_null=True))


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
    is_null: bool = False,
) -> Backlog:
    create_workload(session.server, database, base=base)
    make_changes = lambda: change(session.server, database, session.rows)  # noqa: E731
    return make_backlog(session.server, database, session.directory, make_changes, is_null=is_null)


def stream_arrow(session: Session) -> Result:
    return _compare(session, inserted(session), "stream_arrow_ratio", unix=False)


def stream_arrow_unix(session: Session) -> Result:
    return _compare(session, inserted(session), "stream_arrow_unix_ratio", unix=True)


def stream_duckdb(session: Session) -> Result:
    return _compare(session, mixed(session), "stream_duckdb_ratio", unix=False)


def _compare(session: Session, backlog: Backlog, key: str, *, unix: bool) -> Result:
    ours, reference = in_turn(lambda: backlog.stream(unix=unix), lambda: backlog.receive(unix=unix), session.runs)
    return Result({key: ratio(ours, reference)}, details(ours, reference))


def cost(session: Session) -> Result:
    """The two halves, each the median of its runs."""
    runs = [inserted(session).halves() for _ in range(session.runs)]
    keys = ("decode_us_per_row", "read_us_per_row")
    return Result({key: sorted(run[key] for run in runs)[len(runs) // 2] for key in keys}, {"runs": runs})


def memory(session: Session) -> Result:
    """The larger of two peaks: a backlog of small transactions, and one transaction that does not fit into memory."""
    backlog, transaction = mixed(session).stream(), one_transaction(session).stream()
    assert backlog.peak_rss_mb is not None
    assert transaction.peak_rss_mb is not None
    figures = {
        "peak_rss_mb": max(backlog.peak_rss_mb, transaction.peak_rss_mb),
        "peak_rss_backlog_mb": backlog.peak_rss_mb,
        "peak_rss_transaction_mb": transaction.peak_rss_mb,
    }
    return Result(figures, {"transaction_rows_per_second": round(transaction.rows_per_second)})
