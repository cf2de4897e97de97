"""The catch-ups that run beside one stream: how many, when the stream waits for one's end, when one is begun again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from etl_core.errors import EtlError, TableError, where
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.catchup import CatchUp
from etl_core.replication.retry import Backoff

_log = logging.getLogger(__name__)

_MOST = 4
"""How many run at a time; each holds a walsender."""
_BACKOFF = Backoff(tries=20)
"""Six minutes: until then the slot of a copy, which may have taken hours, may keep as much WAL as it needs."""
_SHORT_STEP = 16 << 20
"""Bytes of WAL behind the main stream from which on the main stream waits for the last step; or twice what the catch-up
comes on by a batch: behind a slow destination it never comes closer."""
_SHORT_STEP_SECONDS = 2.0
"""How long the main stream waits for last steps, all tables together, before it goes on and tries again later; or three
times what the destination takes for a batch: one is under way, and the last one comes after it."""


@dataclass(slots=True)
class _Tries:
    """Of one table. `through` is how far the last one came, `due` (`time.monotonic`) when the next may begin."""

    waits: Iterator[float]
    through: Lsn
    due: float = 0.0


class CatchUps:
    """Of one stream; called by its conducting thread."""

    def __init__(self) -> None:
        self._running: dict[TableId, CatchUp] = {}
        self._tries: dict[TableId, _Tries] = {}

    def __iter__(self) -> Iterator[TableId]:
        return iter(list(self._running))

    def running(self, table_id: TableId) -> CatchUp | None:
        return self._running.get(table_id)

    def may_begin(self, table_id: TableId) -> bool:
        """Whether one more may run now, and this table's pause after a failure is over."""
        tries = self._tries.get(table_id)
        return len(self._running) < _MOST and (tries is None or time.monotonic() >= tries.due)

    def add(self, catch_up: CatchUp) -> None:
        self._running[catch_up.table_id] = catch_up

    def comes_through(self, catch_up: CatchUp, position: Lsn, began: float, busy_wait: Callable[[], bool]) -> bool:
        """Waits for the last step up to `position`, if it is short. False if it is not, or is not done in time.

        `began` (`time.monotonic`) is when the stream began to wait for last steps, of any table. `busy_wait` is called
        again and again meanwhile, and says whether the stream is to end.
        """
        last = catch_up.last_write
        if position - min(position, catch_up.through) > max(_SHORT_STEP, 2 * last.step):
            return False
        deadline = began + max(_SHORT_STEP_SECONDS, 3 * last.seconds)
        while not catch_up.wait_through(position, 0.1):
            if busy_wait() or catch_up.error is not None or time.monotonic() > deadline:
                return False
        return True

    def finish(self, catch_up: CatchUp, busy_wait: Callable[[], bool]) -> Lsn:
        """See `CatchUp.finish`."""
        del self._running[catch_up.table_id]
        through = catch_up.finish(busy_wait)
        self._tries.pop(catch_up.table_id, None)
        return through

    def stop(self, table_id: TableId) -> None:
        """It goes on when it is begun again."""
        self._running.pop(table_id).stop()

    def next_try(self, catch_up: CatchUp) -> float | None:
        """In how many seconds one that has failed for the moment may begin again; None when it was tried enough.

        The pauses grow as long as it comes no further.
        """
        tries = self._tries.get(catch_up.table_id)
        if tries is None or catch_up.through > tries.through:
            tries = self._tries[catch_up.table_id] = _Tries(_BACKOFF.waits(), catch_up.through)
        wait = next(tries.waits, None)
        if wait is None:
            del self._tries[catch_up.table_id]
        else:
            tries.due = time.monotonic() + wait
        return wait

    def leave(self) -> None:
        """Lets go of the server, before anything that is being written is waited for."""
        for catch_up in self._running.values():
            catch_up.leave()

    def close(self) -> None:
        for table_id in self:
            self.stop(table_id)


def failure_of(table: TableName, error: BaseException) -> EtlError:
    """What ended a catch-up, as the table's error; one that nobody expected is logged without its text. Raises what is
    no failure, such as KeyboardInterrupt."""
    if isinstance(error, EtlError):
        return error
    if not isinstance(error, Exception):
        raise error
    kind = type(error).__name__
    _log.error("the catch-up of %s ended with %s\n%s", table, kind, where(error))
    what = f"internal error while {table} caught up: {kind}"
    return TableError(what, table=str(table), hint="the log says where; report it")
