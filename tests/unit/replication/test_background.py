"""The thread that looks for tables to copy goes on, whatever a look ends with, and says so."""

from __future__ import annotations

import threading

import pytest

from etl_core.errors import EtlError, SourceUnavailable
from etl_core.replication import background
from etl_core.replication.background import BackgroundCopies
from etl_core.replication.observer import Observer


@pytest.mark.parametrize("error", [SourceUnavailable("away"), ZeroDivisionError("of a row that nobody is to see")])
def test_it_looks_again_after_an_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOK_EVERY", 0.01)
    looked_again = threading.Event()
    looks: list[int] = []
    told: list[str] = []

    class Told(Observer):
        def on_retry(self, error: EtlError, wait: float) -> None:  # noqa: ARG002
            told.append(str(error))

    def look(_stop: threading.Event, _drain: threading.Event) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise error
        looked_again.set()

    copies = BackgroundCopies(look, Told())
    copies.start()
    assert looked_again.wait(30)
    copies.stop()
    expected = "away" if isinstance(error, SourceUnavailable) else "looking for tables to copy ended with ZeroDivision"
    assert len(told) == 1
    assert told[0].startswith(expected)
    assert "nobody is to see" not in told[0]
