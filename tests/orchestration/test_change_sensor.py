"""The sensor that counts changed rows: real reports of copies and streams, and when it starts what reads the tables."""

from typing import Any

import dagster as dg
import pytest

from etl_core.testing.postgres import Database
from etl_dagster import PostgresReplicationResource, StreamConfig, build_change_sensor, build_postgres_replication
from etl_dagster.definitions.change_sensor import CHANGE_SENSOR_TAG
from etl_dagster.names import resource_key, stream_job_name
from etl_dagster.stream.sensor_text import REASON_TAG
from tests.orchestration.syncing import CUSTOMERS, ORDERS, streaming, sync

ORDERS_KEY, CUSTOMERS_KEY = (dg.AssetKey(["duckdb", "public", table]) for table in ("orders", "customers"))


@dg.asset(deps=[ORDERS_KEY, CUSTOMERS_KEY])
def report() -> None:
    """Reads both tables."""


@dg.asset(deps=[report])
def chart() -> None:
    """Is built on the report, and started with it."""


class Location:
    """A code location: the pipeline, two assets of its user, and a sensor that waits for ten changed rows."""

    def __init__(self, replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
        self.replication = replication
        self.instance = instance
        self.sensor = build_change_sensor("rebuild", [report, chart], min_rows=10)
        self.definitions = dg.Definitions.merge(
            build_postgres_replication(replication),
            dg.Definitions(assets=[report, chart], sensors=[self.sensor]),
        )
        self.cursor: str | None = None

    def tick(self) -> str:
        """One tick as the daemon evaluates it: why no run was requested; else `run: ` and why."""
        with dg.build_sensor_context(self.instance, cursor=self.cursor, definitions=self.definitions) as context:
            data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        if data.skip_message is not None:
            assert not data.run_requests
            return data.skip_message
        [self.request] = data.run_requests or []
        return f"run: {self.request.tags[REASON_TAG]}"

    def run(self) -> dg.DagsterRun:
        """The run that was requested last, not begun yet."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return self.instance.create_run_for_job(
            job, tags=self.request.tags, asset_selection=frozenset(self.request.asset_selection or ())
        )

    def stream(self) -> None:
        """A micro-batch, with its reports to Dagster."""
        name = self.replication.name
        result = self.definitions.resolve_job_def(stream_job_name(name)).execute_in_process(
            instance=self.instance,
            resources={resource_key(name): self.replication},
            run_config=dg.RunConfig(ops={f"stream_{name}": StreamConfig(mode="micro_batch")}),
        )
        assert result.success


@pytest.fixture
def location(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> Location:
    """Its tables are copied, and the sensor has ticked once."""
    location = Location(replication, instance)
    assert sync(replication, instance).success
    assert location.tick() == "0 rows changed; the run starts at 10"
    return location


def test_a_run_starts_when_so_many_rows_of_all_tables_have_changed(location: Location, database: Database) -> None:
    database.execute("UPDATE orders SET n = -n WHERE id <= 4; DELETE FROM orders WHERE id = 100")
    location.stream()
    changed = "5 rows changed: 5 in duckdb/public/orders; the run starts at 10"
    assert location.tick() == changed
    assert location.tick() == changed

    database.execute("INSERT INTO customers SELECT i, i FROM generate_series(101, 106) i")
    location.stream()
    assert location.tick() == "run: 11 rows changed: 6 in duckdb/public/customers, 5 in duckdb/public/orders"
    assert location.request.asset_selection == [chart.key, report.key]
    assert location.request.tags[CHANGE_SENSOR_TAG] == "rebuild"
    assert location.tick() == "0 rows changed; the run starts at 10"


def test_what_changes_while_the_run_is_under_way_counts_for_the_next_one(
    location: Location, database: Database
) -> None:
    database.execute("UPDATE orders SET n = -n WHERE id <= 10")
    location.stream()
    location.tick()
    first, run = location.request, location.run()

    database.execute("UPDATE orders SET n = -n WHERE id <= 12")
    location.stream()
    under_way = f"12 rows changed: 12 in duckdb/public/orders; run {run.run_id[:8]}… is under way"
    assert [location.tick(), location.tick()] == [under_way] * 2

    location.instance.report_run_canceled(run)
    assert location.tick() == "run: 12 rows changed: 12 in duckdb/public/orders"
    assert location.request.run_key != first.run_key


def test_a_daemon_that_died_before_it_stored_the_cursor_starts_no_second_run(
    location: Location, database: Database
) -> None:
    database.execute("UPDATE orders SET n = -n WHERE id <= 10")
    location.stream()
    before = location.cursor
    location.tick()
    first, location.cursor = location.request, before
    location.tick()
    assert location.request.run_key == first.run_key


def test_a_copy_and_a_truncate_count_as_enough(location: Location, database: Database) -> None:
    assert sync(location.replication, location.instance, CUSTOMERS, full_refresh=True).success
    assert location.tick() == "run: duckdb/public/customers copied or emptied"
    database.execute("TRUNCATE orders; INSERT INTO customers VALUES (101, 1)")
    location.stream()
    assert location.tick() == (
        "run: duckdb/public/orders copied or emptied; 1 row changed: 1 in duckdb/public/customers"
    )


def test_materializing_a_table_that_streams_counts_nothing(location: Location, database: Database) -> None:
    database.execute("UPDATE orders SET n = -n WHERE id <= 4")
    location.stream()
    with streaming(location.replication):  # which the step waits for, if the server has written WAL of its own
        assert sync(location.replication, location.instance, ORDERS).success
    location.instance.report_runless_asset_event(dg.AssetMaterialization(CUSTOMERS_KEY))  # of somebody else
    assert location.tick() == "4 rows changed: 4 in duckdb/public/orders; the run starts at 10"


def test_it_waits_until_every_table_was_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    location = Location(replication, instance)
    waits = "waits for the first materialisation of duckdb/public/customers"
    assert location.tick() == f"{waits}, duckdb/public/orders"
    assert sync(replication, instance, ORDERS).success
    assert location.tick() == waits
    assert sync(replication, instance, CUSTOMERS).success
    assert location.tick() == "run: duckdb/public/customers, duckdb/public/orders copied or emptied"


def test_more_reports_than_one_tick_reads_come_at_the_next(
    location: Location, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        database.execute("UPDATE orders SET n = -n WHERE id <= 4")
        location.stream()
    monkeypatch.setattr("etl_dagster.definitions.change_sensor._REPORTS_A_TICK", 2)
    assert location.tick() == "8 rows changed: 8 in duckdb/public/orders; the run starts at 10"
    assert location.tick() == "run: 12 rows changed: 12 in duckdb/public/orders"


def test_what_is_left_of_many_reports_starts_a_run_of_its_own(
    location: Location, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the newest report of all was counted by the first one: Dagster skips a run key that it has seen."""
    for _ in range(4):
        database.execute("UPDATE customers SET n = -n WHERE id <= 10")
        location.stream()
    database.execute("UPDATE orders SET n = -n WHERE id <= 5")
    location.stream()
    monkeypatch.setattr("etl_dagster.definitions.change_sensor._REPORTS_A_TICK", 2)
    assert location.tick().startswith("run: 25 rows changed")
    first = location.request
    assert location.tick().startswith("run: 20 rows changed")
    assert location.request.run_key != first.run_key


@pytest.mark.parametrize("deps", [[], ["file"]])
def test_what_reads_no_replicated_table_is_told_so(instance: dg.DagsterInstance, deps: list[str]) -> None:
    @dg.asset(deps=deps)
    def made() -> None: ...

    sensor: Any = build_change_sensor("counts", [made], min_rows=1)
    definitions = dg.Definitions(assets=[made], sensors=[sensor])
    for key in deps:
        instance.report_runless_asset_event(dg.AssetMaterialization(key))
    with dg.build_sensor_context(instance, definitions=definitions) as context:
        assert sensor.evaluate_tick(context).skip_message == (
            f"counts no rows: the assets read {', '.join(deps) or 'nothing'}, and no stream or copy has reported any of"
            " it yet"
        )


def test_less_than_one_row_is_refused() -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="sensor rebuild: min_rows must be at least 1, not 0"):
        build_change_sensor("rebuild", [report], min_rows=0)
