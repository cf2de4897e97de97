"""One command on a connection, waited for in steps, so that a wait of hours hears `stop` within a moment.

`Connection.execute` waits until the answer is there. Commands that may wait for other transactions (a slot, a lock) or
whose answer is a COPY go through here.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable

import psycopg
from psycopg import pq

from etl_core.errors import EtlError, SourceUnavailable, Stopped
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import from_sqlstate, translate

_LOOK_EVERY_MS = 100
_CANCEL_TIMEOUT_S = 10.0

_GOOD = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_OUT})


def run_command(
    conn: Connection, statement: bytes, stop: threading.Event, while_waiting: Callable[[], None] | None = None
) -> pq.abc.PGresult:
    """Runs one statement and returns its result, good or bad; after COPY_OUT the rows are the caller's to read.

    `while_waiting` is called about ten times a second until the server answers. When `stop` is set, the command is
    cancelled and CommandStopped raised; it is cancelled, too, when the wait is left by any other exception.
    Raises SourceUnavailable if the connection breaks.
    """
    pgconn = conn.pgconn
    try:
        pgconn.send_query(statement)
        try:
            is_answered = _wait(pgconn, stop, while_waiting)
        except BaseException:
            request_cancel(conn)
            raise
        if not is_answered:
            raise CommandStopped(cancel_command(conn))
        result = pgconn.get_result()
        if result is None:
            raise SourceUnavailable("the connection to PostgreSQL was lost")
        if result.status != pq.ExecStatus.COPY_OUT:
            finish_command(conn)
    except psycopg.Error as error:
        raise translate(error) from None
    return result


def _wait(pgconn: pq.abc.PGconn, stop: threading.Event, while_waiting: Callable[[], None] | None) -> bool:
    """Waits for the answer; False if `stop` was set first."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    while pgconn.is_busy():
        if stop.is_set():
            return False
        if poll.poll(_LOOK_EVERY_MS):
            pgconn.consume_input()
        elif while_waiting is not None:
            while_waiting()
    return True


class CommandStopped(Stopped):
    """A command was cancelled; `result` is its answer, which came too late to be cancelled if it is good."""

    def __init__(self, result: pq.abc.PGresult | None) -> None:
        super().__init__("stopped while waiting for PostgreSQL")
        self.result = result


def check_result(result: pq.abc.PGresult) -> None:
    """Raises what `translate` would, unless the command succeeded."""
    if not is_good(result):
        raise result_error(result)


def is_good(result: pq.abc.PGresult) -> bool:
    return result.status in _GOOD


def result_error(result: pq.abc.PGresult) -> EtlError:
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    return from_sqlstate(result_sqlstate(result), message.decode("utf-8", "replace"))


def result_sqlstate(result: pq.abc.PGresult) -> str | None:
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    return None if state is None else state.decode()


def finish_command(conn: Connection) -> pq.abc.PGresult | None:
    """Takes what is left of a command's answer; its last result, None if there was none."""
    last = None
    while (result := conn.pgconn.get_result()) is not None:
        last = result
        if result.status == pq.ExecStatus.COPY_OUT:
            break  # which libpq repeats until the rows are read
    return last


def cancel_command(conn: Connection) -> pq.abc.PGresult | None:
    """Asks the server to cancel what `conn` runs, and takes the answer; None if the connection is broken."""
    with contextlib.suppress(psycopg.Error):
        request_cancel(conn)
        return finish_command(conn)
    return None


def request_cancel(conn: Connection) -> None:
    """Asks the server to cancel what `conn` runs, if it can be reached."""
    with contextlib.suppress(psycopg.Error):
        conn.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
