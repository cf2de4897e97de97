"""Named places where a test may crash, fail or stop the engine.

`reach(name)` is called at each boundary between two things that must survive a crash in between. It does nothing
unless a test activated the name. The environment variable `ETL_FAILPOINT=name` makes the process kill itself there with
SIGKILL, for tests that need a real crash; `name:3` at the third time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SLOT_CREATED = "slot_created"
COPY_STARTED = "copy_started"
RANGE_STAGED = "range_staged"
COPY_STAGED = "copy_staged"
COPY_PUBLISHED = "copy_published"
COPY_FINISHED = "copy_finished"
BATCH_DECODED = "batch_decoded"
BATCH_WRITTEN = "batch_written"
PROGRESS_STORED = "progress_stored"
CONFIRMED = "confirmed"
CATCHUP_WRITTEN = "catchup_written"
SYNC_DONE_STORED = "sync_done_stored"
SYNC_SLOT_DROPPED = "sync_slot_dropped"

ALL = (
    SLOT_CREATED,
    COPY_STARTED,
    RANGE_STAGED,
    COPY_STAGED,
    COPY_PUBLISHED,
    COPY_FINISHED,
    BATCH_DECODED,
    BATCH_WRITTEN,
    PROGRESS_STORED,
    CONFIRMED,
    CATCHUP_WRITTEN,
    SYNC_DONE_STORED,
    SYNC_SLOT_DROPPED,
)

_actions: dict[str, Callable[[], None]] = {}
_lock = threading.Lock()


def reach(name: str) -> None:
    """Runs what a test attached to this place, if anything."""
    action = _actions.get(name)
    if action is not None:
        action()


@contextlib.contextmanager
def activated(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Attaches `action` to a place for the length of the block."""
    if name not in ALL:
        raise ValueError(f"there is no failpoint {name!r}")
    with _lock:
        before = _actions.get(name)
        _actions[name] = action
    try:
        yield
    finally:
        with _lock:
            del _actions[name]
            if before is not None:
                _actions[name] = before


def _kill_at(times: int) -> Callable[[], None]:
    left = times

    def action() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return action


def activate_from_environment() -> None:
    """Honours ETL_FAILPOINT. Called once, by the command line."""
    text = os.environ.get("ETL_FAILPOINT")
    if not text:
        return
    name, _, times = text.partition(":")
    if name not in ALL:
        raise ValueError(f"ETL_FAILPOINT: there is no failpoint {name!r}")
    if times and not (times.isdecimal() and int(times) > 0):
        raise ValueError(f"ETL_FAILPOINT: {times!r} does not say how many times {name} is reached")
    with _lock:
        _actions[name] = _kill_at(int(times or 1))
