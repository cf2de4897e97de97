"""Copies beside a stream: a thread that looks for tables to copy, and outlives a stream that lost its connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from etl_core.errors import EtlError, TransientError, where
from etl_core.replication.observer import Observer

_log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0


class BackgroundCopies:
    """Calls `copy_round(stop, drain)` about every second until stopped.

    It returns soon after `stop` is set; after `drain` is set it begins no copy, and finishes those under way.
    """

    def __init__(self, copy_round: Callable[[threading.Event, threading.Event], object], observer: Observer) -> None:
        self._copy_round = copy_round
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

    def stop(self) -> None:
        """Ends what is being copied and waits for it. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not (self._stop.is_set() or self._drain.is_set()):
            try:
                self._copy_round(self._stop, self._drain)
            except EtlError as error:  # of the store or the whole source; a table's own error is in its state
                self._observer.on_retry(error, _LOOK_EVERY)
            except Exception as error:
                # Nobody expected it; without this thread no table would be copied any more, and nobody told.
                kind = type(error).__name__
                _log.error("looking for tables to copy ended with %s\n%s", kind, where(error))
                self._observer.on_retry(TransientError(f"looking for tables to copy ended with {kind}"), _LOOK_EVERY)
            if not self._drain.is_set():
                self._stop.wait(_LOOK_EVERY)
