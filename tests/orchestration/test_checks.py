"""The checks of the replicated tables: passing on real ones, and every failure made for real."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dagster as dg
import duckdb
import pytest

from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.source.slot import SlotStatus
from etl_core.state.sql_store import SqlStateStore, open_store
from etl_core.state.store import Hold, ReplicationProgress
from etl_core.testing.postgres import Database, Postgres
from etl_dagster.names import PIPELINE_TAG, check_job_name, resource_key
from etl_dagster.reports.checks import build_check_job, build_replication_checks
from etl_dagster.reports.verdicts import SlotReading, StreamReading, Verdict, judge_lag, judge_slot
from etl_dagster.resources import PostgresReplicationResource

ORDERS, CUSTOMERS, NOTES = (TableName("public", name) for name in ("orders", "customers", "notes"))
TABLES = (ORDERS, CUSTOMERS, NOTES)
TABLE_KINDS = ("replication_lag", "schema_matches", "equals_source")
KINDS = (*TABLE_KINDS, "slot_health")
SLOT_ASSET = "replication_slot"

NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
SLOT = SlotStatus(
    name="etl_shop",
    plugin="pgoutput",
    database="shop",
    temporary=False,
    active=True,
    active_pid=7,
    restart_lsn=Lsn(500),
    confirmed_flush_lsn=Lsn(900),
    wal_status="reserved",
    safe_wal_size=None,
    two_phase=False,
    invalidation_reason=None,
    inactive_since=None,
    bytes_behind=100,
)


@pytest.fixture
def replicated(replication: PostgresReplicationResource) -> PostgresReplicationResource:
    """All three tables copied and in step."""
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    return replication


class Checked:
    """What a run of the checks says, by check and table."""

    def __init__(self, evaluations: Sequence[dg.AssetCheckEvaluation]) -> None:
        self._evaluations = {(each.check_name, each.asset_key.path[-1]): each for each in evaluations}

    def keys(self) -> set[tuple[str, str]]:
        return set(self._evaluations)

    def passed(self, check: str) -> dict[str, bool]:
        return {table: each.passed for (name, table), each in self._evaluations.items() if name == check}

    def description(self, check: str, table: str) -> str:
        return self._evaluations[check, table].description or ""

    def severity(self, check: str, table: str) -> dg.AssetCheckSeverity:
        return self._evaluations[check, table].severity

    def number(self, check: str, table: str, name: str) -> object:
        return self._evaluations[check, table].metadata[name].value


def run_checks(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    *kinds: str,
    tables: Sequence[TableName] = TABLES,
    max_lag: float = 60.0,
) -> Checked:
    """Runs the checks of these kinds (all, if none is named) as Dagster does; the run itself succeeds."""
    checks = build_replication_checks(
        replication, list(dict.fromkeys([*TABLES, *tables])), max_lag=max_lag, connections=1
    )
    slot = dg.AssetKey([replication.name, SLOT_ASSET])
    wanted = [
        dg.AssetCheckKey(slot if kind == "slot_health" else dg.AssetKey(["duckdb", table.namespace, table.name]), kind)
        for kind in kinds or KINDS
        for table in tables
    ]
    definitions = dg.Definitions(
        asset_checks=checks,
        jobs=[dg.define_asset_job("some", selection=dg.AssetSelection.checks(*wanted))],
        resources={resource_key(replication.name): replication},
    )
    result = definitions.resolve_job_def("some").execute_in_process(instance=instance)
    assert result.success
    return Checked(result.get_asset_check_evaluations())


@contextlib.contextmanager
def streaming(replication: PostgresReplicationResource, *, now: Callable[[], datetime] | None = None) -> Iterator[None]:
    """A stream that runs beside, as another process's would; `now` is the clock by which it stores progress."""
    stop = threading.Event()
    with replication.pipeline(stop=stop) as pipeline:
        pipeline.prepare()
        if now is not None:
            cast(SqlStateStore, pipeline.store)._now = now
        thread = threading.Thread(target=pipeline.stream, name="stream-beside")
        thread.start()
        try:
            while not is_streamed(replication):
                assert thread.is_alive()
                thread.join(0.05)
            yield
        finally:
            stop.set()
            thread.join()


def is_streamed(replication: PostgresReplicationResource) -> bool:
    with replication.pipeline() as pipeline:
        slot = pipeline.status().slot
    return slot is not None and slot.active


# --- all is well ----------------------------------------------------------------------------------------------


def test_tables_whose_names_need_quotes_have_their_checks(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    quoted = [TableName("public", name) for name in ("Order Items", "a.b", "ümlaut", 'say "hi"')]
    for table in quoted:
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        database.execute(f"ALTER PUBLICATION shop_pub ADD TABLE {table}")
        database.execute(f"INSERT INTO {table} VALUES (1)")  # noqa: S608
    wider = PostgresReplicationResource(
        name=replication.name,
        publication="shop_pub",
        dsn=replication.dsn,
        state=replication.state,
        destination=replication.destination,
    )
    with wider.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    checked = run_checks(wider, instance, tables=quoted)
    for kind in TABLE_KINDS:
        assert checked.passed(kind) == {table.name: True for table in quoted}


def test_every_check_of_every_table_passes_and_none_blocks(
    replicated: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    checked = run_checks(replicated, instance, max_lag=3600)
    of_tables = {(kind, table.name) for kind in TABLE_KINDS for table in TABLES}
    assert checked.keys() == of_tables | {("slot_health", SLOT_ASSET)}
    assert all(all(checked.passed(kind).values()) for kind in KINDS)
    assert checked.number("equals_source", "orders", "etl/source_rows") == 100
    assert checked.number("equals_source", "notes", "etl/destination_rows") == 0
    assert "without a limit" in checked.description("slot_health", SLOT_ASSET)
    specs = [spec for each in build_replication_checks(replicated, TABLES) for spec in each.check_specs]
    assert sorted(spec.name for spec in specs) == sorted([*TABLE_KINDS, "table_state"] * len(TABLES) + ["slot_health"])
    assert not any(spec.blocking for spec in specs)


def test_one_table_can_be_checked_alone(replicated: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    checked = run_checks(replicated, instance, "equals_source", tables=[CUSTOMERS])
    assert checked.passed("equals_source") == {"customers": True}


def test_the_check_job_runs_all_of_them(replicated: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    checks = build_replication_checks(replicated, TABLES)
    definitions = dg.Definitions(
        asset_checks=checks,
        jobs=[build_check_job(replicated, checks)],
        resources={resource_key(replicated.name): replicated},
    )
    job = definitions.resolve_job_def(check_job_name(replicated.name))
    result = job.execute_in_process(instance=instance)
    assert len(result.get_asset_check_evaluations()) == (len(TABLE_KINDS) + 1) * len(TABLES) + 1
    assert job.tags[PIPELINE_TAG] == replicated.name


def test_a_stream_beside_is_in_step_and_is_held_while_rows_are_compared(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    with streaming(replicated):
        database.execute("INSERT INTO orders SELECT i, i FROM generate_series(101, 150) i")
        checked = run_checks(replicated, instance, "equals_source", "replication_lag")
    assert set(checked.passed("equals_source").values()) == {True}
    assert checked.number("equals_source", "orders", "etl/destination_rows") == 150
    assert set(checked.passed("replication_lag").values()) == {True}


def test_a_change_after_a_quiet_hour_does_not_look_an_hour_late(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    behind = timedelta(hours=1)
    age_progress(replicated, behind)
    with streaming(replicated, now=lambda: datetime.now(UTC) - behind):
        hold_stream(replicated, timedelta(seconds=3))  # so that it has not written the change when the check looks
        database.execute("UPDATE orders SET n = n + 1")
        behind = timedelta(0)
        checked = run_checks(replicated, instance, "replication_lag")
    assert set(checked.passed("replication_lag").values()) == {True}, checked.description("replication_lag", "orders")


# --- what goes wrong ------------------------------------------------------------------------------------------


def test_a_tampered_row_is_found_and_the_other_tables_are_equal(
    replicated: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute("UPDATE public.orders SET n = -1 WHERE id = 42")
    checked = run_checks(replicated, instance, "equals_source")
    assert checked.passed("equals_source") == {"orders": False, "customers": True, "notes": True}
    assert "1 changed; key 42;" in checked.description("equals_source", "orders")
    assert checked.number("equals_source", "orders", "etl/rows_changed") == 1


def test_schema_changes_at_the_source_are_named(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    database.execute("ALTER TABLE orders ADD COLUMN colour text; ALTER TABLE orders RENAME COLUMN note TO remark")
    database.execute("ALTER TABLE customers ALTER COLUMN note SET NOT NULL")
    database.execute("ALTER PUBLICATION shop_pub DROP TABLE notes")
    checked = run_checks(replicated, instance, "schema_matches")
    assert checked.passed("schema_matches") == {"orders": False, "customers": False, "notes": False}
    orders, customers = (checked.description("schema_matches", table) for table in ("orders", "customers"))
    assert "column colour (text) was added" in orders
    assert "column note (text) was renamed to remark (text)" in orders
    assert "dropped" not in orders
    assert "it follows with the table's next changed row" in orders
    assert "column note is NOT NULL now" in customers
    assert checked.severity("schema_matches", "orders") is dg.AssetCheckSeverity.ERROR
    assert checked.severity("schema_matches", "customers") is dg.AssetCheckSeverity.WARN
    assert "no longer published" in checked.description("schema_matches", "notes")


def test_an_added_column_follows_with_the_next_changed_row(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    database.execute("ALTER TABLE orders ADD COLUMN colour text")
    checked = run_checks(replicated, instance, "schema_matches")
    assert checked.passed("schema_matches") == {"orders": False, "customers": True, "notes": True}
    assert "it follows with the table's next changed row" in checked.description("schema_matches", "orders")
    database.execute("UPDATE orders SET colour = 'red' WHERE id = 1")
    with replicated.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
    checked = run_checks(replicated, instance, "schema_matches")
    assert set(checked.passed("schema_matches").values()) == {True}


def test_nobody_streams_and_changes_wait(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    age_progress(replicated, timedelta(minutes=10))
    database.execute("UPDATE orders SET n = n + 1")
    checked = run_checks(replicated, instance, "replication_lag")
    assert set(checked.passed("replication_lag").values()) == {False}
    assert "more than 60 s; nobody streams: start the stream" in checked.description("replication_lag", "orders")
    lag = checked.number("replication_lag", "orders", "etl/lag_seconds")
    assert isinstance(lag, float)
    assert 600 <= lag < 700


def test_a_source_that_is_away_is_a_sentence_not_an_exception(
    replicated: PostgresReplicationResource, postgres: Postgres, instance: dg.DagsterInstance
) -> None:
    postgres.stop()
    checked = run_checks(replicated, instance)
    for kind in KINDS:
        subjects = [SLOT_ASSET] if kind == "slot_health" else ["orders", "customers", "notes"]
        assert checked.passed(kind) == dict.fromkeys(subjects, False)
        description = checked.description(kind, subjects[0])
        assert "cannot connect to 127.0.0.1" in description
        assert "; check that the server runs" in description
        assert "password" not in description.lower()


def test_a_destination_that_is_away_is_a_sentence_too(
    replicated: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "shop.duckdb").write_bytes(b"not a database at all" * 1000)
    checked = run_checks(replicated, instance, "equals_source")
    assert checked.passed("equals_source") == {"orders": False, "customers": False, "notes": False}
    assert "is not a DuckDB database; name another file" in checked.description("equals_source", "orders")


def test_tables_that_are_not_streaming_say_their_state(
    replicated: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    with replicated.pipeline() as pipeline:
        pipeline.pause(ORDERS)
        pipeline.resync(CUSTOMERS)
    checked = run_checks(replicated, instance, max_lag=3600)
    for kind in ("replication_lag", "schema_matches", "equals_source"):
        assert checked.passed(kind) == {"orders": False, "customers": False, "notes": True}
        assert checked.description(kind, "orders") == "public.orders is paused"
        assert checked.description(kind, "customers") == "public.customers is to be copied"
        assert checked.severity(kind, "orders") is dg.AssetCheckSeverity.WARN


def test_before_the_first_sync_nothing_passes_and_nothing_is_made(
    replication: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    checked = run_checks(replication, instance)
    for kind in KINDS:
        assert set(checked.passed(kind).values()) == {False}
    assert "has not been replicated yet" in checked.description("equals_source", "orders")
    assert "nothing has been replicated yet" in checked.description("slot_health", SLOT_ASSET)
    assert database.execute("SELECT 1 FROM pg_replication_slots WHERE database = current_database()") == []


def test_a_slot_that_is_gone_fails_slot_health_and_lag(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance
) -> None:
    database.execute("SELECT pg_drop_replication_slot(%s)", (f"etl_{replicated.name}",))
    checked = run_checks(replicated, instance, "slot_health", "replication_lag", "equals_source")
    assert "does not exist" in checked.description("slot_health", SLOT_ASSET)
    assert "see slot_health" in checked.description("replication_lag", "orders")
    for kind in ("slot_health", "replication_lag", "equals_source"):
        assert set(checked.passed(kind).values()) == {False}


@pytest.fixture
def wal_limit(database: Database) -> Iterator[int]:
    """The server keeps 32 MB of WAL for a slot; in bytes."""
    database.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'")
    database.execute("SELECT pg_reload_conf()")
    try:
        yield 32 * 2**20
    finally:
        database.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        database.execute("SELECT pg_reload_conf()")


def test_slot_health_counts_down_to_the_wal_limit_until_the_slot_is_lost(
    replicated: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance, wal_limit: int
) -> None:
    slot = f"etl_{replicated.name}"
    while database.execute("SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = %s", (slot,)) == [(None,)]:
        pass  # the server reads its settings again a moment later
    checked = run_checks(replicated, instance, "slot_health")
    assert set(checked.passed("slot_health").values()) == {True}
    assert "before the limit of 32.0 MiB" in checked.description("slot_health", SLOT_ASSET)
    left = checked.number("slot_health", SLOT_ASSET, "etl/bytes_to_wal_limit")
    assert isinstance(left, int)
    assert 0.2 * wal_limit < left <= wal_limit + 16 * 2**20

    write_wal(database, left - int(0.1 * wal_limit))
    checked = run_checks(replicated, instance, "slot_health")
    assert set(checked.passed("slot_health").values()) == {False}
    assert "of WAL before the limit of 32.0 MiB" in checked.description("slot_health", SLOT_ASSET)
    assert checked.severity("slot_health", SLOT_ASSET) is dg.AssetCheckSeverity.WARN

    write_wal(database, 2 * wal_limit)
    database.execute("CHECKPOINT")
    checked = run_checks(replicated, instance, "slot_health", "replication_lag")
    assert f"replication slot {slot} is lost" in checked.description("slot_health", SLOT_ASSET)
    assert checked.severity("slot_health", SLOT_ASSET) is dg.AssetCheckSeverity.ERROR
    assert set(checked.passed("replication_lag").values()) == {False}


def write_wal(database: Database, size: int) -> None:
    """About `size` bytes of WAL that no slot of ours decodes."""
    for _ in range(size // 2**20):
        database.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1024 * 1024 - 64))")


def hold_stream(replication: PostgresReplicationResource, time: timedelta) -> None:
    """Has the running stream stand still for that long, from now."""
    with replication.pipeline() as pipeline:
        pipeline.store.request_hold(Hold("test", datetime.now(UTC) + time))
        while (hold := pipeline.store.hold()) is not None and hold.reached is None:
            pass


def age_progress(replication: PostgresReplicationResource, age: timedelta) -> None:
    """As if the last progress had been stored that long ago, with no lag."""
    stored_at = datetime.now(UTC) - age
    with contextlib.closing(open_store(replication.state.url, replication.name, now=lambda: stored_at)) as store:
        progress = store.progress()
        assert progress is not None
        store.save_progress(replace(progress, lag_seconds=0.0))


# --- what is concluded from what was read -----------------------------------------------------------------------


def progress_at(flushed: int, *, age: float, lag: float = 0.0) -> ReplicationProgress:
    return ReplicationProgress(Lsn(flushed), lag_seconds=lag, updated_at=NOW - timedelta(seconds=age))


@pytest.mark.parametrize(
    ("progress", "lag"),
    [
        (None, None),
        (progress_at(1000, age=86400), 0.0),  # a quiet source
        (progress_at(1001, age=86400), 0.0),  # the stream was faster than our look
        (progress_at(999, age=30), 30.0),
        (progress_at(999, age=1, lag=300), 301.0),  # it catches up
        (progress_at(999, age=-5), 0.0),  # another machine's clock is ahead
    ],
)
def test_lag_is_the_longest_time_the_table_may_lack_something(
    progress: ReplicationProgress | None, lag: float | None
) -> None:
    assert StreamReading(NOW, Lsn(1000), SLOT, progress).lag_seconds == lag


@pytest.mark.parametrize(
    ("slot", "progress", "passed", "says"),
    [
        (SLOT, progress_at(1000, age=86400), True, "has all the source has"),
        (SLOT, progress_at(900, age=59), True, "is at most 59 s behind"),
        (SLOT, progress_at(900, age=61), False, "the stream runs but does not keep up"),
        (replace(SLOT, active=False), progress_at(900, age=61), False, "nobody streams"),
        (replace(SLOT, active=False), progress_at(1000, age=61), True, "has all the source has"),
        (replace(SLOT, wal_status="lost"), progress_at(1000, age=1), False, "is lost; see slot_health"),
        (None, progress_at(1000, age=1), False, "does not exist; see slot_health"),
        (SLOT, None, False, "has not begun"),
    ],
)
def test_lag_is_judged(slot: SlotStatus | None, progress: ReplicationProgress | None, passed: bool, says: str) -> None:
    verdict = judge_lag(ORDERS, StreamReading(NOW, Lsn(1000), slot, progress), 60)
    assert verdict.passed is passed
    assert says in verdict.description


def test_how_long_the_wal_limit_lasts_is_told_and_plotted() -> None:
    slot = replace(SLOT, safe_wal_size=50 * 2**20)
    verdict = judge_slot(SlotReading("etl_shop", slot, limit=100 * 2**20, rate=2.0**20))
    assert verdict.passed
    assert "50.0 MiB of WAL before the limit of 100.0 MiB, which lasts 50 s" in verdict.description
    assert verdict.numbers["etl/seconds_to_wal_limit"] == 50.0


@pytest.mark.parametrize(
    ("change", "limit", "passed", "severity"),
    [
        ({"safe_wal_size": 21}, 100, True, dg.AssetCheckSeverity.ERROR),
        ({"safe_wal_size": 19}, 100, False, dg.AssetCheckSeverity.WARN),
        ({"safe_wal_size": 19}, None, True, dg.AssetCheckSeverity.ERROR),
        ({"wal_status": "extended", "safe_wal_size": 50}, 100, True, dg.AssetCheckSeverity.ERROR),
        ({"wal_status": "unreserved", "safe_wal_size": -5}, 100, False, dg.AssetCheckSeverity.ERROR),
        ({"wal_status": "lost"}, 100, False, dg.AssetCheckSeverity.ERROR),
        ({"invalidation_reason": "idle_timeout"}, None, False, dg.AssetCheckSeverity.ERROR),
    ],
)
def test_a_slot_is_judged(
    change: Mapping[str, Any], limit: int | None, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    verdict: Verdict = judge_slot(SlotReading("etl_shop", replace(SLOT, **change), limit, rate=0.0))
    assert verdict.passed is passed
    assert verdict.severity is severity
    assert "etl/seconds_to_wal_limit" not in verdict.numbers
