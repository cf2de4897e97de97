"""Ctrl-C: the first asks the work to stop at a transaction boundary, the second ends the process at once.

Python runs a signal's handler only between two steps of the main thread, which may be deep in a library for a while.
A thread that reads the signals' numbers from a socket acts at once. Ending at once loses nothing: what is
durable in the destination is recorded there, and everything else is read again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from etl_core.cli.failures import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_SHOW_CURSOR = b"\x1b[?25h\n"


class Interrupt:
    """Within its `with` block, in the main thread, SIGINT and SIGTERM set `stop` and are announced by `say`."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, _ignore)
        self._thread = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writing.close()
        self._thread.join()
        self._reading.close()

    def _watch(self) -> None:
        while received := self._reading.recv(64):
            for number in received:
                if number in _SIGNALS:
                    self._on_signal()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _end_at_once()
        self._stop.set()
        # In a thread of its own: a terminal that takes no output must not keep the second Ctrl-C from being heard.
        sentence = "stopping at the next transaction boundary; press Ctrl-C again to stop at once"
        threading.Thread(target=self._say, args=(sentence,), name="announce", daemon=True).start()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The thread has the signal already."""


def _end_at_once() -> None:
    if os.isatty(_STDERR):
        os.write(_STDERR, _SHOW_CURSOR)  # a live display hides it
    os._exit(INTERRUPTED)
