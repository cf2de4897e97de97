"""The checks that a stream run reports by itself: when, of what, and that they are fresh on real pages' terms."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.state.store import ReplicationProgress, TableStatus
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.reports import live_checks
from etl_dagster.reports.live_checks import LiveChecks
from etl_dagster.reports.verdicts import SlotReading, StreamReading
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import TABLES, sync
from tests.orchestration.test_checks import NOW, SLOT

ORDERS, NOTES = (TableName("public", name) for name in ("orders", "notes"))
KEYS = {name: dg.AssetKey(["d", name.name]) for name in (ORDERS, NOTES)}
SLOT_KEY = dg.AssetKey(["shop", "replication_slot"])


class Watch:
    """What is seen of the source: both tables stream, and nothing is late."""

    def __init__(self) -> None:
        self.tables = {
            name: TableStatus(TableId(number), name, TableState.READY, 1) for number, name in enumerate(KEYS)
        }
        self.slot: SlotReading | None = None
        self.stream: StreamReading | None = None
        self.is_late(seconds=0)

    def is_late(self, seconds: float) -> None:
        progress = ReplicationProgress(Lsn(1000), updated_at=NOW - timedelta(seconds=seconds))
        self.stream = StreamReading(NOW, Lsn(1001), SLOT, progress)


class Clock:
    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_checks, "time", clock)
    return clock


def told(live: LiveChecks, watch: Any) -> list[tuple[str, bool]]:
    """The checks of tables that are reported now, with their outcomes."""
    events = [event for event in live.due(watch) if isinstance(event, dg.AssetCheckEvaluation)]
    return [(event.asset_key.path[-1], event.passed) for event in events if event.asset_key != SLOT_KEY]


def test_a_check_comes_with_the_table_s_reports_and_once_a_minute_at_most(clock: Clock) -> None:
    live, watch = LiveChecks(KEYS, SLOT_KEY, 60.0), Watch()
    assert told(live, watch) == [], "an earlier run told it with its report"
    for seconds, expected in ((0, [("orders", True)]), (30, []), (30, [("orders", True)]), (600, [("orders", True)])):
        clock.seconds += seconds
        live.reported(KEYS[ORDERS])
        assert told(live, watch) == expected
    clock.seconds += 600
    assert told(live, watch) == [], "nothing was reported"


@pytest.mark.usefixtures("clock")
def test_an_outcome_that_changes_is_told_at_once(clock: Clock) -> None:
    live, watch = LiveChecks(KEYS, SLOT_KEY, 60.0), Watch()
    watch.is_late(seconds=61)
    assert told(live, watch) == [("orders", False), ("notes", False)]
    clock.seconds += 1
    assert told(live, watch) == []
    watch.is_late(seconds=1)
    assert told(live, watch) == [("orders", True), ("notes", True)]
    watch.tables[NOTES] = replace(watch.tables[NOTES], state=TableState.ERRORED, error="it was dropped")
    assert told(live, watch) == [("notes", False)]
    del watch.tables[NOTES]
    assert told(live, watch) == []


def test_the_slot_is_told_of_once_and_its_numbers_every_minute(clock: Clock) -> None:
    live, watch = LiveChecks(KEYS, SLOT_KEY, 60.0), Watch()

    def events() -> Sequence[type]:
        found: Any = watch
        return [type(event) for event in live.due(found) if event.asset_key == SLOT_KEY]

    assert events() == [], "one look gives no rate of WAL"
    watch.slot = SlotReading("etl_shop", SLOT, 1000, 10.0)
    assert events() == [dg.AssetCheckEvaluation, dg.AssetObservation]
    clock.seconds += 59
    assert events() == []
    clock.seconds += 1
    assert events() == [dg.AssetObservation]
    watch.slot = replace(watch.slot, slot=replace(SLOT, wal_status="lost"))
    assert events() == [dg.AssetCheckEvaluation]


def test_a_run_leaves_fresh_checks_and_the_slot_s_numbers(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance).success
    database.execute("INSERT INTO notes VALUES (1, 'x'); DELETE FROM orders WHERE id < 3")
    job = build_stream_job(replication, TABLES)
    result = job.execute_in_process(
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=dg.RunConfig(ops={f"stream_{replication.name}": StreamConfig(mode="micro_batch")}),
    )
    assert result.success
    told = [
        event.event_specific_data
        for event in result.all_events
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    evaluations = {(each.asset_key.path[-1], each.check_name): each for each in told}  # type: ignore[union-attr]
    evaluations = {key: each for key, each in evaluations.items() if key[1] != "table_state"}
    assert evaluations.keys() == {
        ("orders", "replication_lag"),
        ("notes", "replication_lag"),
        ("replication_slot", "slot_health"),
    }
    assert all(each.passed for each in evaluations.values())  # type: ignore[union-attr]
    slot = dg.AssetKey([replication.name, "replication_slot"])
    [record] = instance.fetch_observations(slot, limit=10).records
    assert record.asset_observation is not None
    assert {
        "etl/bytes_behind",
        "etl/wal_bytes_per_second",
        "etl/lag_seconds",
    } <= record.asset_observation.metadata.keys()
    assert datetime.fromtimestamp(record.timestamp, UTC) <= datetime.now(UTC)
