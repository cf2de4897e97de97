"""The first signal, in this process; the others end a process, which is one of their own here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from etl_core.cli.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_sets_stop_and_is_announced(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop, announced = threading.Event(), threading.Event()
    sentences: list[str] = []

    def say(sentence: str) -> None:
        sentences.append(sentence)
        announced.set()

    with Interrupt() as interrupt:
        interrupt.stops(stop, say)
        os.kill(os.getpid(), number)
        assert stop.wait(300)
        assert announced.wait(300)
    assert interrupt.status == 128 + number
    assert "press Ctrl-C again to stop at once" in sentences[0]
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_happens_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = threading.Event()
    with Interrupt() as interrupt:
        interrupt.stops(stop, lambda _: None)
    assert not stop.is_set()
    assert not interrupt.is_interrupted
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


_IN_A_PROCESS = """
import os, signal, sys, threading
from etl_core.cli.interrupt import Interrupt
with Interrupt(is_process=True, grace=0.2) as interrupt:
    print("begun")
    if sys.argv[1] == "long":
        interrupt.stops(threading.Event(), lambda _: None)
    threading.Thread(target=threading.Event().wait, name="write-x", daemon=True).start()
    os.kill(os.getpid(), int(sys.argv[2]))
    threading.Event().wait()  # a library's call that hears nothing
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("short", "etl: interrupted\n"),
        (
            "long",
            "etl: gave up waiting for a batch that is being written after 0.2 s; nothing is lost: "
            "what is not in the destination is read again at the next start\n",
        ),
    ],
)
def test_a_process_that_cannot_stop_ends_and_says_what_it_gave_up(number: signal.Signals, work: str, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, work, str(int(number))], capture_output=True, text=True, timeout=300
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (128 + number, said, "begun\n")
