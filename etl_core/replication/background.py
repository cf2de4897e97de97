"""Copies beside a stream: a thread that looks for tables to copy, and outlives a stream that lost its connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from etl_core.errors import EtlError, TransientError, where
from etl_core.identifiers import TableId
from etl_core.replication.observer import Observer
from etl_core.state.store import TableStatus

_log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0


class BackgroundCopies:
    """Looks about every second for tables to copy, and copies `workers` of them at a time, until stopped.

    A table that comes to be copied while a long copy runs waits for a free worker, not for that copy to end.
    `find` gives the tables to copy now, and `bundle` puts those that are not being copied into bundles;
    `copy(bundle, stop, drain)` copies one and returns soon after `stop` is set.
    After `drain` is set it begins no copy, and finishes those under way. An error of a table is in its state; `copy`
    raises what nobody expects.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[TableStatus]],
        bundle: Callable[[Sequence[TableStatus]], Sequence[Sequence[TableStatus]]],
        copy: Callable[[Sequence[TableStatus], threading.Event, threading.Event], object],
        workers: int,
        observer: Observer,
    ) -> None:
        self._find = find
        self._bundle = bundle
        self._copy = copy
        self._workers = workers
        self._observer = observer
        self._stop = threading.Event()
        self._drain = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins, or goes on if it has begun."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._drain.clear()
            self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
            self._thread.start()

    def drain(self) -> bool:
        """Begins no more copies; whether some are still under way."""
        self._drain.set()
        return self._thread is not None and self._thread.is_alive()

    def finish(self, tables: Sequence[TableStatus], copy: Callable[[TableStatus, threading.Event], object]) -> None:
        """After `drain`, and its end: copies these, whose copies had begun. `copy(status, stop)` copies one."""
        self._thread = threading.Thread(target=self._finish, args=(tables, copy), name="copies", daemon=True)
        self._thread.start()

    def _finish(self, tables: Sequence[TableStatus], copy: Callable[[TableStatus, threading.Event], object]) -> None:
        with ThreadPoolExecutor(self._workers, thread_name_prefix="copy") as pool:
            for future in [pool.submit(copy, status, self._stop) for status in tables]:
                self._told(future.result)

    def stop(self) -> None:
        """Ends what is being copied and waits for it. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        copying: dict[TableId, Future[object]] = {}
        # Leaving the block waits for the copies, which hear of `_stop`.
        with ThreadPoolExecutor(self._workers, thread_name_prefix="copy") as pool:
            while not (self._stop.is_set() or self._drain.is_set()):
                self._told(lambda: self._look(pool, copying))
                if not self._drain.is_set():
                    self._stop.wait(_LOOK_EVERY)

    def _look(self, pool: ThreadPoolExecutor, copying: dict[TableId, Future[object]]) -> None:
        done = {future for future in copying.values() if future.done()}
        for table_id in [table_id for table_id, future in copying.items() if future in done]:
            del copying[table_id]
        for future in done:
            self._told(future.result)
        fresh = [status for status in self._find() if status.table_id not in copying]
        for bundle in self._bundle(fresh) if fresh else ():
            future = pool.submit(self._copy, bundle, self._stop, self._drain)
            copying |= {status.table_id: future for status in bundle}

    def _told(self, call: Callable[[], object]) -> None:
        try:
            call()
        except EtlError as error:  # of the store or the whole source; a table's own error is in its state
            self._observer.on_retry(error, _LOOK_EVERY)
        except Exception as error:
            # Nobody expected it; without this thread no table would be copied any more, and nobody told.
            kind = type(error).__name__
            _log.error("looking for tables to copy ended with %s\n%s", kind, where(error))
            self._observer.on_retry(TransientError(f"looking for tables to copy ended with {kind}"), _LOOK_EVERY)
