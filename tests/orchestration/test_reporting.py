"""What a stream run reports: changes summed up per interval, heartbeats with the version that the table has."""

import logging
from collections.abc import Collection, Sequence
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
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.shape.shape import identity
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState
from etl_dagster.reports import reporting
from etl_dagster.reports.last_reports import LastReport, last_reports
from etl_dagster.reports.reporting import Reporter, Seen
from etl_dagster.reports.table_report import TableFacts, column_differences, column_schema

ORDERS, NOTES, FRESH = (TableName("public", name) for name in ("orders", "notes", "fresh"))
KEYS = {name: dg.AssetKey(["d", name.name]) for name in (ORDERS, NOTES, FRESH)}
BOOL, INT8, INT4, TEXT = PgType(16, "bool"), PgType(20, "int8"), PgType(23, "int4"), PgType(25, "text")
timestamp = dg.MetadataValue.timestamp
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
        self.reports: dict[dg.AssetKey, LastReport] = {}
        self.asked: list[set[dg.AssetKey]] = []

    def last_reports(self, keys: Sequence[dg.AssetKey]) -> dict[dg.AssetKey, LastReport]:
        self.asked.append(set(keys))
        return {key: LastReport(at) for key, at in self.materialized.items()} | self.reports


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


def described(name: TableName, facts: TableFacts, summary: str) -> dict[str, Any]:
    known = {"dagster/row_count": facts.rows, "etl/last_change": facts.last_change and timestamp(facts.last_change)}
    return {"etl/summary": summary, "dagster/uri": f"place://{name}"} | {
        label: value for label, value in known.items() if value is not None
    }


def run_of(instance: Instance, *, ready_at: datetime | None = None) -> Reporter:
    """That of a run that has taken in `orders` and `notes`."""
    reporter = Reporter(
        KEYS,
        described,
        logging.getLogger("test"),
        instance.last_reports,
        sources={ORDERS: dg.AssetKey("source")},
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
    assert [asked for asked in instance.asked if len(asked) > 1] == [{KEYS[ORDERS], KEYS[NOTES]}] * 7, "once a run"
    assert [asked for asked in instance.asked if len(asked) == 1] == [{KEYS[NOTES]}] * 2, "and for what is reported"


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
        known = last_reports(instance, [one, two, three])
    assert set(known) == {one}
    assert abs(datetime.now(UTC) - known[one].at) < timedelta(minutes=1)


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


class Destination:
    """Counts `rows` at its watermark, and has columns; both may change."""

    def __init__(self, lsn: int, rows: int) -> None:
        self.counted: tuple[Lsn, int] | None = (Lsn(lsn), rows)
        self.schema = TableSchema(TableId(1), ORDERS, (COLUMN,), ("id",))
        self.asked: list[set[TableName]] = []

    def look(self, names: Sequence[TableName], uncounted: Collection[TableName]) -> dict[TableName, Seen]:
        self.asked.append({*uncounted})
        counted = self.counted if uncounted else None
        return {name: Seen(identity(self.schema), 8192, counted) for name in names}


COLUMN = Column("id", INT4, nullable=False)


def row_counts(reporter: Reporter, *flushes: Flush) -> list[Any]:
    """What the report of each of them says; None for one that does not say it."""
    said = []
    for each in flushes:
        reporter.add(each)
        [event] = (event for event in reporter.due(everything=True) if isinstance(event, dg.AssetMaterialization))
        count = event.metadata.get("dagster/row_count")
        said.append(None if count is None else count.value)
    return said


def test_rows_are_counted_once_and_then_kept_by_the_changes(reporter: Reporter) -> None:
    destination = Destination(200, 7)
    reporter.look = destination.look
    changes = [ChangeCounts(inserted=3), ChangeCounts(deleted=1, updated=4), ChangeCounts(inserted=2)]
    flushes = [flush(lsn, orders=counts) for lsn, counts in zip((200, 300, 400), changes, strict=True)]
    assert row_counts(reporter, *flushes) == [7, 6, 8]
    assert destination.asked == [{ORDERS}, set(), set()]


def test_a_count_of_another_position_is_not_taken(reporter: Reporter) -> None:
    """The destination is a batch ahead of what the stream has told of, or could not be asked."""
    destination = Destination(300, 9)
    reporter.look = destination.look
    assert row_counts(reporter, flush(200, orders=ChangeCounts(inserted=3))) == [None]
    destination.counted = None
    assert row_counts(reporter, flush(300, orders=ChangeCounts(inserted=2))) == [None]
    destination.counted = (Lsn(400), 10)
    assert row_counts(reporter, flush(400, orders=ChangeCounts(inserted=1))) == [10]


def test_rows_that_a_truncate_removed_are_counted_anew(reporter: Reporter) -> None:
    destination = Destination(100, 7)
    reporter.look = destination.look
    assert row_counts(reporter, flush(200, orders=ChangeCounts(inserted=1))) == [None]
    destination.counted = (Lsn(300), 2)
    emptied = flush(300, orders=ChangeCounts(inserted=2, truncated=1))
    assert row_counts(reporter, emptied, flush(400, orders=ChangeCounts(inserted=1))) == [2, 3]


@pytest.mark.parametrize(("version", "rows"), [(100, 12), (90, None)])
def test_the_count_of_the_last_report_goes_on_if_it_was_of_the_same_position(
    instance: Instance, version: int, rows: int | None
) -> None:
    event = dg.AssetMaterialization(KEYS[ORDERS], metadata={"dagster/row_count": 10})
    instance.reports = {KEYS[ORDERS]: LastReport(START, str(Lsn(version)), event.metadata)}
    reporter = run_of(instance)
    assert row_counts(reporter, flush(200, orders=ChangeCounts(inserted=3, deleted=1))) == [rows]


def test_a_table_that_was_copied_again_counts_from_its_copy(reporter: Reporter, instance: Instance) -> None:
    reporter.look = Destination(200, 7).look
    assert row_counts(reporter, flush(200, orders=ChangeCounts(inserted=1))) == [7]
    event = dg.AssetMaterialization(KEYS[ORDERS], metadata={"dagster/row_count": 50})
    instance.reports = {KEYS[ORDERS]: LastReport(START, str(Lsn(700)), event.metadata)}
    copied(reporter, ORDERS, 700)
    reporter.add(flush(300, orders=ChangeCounts(inserted=9)))  # told late: it is in the copy
    assert row_counts(reporter, flush(800, orders=ChangeCounts(deleted=1))) == [49]


def test_changed_columns_are_an_event_of_their_own_before_the_report(reporter: Reporter) -> None:
    destination = Destination(200, 7)
    reporter.look = destination.look

    def describe(name: TableName, facts: TableFacts, summary: str) -> dict[str, Any]:
        assert facts.shape is not None
        schema = facts.shape.target
        columns = column_schema(schema, ["INTEGER", "VARCHAR"][: len(schema.columns)])
        return {"etl/lsn": str(facts.lsn), "dagster/column_schema": columns}

    reporter._describe = describe
    for lsn in (200, 300):
        reporter.add(flush(lsn, orders=ChangeCounts(inserted=1)))
        assert [type(event) for event in reporter.due(everything=True)] == [dg.AssetMaterialization]
    note = Column("note", TEXT)
    destination.schema = replace(destination.schema, columns=(COLUMN, note))
    reporter.add(flush(400, orders=ChangeCounts(inserted=1)))
    change, source, report = reporter.due(everything=True)
    assert isinstance(change, dg.AssetObservation)
    assert source.asset_key == dg.AssetKey("source")
    assert change.description == "columns changed: note (VARCHAR) was added"
    assert change.metadata["dagster/column_schema"] == report.metadata["dagster/column_schema"]


def test_the_differences_of_columns_are_said_one_by_one() -> None:
    before = TableSchema(TableId(1), ORDERS, (COLUMN, Column("a", TEXT), Column("b", TEXT)), ("id",))
    columns = (
        replace(COLUMN, comment="the number"),
        Column("a", INT8, nullable=False),
        Column("c", BOOL),
    )
    after = replace(before, columns=columns, key=("id", "a"))
    shown = [column_schema(schema, [column.type.name for column in schema.columns]) for schema in (before, after)]
    assert column_differences(*shown) == [
        "c (bool) was added",
        "b (text) was dropped",
        "the comment of id changed",
        "a changed from text to int8",
        "a is NOT NULL now",
        "the key changed from (id) to (id, a)",
    ]
    assert shown[0].columns[0].constraints == dg.TableColumnConstraints(nullable=False, unique=True, other=["key"])
    assert shown[1].constraints.other == ["key (id, a)"]


def test_changes_per_minute_are_since_the_last_report_and_none_in_a_quiet_time(
    reporter: Reporter, clock: Clock
) -> None:
    rates = []
    for counts in (ChangeCounts(inserted=30, updated=15), None):
        clock.seconds += 900
        if counts is not None:
            reporter.add(flush(200, orders=counts))
        rates += [
            event.metadata["etl/changes_per_minute"].value
            for event in reporter.due()
            if event.asset_key == KEYS[ORDERS]
        ]
    assert rates == [3.0, 0.0]


def test_the_last_change_is_kept_by_heartbeats_of_later_runs(instance: Instance, clock: Clock) -> None:
    at = START + timedelta(seconds=3)

    def said(reporter: Reporter) -> dict[str, Any]:
        clock.seconds += 900
        return {event.asset_key.path[-1]: event.metadata.get("etl/last_change") for event in reporter.due()}

    event = dg.AssetMaterialization(KEYS[ORDERS], metadata={"etl/last_change": dg.MetadataValue.timestamp(at)})
    instance.materialized = {KEYS[NOTES]: clock.now() + timedelta(days=1)}
    instance.reports = {KEYS[ORDERS]: LastReport(clock.now(), str(Lsn(100)), event.metadata)}
    assert said(run_of(instance)) == {"orders": dg.MetadataValue.timestamp(at)}
    instance.reports = {KEYS[ORDERS]: LastReport(clock.now(), str(Lsn(99)), event.metadata)}
    assert said(run_of(instance)) == {"orders": None}
