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
from etl_core.silence import SilentServer, Watch
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import from_sqlstate, translate

_LOOK_EVERY_MS = 100
_CANCEL_TIMEOUT_S = 10.0

_STREAMS = frozenset({pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_IN})
_GOOD = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}) | _STREAMS


def run_command(
    conn: Connection, statement: bytes, stop: threading.Event, while_waiting: Callable[[], None] | None = None
) -> pq.abc.PGresult:
    """Runs one statement and returns its result, good or bad; after COPY_OUT or COPY_BOTH the rest is the caller's.

    `while_waiting` is called about ten times a second until the server answers. When `stop` is set, the command is
    cancelled and CommandStopped raised; it is cancelled, too, when the wait is left by any other exception.
    Raises SourceUnavailable if the connection breaks, or is silent though the server does not work for it.
    """
    pgconn = conn.pgconn
    try:
        pgconn.send_query(statement)
        try:
            is_answered = _wait(conn, stop, while_waiting, conn.watch())
        except SilentServer as silent:
            conn.give_up(silent)
            raise
        except BaseException:
            request_cancel(conn)
            raise
        if not is_answered:
            raise CommandStopped(cancel_command(conn))
        result = pgconn.get_result()
        if result is None:
            raise SourceUnavailable("the connection to PostgreSQL was lost")
        if result.status not in _STREAMS:
            finish_command(conn)
    except psycopg.Error as error:
        raise translate(error) from None
    return result


def _wait(conn: Connection, stop: threading.Event, while_waiting: Callable[[], None] | None, watch: Watch) -> bool:
    """Waits for the answer; False if `stop` was set first."""
    pgconn, poll = conn.pgconn, select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    while pgconn.is_busy():
        if stop.is_set():
            return False
        if poll.poll(_LOOK_EVERY_MS):
            watch.heard()
        else:
            if while_waiting is not None:
                while_waiting()
            watch.check()
        # Whatever the socket says: OpenSSL may hold what it has read ahead, and a low-water mark keeps a little back.
        pgconn.consume_input()
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
    """Takes what is left of a command's answer; its first error, else its last result, None if there was none.

    Raises psycopg.Error if the connection breaks or is silent.
    """
    return _finish(conn, conn.watch())


def _finish(conn: Connection, watch: Watch) -> pq.abc.PGresult | None:
    last = None
    while (result := _next_result(conn, watch)) is not None:
        if last is None or is_good(last):
            last = result  # a broken connection makes an error of its own, behind the one that tells why
        if result.status in _STREAMS:
            break  # which libpq repeats until the rows are read
    return last


def _next_result(conn: Connection, watch: Watch) -> pq.abc.PGresult | None:
    """As libpq's get_result, which waits for ever where nothing comes."""
    _wait(conn, threading.Event(), None, watch)
    return conn.pgconn.get_result()


def cancel_command(conn: Connection) -> pq.abc.PGresult | None:
    """Asks the server to cancel what `conn` runs, and takes the answer; None if the connection is broken or silent."""
    try:
        request_cancel(conn)
        return _finish(conn, Watch(_CANCEL_TIMEOUT_S))
    except psycopg.Error:
        conn.close()
        return None


def request_cancel(conn: Connection) -> None:
    """Asks the server to cancel what `conn` runs, if it can be reached."""
    with contextlib.suppress(psycopg.Error):
        conn.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
