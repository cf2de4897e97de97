"""The thread that looks for tables to copy goes on, whatever a look ends with, and says so."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from etl_core.errors import EtlError, SourceUnavailable
from etl_core.identifiers import TableId, TableName
from etl_core.replication import background
from etl_core.replication.background import BackgroundCopies
from etl_core.replication.observer import Observer
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


def alone(tables: Sequence[TableStatus]) -> list[Sequence[TableStatus]]:
    return [[status] for status in tables]


@pytest.mark.parametrize("error", [SourceUnavailable("away"), ZeroDivisionError("of a row that nobody is to see")])
def test_it_looks_again_after_an_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOK_EVERY", 0.01)
    looked_again = threading.Event()
    looks: list[int] = []
    told: list[str] = []

    class Told(Observer):
        def on_retry(self, error: EtlError, wait: float) -> None:  # noqa: ARG002
            told.append(str(error))

    def look() -> list[TableStatus]:
        looks.append(1)
        if len(looks) == 1:
            raise error
        looked_again.set()
        return []

    copies = BackgroundCopies(look, alone, lambda *_: None, 1, Told())
    copies.start()
    assert looked_again.wait(300)
    copies.stop()
    expected = "away" if isinstance(error, SourceUnavailable) else "looking for tables to copy ended with ZeroDivision"
    assert len(told) == 1
    assert told[0].startswith(expected)
    assert "nobody is to see" not in told[0]


def test_a_table_that_comes_later_does_not_wait_for_a_long_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOK_EVERY", 0.01)
    long, late = (TableStatus(TableId(n), TableName("public", f"t{n}"), TableState.INIT, 1) for n in (1, 2))
    long_runs, late_is_copied = threading.Event(), threading.Event()
    copied: list[TableId] = []

    def copy(bundle: Sequence[TableStatus], stop: threading.Event, _drain: threading.Event) -> None:
        [status] = bundle
        copied.append(status.table_id)
        if status is long:
            long_runs.set()
            stop.wait()
        else:
            late_is_copied.set()

    copies = BackgroundCopies(lambda: [long, late] if long_runs.is_set() else [long], alone, copy, 2, Observer())
    copies.start()
    assert late_is_copied.wait(300)
    copies.stop()
    assert copied.count(long.table_id) == 1
