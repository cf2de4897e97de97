"""What a stream run reports: changes summed up per interval, heartbeats with the version that the table has."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from etl_core.batch import ChangeCounts
from etl_core.destination.protocol import Job
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState
from etl_dagster import reporting
from etl_dagster.reporting import Reporter, last_materialized

ORDERS, NOTES, FRESH = (TableName("public", name) for name in ("orders", "notes", "fresh"))
KEYS = {name: dg.AssetKey(["d", name.name]) for name in (ORDERS, NOTES, FRESH)}
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Stands for the module `time` and for the class `datetime`."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self, _: Any = None) -> datetime:
        return START + timedelta(seconds=self.seconds)


class Instance:
    """When Dagster last had a materialisation of a table, and how often it was asked."""

    def __init__(self) -> None:
        self.materialized: dict[dg.AssetKey, datetime] = {}
        self.asked: list[set[dg.AssetKey]] = []

    def last_materialized(self, keys: Sequence[dg.AssetKey]) -> dict[dg.AssetKey, datetime]:
        self.asked.append(set(keys))
        return self.materialized


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    monkeypatch.setattr(reporting, "datetime", clock)
    return clock


@pytest.fixture
def instance(clock: Clock) -> Instance:
    instance = Instance()
    instance.materialized = dict.fromkeys(KEYS.values(), clock.now())
    return instance


@pytest.fixture
def reporter(instance: Instance) -> Reporter:
    return run_of(instance)


def run_of(instance: Instance, *, ready_at: datetime | None = None) -> Reporter:
    """That of a run that has taken in `orders` and `notes`."""
    reporter = Reporter(
        KEYS,
        "place://{}".format,
        logging.getLogger("test"),
        instance.last_materialized,
        every=30,
        heartbeat_every=900,
    )
    marks = {ORDERS: Lsn(100), NOTES: Lsn(50)}
    reporter.begin(
        TableStatus(TableId(number), name, TableState.READY, 1, updated_at=ready_at)
        for number, name in enumerate([*marks, TableName("public", "other")])
    )
    for name, mark in marks.items():
        reporter.observer().on_activated(name, mark)
    return reporter


def copied(reporter: Reporter, name: TableName, lsn: int) -> None:
    """What the stream tells of a table that was copied by another run as of `lsn`."""
    reporter.observer().on_state(name, TableState.READY)
    reporter.observer().on_activated(name, Lsn(lsn))


def flush(lsn: int, *, lag: float | None = None, **tables: ChangeCounts) -> Flush:
    named = {TableName("public", name): counts for name, counts in tables.items()}
    return Flush(Lsn(lsn), None, 1, 0.1, named, lag=lag)


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
    copied(reporter, NOTES, 700)
    clock.seconds += 900
    assert reported(reporter) == {"orders": (str(Lsn(100)), {}), "notes": (str(Lsn(700)), {})}


def test_a_table_copied_by_another_run_has_heartbeats_with_the_version_of_the_copy(
    reporter: Reporter, clock: Clock
) -> None:
    clock.seconds += 600
    reporter.observer().on_deactivated(ORDERS)
    copied(reporter, ORDERS, 700)
    copied(reporter, FRESH, 800)
    copied(reporter, TableName("public", "other"), 800)
    clock.seconds += 300
    assert reported(reporter) == {"notes": (str(Lsn(50)), {})}, "the copy was a report"
    clock.seconds += 600
    assert reported(reporter) == {"orders": (str(Lsn(700)), {}), "fresh": (str(Lsn(800)), {})}


def test_changes_from_before_a_copy_are_not_reported_after_it(reporter: Reporter, clock: Clock) -> None:
    """With the version they had: whoever asks for new ones would be woken, twice."""
    one = {"inserted": 1, "updated": 0, "deleted": 0}
    reporter.add(flush(200, orders=ChangeCounts(1), notes=ChangeCounts(1)))
    reporter.observer().on_deactivated(ORDERS)
    assert reported(reporter) == {"orders": (str(Lsn(200)), one)}, "at once"
    clock.seconds += 900
    assert reported(reporter) == {"notes": (str(Lsn(200)), one)}, "no heartbeat while it is copied"
    copied(reporter, ORDERS, 700)
    reporter.add(flush(300, orders=ChangeCounts(1)))
    assert reported(reporter, everything=True) == {"orders": (str(Lsn(700)), one)}, "told late"


def test_heartbeats_do_not_need_a_run_that_is_longer_than_their_interval(instance: Instance, clock: Clock) -> None:
    instance.materialized = {KEYS[NOTES]: clock.now()}
    beats = []
    for run in range(7):
        reporter = run_of(instance, ready_at=clock.now())
        for seconds in (290, 10):
            clock.seconds += seconds
            for name in reported(reporter, everything=seconds == 10):
                beats.append((run, name))
                instance.materialized[dg.AssetKey(["d", name])] = clock.now()
    assert beats == [(2, "notes"), (5, "notes")]
    assert instance.asked == [{KEYS[ORDERS], KEYS[NOTES]}] * 7, "once a run"


def test_a_table_that_dagster_never_had_a_report_of_is_one_since_it_was_ready(instance: Instance, clock: Clock) -> None:
    instance.materialized = {}
    assert reported(run_of(instance, ready_at=clock.now() - timedelta(seconds=890))) == {}
    assert reported(run_of(instance, ready_at=None)) == {}
    assert set(reported(run_of(instance, ready_at=clock.now() - timedelta(seconds=900)))) == {"orders", "notes"}


def test_the_changes_of_a_new_run_are_summed_up_though_the_last_report_is_long_ago(
    instance: Instance, clock: Clock
) -> None:
    """The run before may be reporting its last changes still."""
    clock.seconds += 800
    reporter = run_of(instance)
    reporter.add(flush(200, orders=ChangeCounts(1)))
    clock.seconds += 29
    assert reported(reporter) == {}
    clock.seconds += 1
    assert set(reported(reporter)) == {"orders"}


def test_a_stream_that_begins_again_has_no_heartbeat_before_it_has_taken_the_table_in(
    reporter: Reporter, clock: Clock
) -> None:
    reporter.begin([])
    clock.seconds += 900
    assert reported(reporter) == {}
    reporter.observer().on_activated(ORDERS, Lsn(400))
    assert reported(reporter) == {"orders": (str(Lsn(400)), {})}


def test_the_lag_is_the_longest_that_a_change_took_and_not_the_age_of_the_report(
    reporter: Reporter, clock: Clock
) -> None:
    def lags() -> list[Any]:
        return [event.metadata["etl/lag_seconds"].value for event in reporter.due(everything=True)]

    for took in (1.0, 12.5, 0.5):
        clock.seconds += 5
        reporter.add(flush(200, lag=took, orders=ChangeCounts(1)))
    clock.seconds += 15
    assert lags() == [12.5]
    reporter.add(flush(300, orders=ChangeCounts(1)))
    [event] = reporter.due(everything=True)
    assert "etl/lag_seconds" not in event.metadata


def test_when_assets_were_last_materialized() -> None:
    one, two, three = (dg.AssetKey(["d", name]) for name in ("one", "two", "three"))
    with dg.DagsterInstance.ephemeral() as instance:
        for key in (one, one, two):
            instance.report_runless_asset_event(dg.AssetMaterialization(key))
        instance.wipe_assets([two])
        known = last_materialized(instance, [one, two, three])
    assert set(known) == {one}
    assert abs(datetime.now(UTC) - known[one]) < timedelta(minutes=1)


def test_a_wait_that_counts_its_seconds_is_one_row_of_the_event_log(
    reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for second in range(12):
            reporter.observer().on_waiting(f"creating replication slot main waits for pid 7 (open for {second} s)")
    assert caplog.messages == ["creating replication slot main waits for pid 7 (open for 0 s)"]


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
