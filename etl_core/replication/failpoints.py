"""Named places where a test may crash, fail, delay or cut the engine.

`reach(name)` is called at each boundary between two things that must survive a fault in between. It does nothing
unless a test activated the name, or the environment variable ETL_FAILPOINTS did (`failpoint_actions`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

POSITION_MOVED = "position_moved"
SLOT_RECORDED = "slot_recorded"
SLOT_CREATED = "slot_created"
SLOT_DROPPED = "slot_dropped"
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
READY_STORED = "ready_stored"
GROUP_WRITTEN = "group_written"
SLOT_COPIED = "slot_copied"
COMPLETE_TOLD = "complete_told"
TABLE_STOPPED = "table_stopped"
GAP_STORED = "gap_stored"
TABLE_SET_BACK = "table_set_back"

ALL = (
    POSITION_MOVED,
    SLOT_RECORDED,
    SLOT_CREATED,
    SLOT_DROPPED,
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
    READY_STORED,
    GROUP_WRITTEN,
    SLOT_COPIED,
    COMPLETE_TOLD,
    TABLE_STOPPED,
    GAP_STORED,
    TABLE_SET_BACK,
)


class HasSocket(Protocol):
    """A connection to the source, as psycopg's: `fileno` is its socket's descriptor."""

    def fileno(self) -> int: ...


Action = Callable[[HasSocket | None], None]
"""Is given the connection that the engine has in use at that place, if any."""

_actions: dict[str, Action] = {}
_lock = threading.Lock()


def reach(name: str, connection: HasSocket | None = None) -> None:
    """Runs what was attached to this place, if anything."""
    action = _actions.get(name)
    if action is not None:
        action(connection)


@contextlib.contextmanager
def activated(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Attaches `action` to a place for the length of the block."""
    if name not in ALL:
        raise ValueError(f"there is no failpoint {name!r}")
    with _lock:
        before = _actions.get(name)
        _actions[name] = lambda _connection: action()
    try:
        yield
    finally:
        with _lock:
            del _actions[name]
            if before is not None:
                _actions[name] = before


def attach(actions: dict[str, Action]) -> None:
    """Attaches actions to their places until the process ends."""
    with _lock:
        _actions.update(actions)
