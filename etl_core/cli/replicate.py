"""`etl sync`, `etl stream` and `etl run`: copies, the stream, and both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from etl_core.cli.chosen import chosen_tables, is_not_paused
from etl_core.cli.exit_status import DONE, FAILED, NOT_FINISHED
from etl_core.cli.follow import follow
from etl_core.cli.session import Session
from etl_core.cli.texts import columns, duration, plural, rate
from etl_core.errors import EtlError, TableError
from etl_core.replication.copied import Copied
from etl_core.replication.stream import Ended, Streamed
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState

_ENDED = {Ended.REACHED: "caught up", Ended.STOPPED: "stopped", Ended.TIME: "the time is up"}


def sync(session: Session) -> int:
    """Copies, with a line for each table. Fails if a table failed now, or stands failed from before."""
    pipeline, arguments = session.pipeline, session.arguments
    pipeline.prepare()
    named = None
    if arguments.tables:
        named = [status.name for status in chosen_tables(pipeline, arguments, is_not_paused)]
    began = time.monotonic()
    if arguments.all:
        results = pipeline.sync_all()
    else:
        if named is None:
            pipeline.check_destination()
        results = pipeline.sync(named)
    _show_copies(session, results, time.monotonic() - began)
    if pipeline.stop.is_set() and any(isinstance(result, EtlError) for result in results):
        session.results.append("stopped before every table was copied: etl sync copies the others")
        return session.interrupt.status
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
    unfinished = _show_unfinished(session) if session.arguments.command == "run" else False
    if failed:
        return FAILED
    if session.arguments.until_caught_up and (streamed is None or streamed.ended is not Ended.REACHED):
        return session.interrupt.status
    if session.arguments.seconds is not None and unfinished:
        return session.interrupt.status if session.interrupt.is_interrupted else NOT_FINISHED
    return DONE


def _show_unfinished(session: Session) -> bool:
    """Names the tables whose copy is still to be finished, and says what becomes of them; whether there are any."""
    tables = session.pipeline.store.tables()
    waiting = [str(status.name) for status in tables if status.state in (TableState.INIT, TableState.DATA_SYNC)]
    behind = [str(status.name) for status in tables if status.state is TableState.FINISHED_COPY]
    if waiting:
        session.results.append(
            f"not finished: {plural(len(waiting), 'table')} not copied yet ({_some(waiting)}); the next `etl run` "
            "copies them, each from its beginning: a copy that was given up cannot go on after its snapshot is gone"
        )
    if behind:
        session.results.append(
            f"not finished: {plural(len(behind), 'table')} copied, but not yet caught up ({_some(behind)}); "
            "the next `etl run` goes on from the copy"
        )
    return bool(waiting or behind)


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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


def _retried(status: TableStatus) -> str:
    if status.retry_at is None:
        return ""
    return f" (tried again by the next command at once, by one that runs at {status.retry_at.astimezone():%H:%M:%S})"


def _failure(status: TableStatus) -> str:
    if status.waits_for is not None:
        return str(status.error)
    return f"{status.name}  failed: {status.error}{_retried(status)}"


def failure_lines(failed: Sequence[TableStatus], errors: Sequence[EtlError]) -> list[str]:
    """Failed tables, and those errors that are not theirs: of a table that another process took over, for one."""
    told = {status.error for status in failed}
    facts = [(_failure(status), status.hint) for status in failed]
    facts += [(str(error), error.hint) for error in errors if str(error) not in told]
    return [line for fact, hint in facts for line in ([fact, f"  → {hint}"] if hint else [fact])]
