"""The thread that applies batches next to the reader: one is written while the next one is read, never more."""

from __future__ import annotations

import threading
import time
from datetime import datetime

from etl_core.lsn import Lsn
from etl_core.replication.applier import Applier
from etl_core.replication.assembler import Assembled


class Writer:
    """The thread that applies batches beside the reader: one being written while the next one is read."""

    def __init__(self, applier: Applier, *, name: str, start_lsn: Lsn) -> None:
        self._applier = applier
        self._condition = threading.Condition()
        self._batch: Assembled | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._flushed = start_lsn
        self._last_write = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def flushed(self) -> Lsn:
        """Everything before is durable and stored."""
        with self._condition:
            return self._flushed

    @property
    def last_write(self) -> float:
        """How long the last batch took to be decoded and made durable, in seconds; 0 before the first."""
        with self._condition:
            return self._last_write

    @property
    def is_idle(self) -> bool:
        """Whether `submit` would be taken. Raises what the last batch failed with."""
        with self._condition:
            self._raise()
            return self._batch is None

    @property
    def waiting_since(self) -> datetime | None:
        """When the first change of the batch in hand was committed; None without one."""
        with self._condition:
            return None if self._batch is None else self._batch.since

    def wait_idle(self, seconds: float) -> bool:
        """Waits for the batch in hand; whether it is done. Raises what it failed with."""
        with self._condition:
            self._condition.wait_for(lambda: self._batch is None or self._error is not None, seconds)
            self._raise()
            return self._batch is None

    def submit(self, batch: Assembled) -> None:
        """Hands a batch over. Only when idle."""
        with self._condition:
            self._raise()
            if self._batch is not None:
                raise RuntimeError("the writer is busy")
            self._batch = batch
            self._condition.notify_all()

    def moved(self, flushed: Lsn) -> None:
        """The conductor stored a position beyond the last batch. Only when idle."""
        with self._condition:
            self._flushed = max(self._flushed, flushed)

    def close(self) -> None:
        """Waits for the batch in hand, if any, and ends the thread. Raises nothing."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._batch is not None or self._closing)
                batch = self._batch
                if batch is None:
                    return
            error: BaseException | None = None
            began = time.monotonic()
            try:
                self._applier.apply(batch)
            except BaseException as caught:
                error = caught
            finally:
                batch.close()
            with self._condition:
                if error is None:
                    self._flushed = max(self._flushed, batch.end_lsn)
                    self._last_write = time.monotonic() - began
                    self._batch = None
                else:
                    self._error = error
                self._condition.notify_all()
                if error is not None:
                    return
