"""Ctrl-C, SIGTERM and SIGHUP, from a command's first moment to its last: it ends within ten seconds, come what may.

Before a long command has begun, and in a short one, a signal ends the process at once. In a long one the first signal
asks the work to stop at a transaction boundary; a second one, or the end of a grace time, ends the process. A call into
a client library, or into a destination that writes a batch, cannot be interrupted. Ending in the middle of it loses
nothing: what is durable in the destination is recorded there, and everything else is read again.

Python runs a signal's handler only between two steps of the main thread, which may be deep in a library for a while. A
thread that reads the signals' numbers from a pipe acts at once. This module imports nothing slow.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from etl_core.cli.exit_status import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 7.0
"""Seconds from the first signal to the end of the process. Kubernetes kills after 30, people after ten."""
_PATIENCE = 0.5
"""Seconds that a last line may take: a terminal that takes no output must not keep the process."""
_STDERR = 2
_SHOW_CURSOR = b"\x1b[?25h\n"
# What a thread that has not ended was doing, by the beginning of its name.
_WORK = (
    ("write-", "a batch that is being written"),
    ("catch-up-", "the catch-up of a table"),
    ("compare-", "a comparison"),
    ("copies", "copies"),
    ("copy", "copies"),
)


class Interrupt:
    """Within its `with` block, in the main thread, the signals are handled here.

    With `is_process` they stay so after the block, until the process has ended: Ctrl-C while Python tidies up leaves no
    traceback. `grace` is in seconds.
    """

    def __init__(self, *, is_process: bool = False, grace: float = _GRACE) -> None:
        self._is_process = is_process
        self._grace = grace
        self._stop: threading.Event | None = None
        self._say: Callable[[str], None] | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._number: int | None = None
        self._deadline: float | None = None
        self._announcement: threading.Thread | None = None
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> int:
        """The exit status of a command that a signal ended before it was done."""
        return INTERRUPTED if self._number is None else 128 + self._number

    @property
    def is_interrupted(self) -> bool:
        return self._number is not None

    def stops(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        """From now on the first signal sets `stop`, and is announced by `say`."""
        self._say, self._stop = say, stop

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in _SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, _ignore)
        self._thread = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._announcement is not None:
            self._announcement.join(_PATIENCE)
        if self._is_process or self._thread is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _watch(self) -> None:
        while True:
            seconds = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._reading], [], [], seconds)[0]:
                self._end(
                    f"gave up waiting for {_unfinished()} after {self._grace:g} s; nothing is lost: "
                    "what is not in the destination is read again at the next start"
                )
            received = os.read(self._reading, 64)
            if not received:
                return
            for number in received:
                if number in _SIGNALS:
                    self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        is_first = self._number is None
        self._number = self._number or number
        stop = self._stop
        if stop is None:
            self._end("interrupted")
            return
        if not is_first:
            self._end()
        self._deadline = time.monotonic() + self._grace
        stop.set()
        if self._say is not None:
            sentence = "stopping at the next transaction boundary; press Ctrl-C again to stop at once"
            self._announcement = _in_background(self._say, sentence)

    def _end(self, sentence: str = "") -> None:
        _in_background(_say_last, sentence).join(_PATIENCE)
        os._exit(self.status)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The thread has the signal already."""


def _in_background(say: Callable[[str], object], sentence: str) -> threading.Thread:
    """In a thread of its own: a terminal that takes no output must not keep the next Ctrl-C from being heard."""
    thread = threading.Thread(target=say, args=(sentence,), name="announce", daemon=True)
    thread.start()
    return thread


def _say_last(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
        if os.isatty(_STDERR):
            os.write(_STDERR, _SHOW_CURSOR)  # a live display hides it
        if sentence:
            os.write(_STDERR, f"etl: {sentence}\n".encode())
        sys.stdout.flush()  # what a short command has printed so far


def _unfinished() -> str:
    """What still goes on, by the names of the threads."""
    names = [thread.name for thread in threading.enumerate()]
    found = dict.fromkeys(work for prefix, work in _WORK if any(name.startswith(prefix) for name in names))
    return " and ".join(found) or "an answer of the source, the destination or the state store"
