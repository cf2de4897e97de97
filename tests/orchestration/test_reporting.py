"""What a stream run reports: changes summed up per interval, heartbeats with the version that the table has."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from etl_core.batch import ChangeCounts
from etl_core.destination.protocol import Job
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState
from etl_dagster import reporting
from etl_dagster.reporting import Reporter

ORDERS, NOTES, OTHER = (TableName("public", name) for name in ("orders", "notes", "other"))
KEYS = {ORDERS: dg.AssetKey(["d", "orders"]), NOTES: dg.AssetKey(["d", "notes"])}


START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Stands for the module `time` and for the class `datetime`."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self, _: Any = None) -> datetime:
        return START + timedelta(seconds=self.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    monkeypatch.setattr(reporting, "datetime", clock)
    return clock


@pytest.fixture
def reporter(clock: Clock) -> Reporter:
    reporter = Reporter(KEYS, "place://{}".format, logging.getLogger("test"), every=30, heartbeat_every=900)
    reporter.begin({ORDERS: Lsn(100), NOTES: Lsn(50)})
    return reporter


def flush(lsn: int, *, committed: datetime | None = None, **tables: ChangeCounts) -> Flush:
    named = {TableName("public", name): counts for name, counts in tables.items()}
    return Flush(Lsn(lsn), committed, 1, 0.1, named)


def reported(reporter: Reporter, **options: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """The version and the counts of every table reported now."""
    return {
        event.asset_key.path[-1]: (
            (event.tags or {})["dagster/data_version"],
            {name[9:]: value.value for name, value in event.metadata.items() if name.startswith("etl/rows")},
        )
        for event in reporter.due(**options)
    }


def test_changes_are_summed_up_until_the_interval_is_over(reporter: Reporter, clock: Clock) -> None:
    reporter.add(flush(200, orders=ChangeCounts(inserted=1, updated=2), other=ChangeCounts(1)))
    clock.seconds += 29
    assert reported(reporter) == {}
    reporter.add(flush(300, orders=ChangeCounts(deleted=3)))
    clock.seconds += 1
    assert reported(reporter) == {"orders": (str(Lsn(300)), {"inserted": 1, "updated": 2, "deleted": 3})}
    assert reported(reporter) == {}


def test_what_is_left_is_reported_at_the_end(reporter: Reporter) -> None:
    reporter.add(flush(200, notes=ChangeCounts(inserted=1)))
    assert reported(reporter, everything=True) == {
        "notes": (str(Lsn(200)), {"inserted": 1, "updated": 0, "deleted": 0})
    }
    assert reported(reporter, everything=True) == {}


def test_a_quiet_table_keeps_its_version_in_heartbeats_and_a_stopped_one_has_none(
    reporter: Reporter, clock: Clock
) -> None:
    reporter.observer().on_state(NOTES, TableState.ERRORED)
    clock.seconds += 900
    assert reported(reporter) == {"orders": (str(Lsn(100)), {})}
    reporter.observer().on_state(NOTES, TableState.READY)
    clock.seconds += 900
    assert reported(reporter) == {"orders": (str(Lsn(100)), {}), "notes": (str(Lsn(50)), {})}


def test_the_jobs_of_a_warehouse_are_shown_with_what_they_read(reporter: Reporter) -> None:
    one, two = Job("one", "https://console/one", 10), Job("two", "https://console/two", 32)
    reporter.add(replace(flush(200, orders=ChangeCounts(inserted=1)), jobs=(one,)))
    reporter.add(replace(flush(300, orders=ChangeCounts(inserted=1), notes=ChangeCounts(deleted=1)), jobs=(two,)))
    shown = {event.asset_key.path[-1]: event.metadata for event in reporter.due(everything=True)}
    assert shown["orders"]["etl/bytes_processed"].value == 42
    assert shown["notes"]["etl/bytes_processed"].value == 32
    assert shown["orders"]["etl/job"] == dg.MetadataValue.url("https://console/two")
    assert shown["orders"]["dagster/uri"].value == "place://public.orders"
    reporter.add(flush(400, orders=ChangeCounts(inserted=1)))
    [again] = reporter.due(everything=True)
    assert "etl/job" not in again.metadata


def test_the_lag_is_the_longest_that_a_change_took_and_not_the_age_of_the_report(
    reporter: Reporter, clock: Clock
) -> None:
    def lags() -> list[float]:
        return [event.metadata["etl/lag_seconds"].value for event in reporter.due(everything=True)]

    for took in (1.0, 12.5, 0.5):
        clock.seconds += 5
        reporter.add(flush(200, committed=clock.now() - timedelta(seconds=took), orders=ChangeCounts(1)))
    clock.seconds += 15
    assert lags() == [12.5]
    reporter.add(flush(300, committed=clock.now() + timedelta(seconds=3), orders=ChangeCounts(1)))
    assert lags() == [0.0], "the source's clock is ahead"
    reporter.add(flush(300, orders=ChangeCounts(1)))
    [event] = reporter.due(everything=True)
    assert "etl/lag_seconds" not in event.metadata


def test_a_wait_that_counts_its_seconds_is_one_row_of_the_event_log(
    reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for second in range(12):
            reporter.observer().on_waiting(f"creating replication slot main waits for pid 7 (open for {second} s)")
    assert caplog.messages == ["creating replication slot main waits for pid 7 (open for 0 s)"]
