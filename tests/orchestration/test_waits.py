"""A wait in the event log: once at first, then twice a minute, and at once when somebody else is waited for."""

from types import SimpleNamespace

import pytest

from etl_dagster.reports import waits
from etl_dagster.sync.step import CopyProgress

SLOT = "the copy of public.orders waits for"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_it_is_repeated_every_thirty_seconds(clock: SimpleNamespace) -> None:
    told, news = [], waits.Waits()
    for second in range(100):
        clock.now = float(second)
        if news.is_news(
            f"{SLOT} pid 7 (open for {second} s, psql, {'idle in transaction' if second % 2 else 'active'})"
        ):
            told.append(second)
    assert told == [0, 30, 60, 90]


def test_somebody_else_is_told_of_at_once(clock: SimpleNamespace) -> None:
    news = waits.Waits()
    assert news.is_news(f"{SLOT} pid 7 (open for 9 s); pid 8 (open for 3 s)")
    clock.now += 1
    assert news.is_news(f"{SLOT} pid 8 (open for 4 s)")
    assert news.is_news(f"{SLOT} prepared transaction load (open for 4 s)")
    assert news.is_news("the copy of public.notes waits for pid 8 (open for 4 s)"), "in turn with the other"
    assert not news.is_news(f"{SLOT} pid 8 (open for 5 s)")


def test_a_copy_tells_of_its_waits_in_the_same_way(clock: SimpleNamespace) -> None:
    progress = CopyProgress()
    lines = []
    for second in range(61):
        clock.now = float(second)
        progress.observer().on_waiting(f"{SLOT} pid 7 (open for {second} s)")
        if second % 2 == 0:
            lines.append(progress.line())
    assert [line for line in lines if line] == [f"{SLOT} pid 7 (open for {second} s)" for second in (0, 30, 60)]
