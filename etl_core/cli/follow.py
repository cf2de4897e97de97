"""Streaming that lasts: what ends it without anybody's wish, and may pass, is waited for and tried again.

A bounded stream tries once: whoever set a bound wants to know. Only a slot in use is waited for a little, because the
server notices the death of a killed predecessor a moment late.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from etl_core.cli.session import Session
from etl_core.errors import EtlError, PermanentError, SlotInUse, Stopped, TransientError
from etl_core.replication.retry import Backoff
from etl_core.replication.stream import Ended, Streamed

_SLOT_WAIT = 3.0
"""Seconds between two tries to get a slot that another process reads."""
_PREDECESSOR = 10.0
"""Seconds that a bounded stream waits for a slot in use."""
_CALM = 60.0
"""A try that lasted so many seconds was a success: the waits begin again with the shortest."""


def follow(session: Session, attempt: Callable[[], Streamed]) -> Streamed | None:
    """Prepares the pipeline and runs `attempt`, again and again if the stream has no bound.

    None if it was stopped before it streamed. Raises what cannot pass, and in a bounded stream everything.
    """
    pipeline = session.pipeline
    waits, started = _waits(), time.monotonic()
    while True:
        began = time.monotonic()
        try:
            # Each time: a source that came back may have been restored or replaced meanwhile.
            pipeline.prepare()
            return attempt()
        except PermanentError:
            raise
        except EtlError as error:
            if pipeline.stop.is_set() and isinstance(error, TransientError):
                return _stopped(session)
            is_short = isinstance(error, SlotInUse) and time.monotonic() - started < _PREDECESSOR
            if isinstance(error, Stopped) or (session.arguments.is_bounded and not is_short):
                raise
            if time.monotonic() - began >= _CALM:
                waits = _waits()
            if isinstance(error, SlotInUse):
                wait = _SLOT_WAIT
                session.display.on_waiting(_slot_in_use(error))
            else:
                wait = next(waits)
                session.display.on_retry(error, wait)
        if pipeline.stop.wait(wait):
            return _stopped(session)


def _waits() -> Iterator[float]:
    return Backoff(tries=sys.maxsize).waits()


def _slot_in_use(error: SlotInUse) -> str:
    holder = f"server process {error.active_pid}" if error.active_pid is not None else "another process"
    return f"the replication slot is read by {holder}: waiting for it to end ({error})"


def _stopped(session: Session) -> Streamed | None:
    try:
        progress = session.pipeline.store.progress()
    except EtlError:
        return None
    return Streamed(Ended.STOPPED, progress.flushed_lsn) if progress else None
