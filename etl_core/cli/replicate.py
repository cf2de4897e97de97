"""`etl sync`, `etl stream` and `etl run`: copies, the stream, and both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from etl_core.cli.failures import DONE, FAILED
from etl_core.cli.follow import follow
from etl_core.cli.session import Session
from etl_core.cli.texts import columns, duration, plural, rate
from etl_core.errors import EtlError, TableError
from etl_core.replication.copy import Copied
from etl_core.replication.stream import Ended, Streamed
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState

_ENDED = {Ended.REACHED: "caught up", Ended.STOPPED: "stopped", Ended.TIME: "the time is up"}


def sync(session: Session) -> int:
    """Copies, with a line for each table. Fails if a table failed now, or stands failed from before."""
    pipeline, tables = session.pipeline, session.arguments.tables
    pipeline.prepare()
    for name in tables:
        pipeline.find(name)  # all of them exist, or none is touched
    began = time.monotonic()
    results = pipeline.sync(tables or None)
    _show_copies(session, results, time.monotonic() - began)
    if pipeline.stop.is_set() and any(isinstance(result, EtlError) for result in results):
        session.results.append("stopped before every table was copied")
        return FAILED
    failed = _show_failed(session, results)
    if not results and not failed:
        session.results.append(f"nothing to copy: {plural(len(pipeline.store.tables()), 'table')} copied before")
    return FAILED if failed else DONE


def stream(session: Session) -> int:
    """Streams until stopped, or as far as asked."""

    def attempt() -> Streamed:
        return session.pipeline.stream(until=None, seconds=session.arguments.seconds)

    def attempt_until_caught_up() -> Streamed:
        return session.pipeline.stream(until=session.pipeline.current_lsn())

    return _follow(session, attempt_until_caught_up if session.arguments.until_caught_up else attempt)


def run(session: Session) -> int:
    """Copies what needs it and streams.

    Until caught up means: every table copied, and streamed up to where the WAL ends then. So the copies come first, and
    no table needs a catch-up of its own; otherwise tables stream while others are copied.
    """

    def attempt() -> Streamed:
        return session.pipeline.run(seconds=session.arguments.seconds)

    results: list[Copied | EtlError] = []

    def attempt_until_caught_up() -> Streamed:
        while True:
            began = time.monotonic()
            results[:] = session.pipeline.sync()
            _show_copies(session, results, time.monotonic() - began)
            streamed = session.pipeline.stream(until=session.pipeline.current_lsn())
            # The stream may have found that only a new copy has what a table holds now.
            if streamed.ended is not Ended.REACHED or not _to_copy_again(session, results):
                return streamed

    return _follow(session, attempt_until_caught_up if session.arguments.until_caught_up else attempt, results)


def _follow(session: Session, attempt: Callable[[], Streamed], results: Sequence[Copied | EtlError] = ()) -> int:
    began = time.monotonic()
    streamed = follow(session, attempt)
    seconds = time.monotonic() - began
    if streamed is None:
        session.results.append("stopped before anything was streamed")
    else:
        rows = session.display.rows
        session.results.append(
            f"{_ENDED[streamed.ended]} at {streamed.lsn}: {plural(rows, 'row change')} in {duration(seconds)}"
        )
    failed = _show_failed(session, results)
    cut_short = session.arguments.until_caught_up and (streamed is None or streamed.ended is not Ended.REACHED)
    return FAILED if failed or cut_short else DONE


def _to_copy_again(session: Session, results: Sequence[Copied | EtlError]) -> bool:
    """Whether a table was set back since its copy; not if that copy failed, which would fail again."""
    failed = {result.table for result in results if isinstance(result, TableError)}
    again = [status for status in session.pipeline.store.tables() if status.state is TableState.INIT]
    return any(str(status.name) not in failed for status in again)


def _show_copies(session: Session, results: Sequence[Copied | EtlError], seconds: float) -> None:
    copied = [result for result in results if isinstance(result, Copied)]
    if copied:
        session.results.extend(columns([_copied_row(table) for table in copied]))
        rows = sum(table.rows for table in copied)
        total = f"{plural(rows, 'row')} in {duration(seconds)}, {rate(rows, seconds)}"
        session.results.append(f"copied {plural(len(copied), 'table')}: {total}")


def _copied_row(table: Copied) -> tuple[str, ...]:
    return (
        str(table.name),
        plural(table.rows, "row"),
        duration(table.seconds),
        rate(table.rows, table.seconds),
        f"at {table.snapshot_lsn}",
    )


def _show_failed(session: Session, results: Sequence[Copied | EtlError]) -> bool:
    """Shows the tables that stand failed, from now or before, and what else failed; whether anything did."""
    failed = [status for status in session.pipeline.store.tables() if status.state is TableState.ERRORED]
    lines = failure_lines(failed, [result for result in results if isinstance(result, EtlError)])
    session.results.extend(lines)
    return bool(lines)


def failure_lines(failed: Sequence[TableStatus], errors: Sequence[EtlError]) -> list[str]:
    """Failed tables, and those errors that are not theirs: of a table that another process took over, for one."""
    told = {status.error for status in failed}
    facts = [(f"{status.name}  failed: {status.error}", status.hint) for status in failed]
    facts += [(str(error), error.hint) for error in errors if str(error) not in told]
    return [line for fact, hint in facts for line in ([fact, f"  → {hint}"] if hint else [fact])]
