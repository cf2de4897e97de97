"""The first signal, in this process; the second ends the process, which `tests/integration/cli` tries."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from etl_core.cli.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_stop_and_is_announced(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop, announced = threading.Event(), threading.Event()
    sentences: list[str] = []

    def say(sentence: str) -> None:
        sentences.append(sentence)
        announced.set()

    with Interrupt(stop, say):
        os.kill(os.getpid(), number)
        assert stop.wait(30)
        assert announced.wait(30)
    assert "press Ctrl-C again to stop at once" in sentences[0]
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_happens_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = threading.Event()
    with Interrupt(stop, lambda _: None):
        pass
    assert not stop.is_set()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
