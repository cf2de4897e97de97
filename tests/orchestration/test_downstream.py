"""What is built on replicated tables: the example's assets on real ones, and when the condition requests an asset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import duckdb
import psycopg
import pytest

from etl_core.testing.postgres import Database
from etl_dagster.definitions.automation import on_replicated_change
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from examples.downstream import downstream_assets, downstream_resources

ORDERS = dg.AssetKey(["duckdb", "public", "orders"])
CUSTOMERS = dg.AssetKey(["duckdb", "public", "customers"])
TABLES = [dg.AssetSpec(ORDERS), dg.AssetSpec(CUSTOMERS)]


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> PostgresReplicationResource:
    """The two tables of the example, replicated."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute("CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, country char(2) NOT NULL)")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, total numeric(12,2))")
        connection.execute("INSERT INTO customers VALUES (1, 'Ada', 'GB'), (2, 'Blaise', 'FR'), (3, 'Carl', 'FR')")
        connection.execute("INSERT INTO orders VALUES (1, 1, 10.50), (2, 1, 2.00), (3, 2, 7.25)")
        connection.execute("CREATE PUBLICATION shop_pub FOR TABLE orders, customers")
    replication = PostgresReplicationResource(
        name=f"shop_{database.name[-6:]}",
        dsn=database.server.local_dsn(database.name),
        publication="shop_pub",
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    return replication


def test_the_examples_assets_read_the_replicated_tables_and_write_to_a_file_of_their_own(
    shop: PostgresReplicationResource, database: Database, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    resources = downstream_resources(str(tmp_path / "shop.duckdb"), str(tmp_path / "reports.duckdb"))
    materialize(instance, resources)
    assert read(tmp_path / "reports.duckdb", "FROM marts.order_counts ORDER BY id") == [
        (1, "Ada", 2),
        (2, "Blaise", 1),
        (3, "Carl", 0),
    ]
    assert read(tmp_path / "reports.duckdb", "FROM marts.revenue_by_country ORDER BY country") == [
        ("FR", 1, 7.25),
        ("GB", 2, 12.5),
    ]

    database.execute("INSERT INTO orders VALUES (4, 3, 100)")
    with shop.pipeline() as pipeline:
        pipeline.stream(until=pipeline.current_lsn())
    materialize(instance, resources)
    assert read(tmp_path / "reports.duckdb", "SELECT orders FROM marts.order_counts ORDER BY id") == [
        (2,),
        (1,),
        (1,),
    ]
    assert read(tmp_path / "reports.duckdb", "FROM marts.revenue_by_country ORDER BY country") == [
        ("FR", 2, 107.25),
        ("GB", 2, 12.5),
    ]


def test_loading_the_example_opens_nothing_and_both_assets_wait_for_changes(tmp_path: Path) -> None:
    resources = downstream_resources(str(tmp_path / "absent.duckdb"), str(tmp_path / "none" / "reports.duckdb"))
    definitions = dg.Definitions(assets=[*TABLES, *downstream_assets()], resources=resources)
    dg.Definitions.validate_loadable(definitions)
    assert list(tmp_path.iterdir()) == []
    labels = {
        key.to_user_string(): spec.automation_condition.get_label()
        for asset in downstream_assets()
        for key, spec in asset.specs_by_key.items()
        if spec.automation_condition is not None
    }
    assert labels == dict.fromkeys(("marts/order_counts", "marts/revenue_by_country"), "on_replicated_change")


def materialize(instance: dg.DagsterInstance, resources: dict[str, object]) -> None:
    """Both assets of the example, as a code location beside the replicated tables has them."""
    assert dg.materialize([*TABLES, *downstream_assets()], instance=instance, resources=resources).success


def read(path: Path, query: str) -> list[tuple[object, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(query).fetchall()


class Daemon:
    """Evaluates the condition of one downstream asset, tick by tick, as the daemon does."""

    def __init__(self, instance: dg.DagsterInstance, every: str | None = None) -> None:
        self.instance = instance
        self.ticked_inside: list[int] = []
        self.inside: Callable[[], None] = lambda: None
        self._cursor: dg.AssetDaemonCursor | None = None

        @dg.asset(deps=[ORDERS, CUSTOMERS], automation_condition=on_replicated_change(every=every))
        def report() -> None:
            self.inside()

        self.report = report
        self.definitions = dg.Definitions(assets=[*TABLES, report])

    def tick(self, at: datetime | None = None) -> int:
        """How often the report is requested; `at` is what the daemon's clock says."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            instance=self.instance,
            asset_selection=dg.AssetSelection.assets("report"),
            cursor=self._cursor,
            evaluation_time=at,
        )
        self._cursor = result.cursor
        return result.total_requested

    def report_table(self, key: dg.AssetKey, lsn: str) -> None:
        """What the stream logs: a change, or with the same LSN a heartbeat."""
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, tags={"dagster/data_version": lsn}))

    def run(self) -> None:
        dg.materialize([self.report], instance=self.instance)


@pytest.fixture
def daemon(instance: dg.DagsterInstance) -> Daemon:
    """Both tables are there, and the condition has seen them."""
    daemon = Daemon(instance)
    daemon.report_table(ORDERS, "0/A0")
    daemon.report_table(CUSTOMERS, "0/B0")
    assert daemon.tick() == 0
    return daemon


def test_a_new_lsn_requests_the_asset_once_and_a_heartbeat_does_not(daemon: Daemon) -> None:
    daemon.report_table(ORDERS, "0/A1")
    assert daemon.tick() == 1
    assert daemon.tick() == 0
    daemon.run()
    assert daemon.tick() == 0
    daemon.report_table(ORDERS, "0/A1")
    daemon.report_table(CUSTOMERS, "0/B0")
    assert daemon.tick() == 0
    daemon.report_table(ORDERS, "0/A2")
    assert daemon.tick() == 1


def test_a_change_among_heartbeats_is_seen(daemon: Daemon) -> None:
    for lsn in ("0/A0", "0/A1", "0/A1"):
        daemon.report_table(ORDERS, lsn)
    assert daemon.tick() == 1


def test_both_upstreams_changed_request_the_asset_once(daemon: Daemon) -> None:
    daemon.report_table(ORDERS, "0/A1")
    daemon.report_table(CUSTOMERS, "0/B1")
    assert daemon.tick() == 1
    assert daemon.tick() == 0


def test_nothing_is_requested_while_an_upstream_is_missing(instance: dg.DagsterInstance) -> None:
    daemon = Daemon(instance)
    assert daemon.tick() == 0
    daemon.report_table(ORDERS, "0/A1")
    assert daemon.tick() == 0
    daemon.report_table(CUSTOMERS, "0/B1")
    assert daemon.tick() == 1


def test_a_change_during_the_run_requests_the_asset_after_it_and_not_meanwhile(daemon: Daemon) -> None:
    daemon.report_table(ORDERS, "0/A1")
    assert daemon.tick() == 1
    ticks: list[int] = []

    def during_the_run() -> None:
        daemon.report_table(CUSTOMERS, "0/B1")  # the asset has read its input already
        ticks.extend([daemon.tick(), daemon.tick()])

    daemon.inside = during_the_run
    daemon.run()
    daemon.inside = lambda: None
    assert ticks == [0, 0]
    assert daemon.tick() == 1
    daemon.run()
    assert daemon.tick() == 0


def test_a_load_of_another_package_requests_the_asset_each_time(instance: dg.DagsterInstance) -> None:
    """What dlt loads, say, has no data version of its own; Dagster then takes each materialisation for a new one."""

    @dg.asset
    def loaded() -> None: ...

    @dg.asset(deps=[loaded], automation_condition=on_replicated_change())
    def report() -> None: ...

    definitions = dg.Definitions(assets=[loaded, report])
    cursor: dg.AssetDaemonCursor | None = None
    requested = []
    for _ in range(3):
        dg.materialize([loaded], instance=instance)
        for _ in range(2):
            result = dg.evaluate_automation_conditions(
                definitions, instance=instance, asset_selection=dg.AssetSelection.assets("report"), cursor=cursor
            )
            cursor = result.cursor
            requested.append(result.total_requested)
    assert requested == [0, 0, 1, 0, 1, 0]


def at(clock: str) -> datetime:
    """A time of one day, such as `10:05:30`."""
    return datetime.fromisoformat(f"2026-03-01T{clock}").replace(tzinfo=UTC)


@pytest.fixture
def paced(instance: dg.DagsterInstance) -> Daemon:
    """Both tables are there since 09:55, and the report is to be built every ten minutes at most."""
    daemon = Daemon(instance, every="10m")
    daemon.report_table(ORDERS, "0/A0")
    daemon.report_table(CUSTOMERS, "0/B0")
    assert daemon.tick(at("09:55:00")) == 0
    return daemon


def test_with_every_changes_request_the_asset_once_when_the_time_is_over(paced: Daemon) -> None:
    requested = {}
    for minute in range(30):  # changes all the time, two ticks a minute
        for second in (10, 40):
            paced.report_table(ORDERS, f"0/A{minute:02}{second}")
            clock = f"10:{minute:02}:{second}"
            if paced.tick(at(clock)):
                requested[clock] = True
                paced.run()
    assert [*requested] == ["10:00:10", "10:10:10", "10:20:10"]


def test_with_every_a_change_within_the_time_is_not_lost(paced: Daemon) -> None:
    paced.report_table(ORDERS, "0/A1")
    assert paced.tick(at("09:59:30")) == 0
    assert paced.tick(at("10:00:05")) == 1
    paced.run()
    paced.report_table(CUSTOMERS, "0/B1")  # the last one for long
    ticks = [paced.tick(at(f"10:{minute:02}:05")) for minute in range(1, 20)]
    assert ticks == [0] * 9 + [1] + [0] * 9


def test_with_every_nothing_is_requested_where_nothing_changed(paced: Daemon) -> None:
    assert paced.tick(at("10:00:05")) == 0
    paced.report_table(ORDERS, "0/A0")  # a heartbeat
    assert paced.tick(at("10:10:05")) == 0
    assert paced.tick(at("10:20:05")) == 0


def test_with_every_a_time_that_ends_during_the_run_counts_after_it(paced: Daemon) -> None:
    paced.report_table(ORDERS, "0/A1")
    assert paced.tick(at("10:00:05")) == 1
    ticks: list[int] = []

    def during_the_run() -> None:
        paced.report_table(CUSTOMERS, "0/B1")
        ticks.extend(paced.tick(at(clock)) for clock in ("10:02:00", "10:10:05", "10:11:00"))

    paced.inside = during_the_run
    paced.run()
    paced.inside = lambda: None
    assert ticks == [0, 0, 0]
    assert paced.tick(at("10:12:00")) == 1
    paced.run()
    assert paced.tick(at("10:20:05")) == 0


def test_with_every_a_daemon_that_was_away_requests_the_asset_once(paced: Daemon) -> None:
    paced.report_table(ORDERS, "0/A1")
    assert paced.tick(at("12:34:56")) == 1
    assert paced.tick(at("12:40:01")) == 0
    paced.run()
    paced.report_table(ORDERS, "0/A2")
    assert paced.tick(at("14:00:00")) == 1  # between two ticks: the request, its run, and the next change
    paced.report_table(ORDERS, "0/A3")
    assert paced.tick(at("14:10:00")) == 1
    assert paced.tick(at("14:20:00")) == 0


@pytest.mark.parametrize(
    ("every", "cron"),
    [
        ("1m", "*/1 * * * *"),
        ("600s", "*/10 * * * *"),
        ("60m", "0 * * * *"),
        ("6h", "0 */6 * * *"),
        ("24h", "0 0 * * *"),
    ],
)
def test_every_is_a_schedule_that_dagsters_own_sensor_evaluates(every: str, cron: str) -> None:
    condition = on_replicated_change(every=every)
    assert condition.is_serializable
    assert condition.get_label() == f"on_replicated_change(every={every})"
    assert f"cron_schedule={cron}," in str(condition.get_snapshot())


@pytest.mark.parametrize("every", ["30s", "7m", "90m", "5h", "48h", "0", "soon", "1.5m"])
def test_every_that_is_no_part_of_the_clock_is_refused(every: str) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="every: "):
        on_replicated_change(every=every)


def test_what_is_built_eagerly_on_a_paced_asset_is_built_in_its_run(instance: dg.DagsterInstance) -> None:
    @dg.multi_asset(
        can_subset=True,
        specs=[
            dg.AssetSpec("model", deps=[ORDERS], automation_condition=on_replicated_change(every="10m")),
            dg.AssetSpec("mart", deps=["model"], automation_condition=dg.AutomationCondition.eager()),
        ],
    )
    def models() -> Iterator[dg.MaterializeResult[None]]:
        yield dg.MaterializeResult("model")
        yield dg.MaterializeResult("mart")

    definitions = dg.Definitions(assets=[dg.AssetSpec(ORDERS), models])
    cursor: dg.AssetDaemonCursor | None = None
    requested = []
    for clock, lsn in (("09:55", "0/A0"), ("09:57", "0/A1"), ("10:00", None), ("10:01", None), ("10:10", None)):
        if lsn is not None:
            materialization = dg.AssetMaterialization(ORDERS, tags={"dagster/data_version": lsn})
            instance.report_runless_asset_event(materialization)
        result = dg.evaluate_automation_conditions(
            definitions,
            instance=instance,
            asset_selection=dg.AssetSelection.assets("model", "mart"),
            cursor=cursor,
            evaluation_time=at(f"{clock}:05"),
        )
        cursor = result.cursor
        requested.append(result.total_requested)
        if clock == "09:55" or result.total_requested:
            dg.materialize([models], instance=instance)
    assert requested == [0, 0, 2, 0, 0]
