"""What the page of a replicated table says after a copy, a report of the stream, a heartbeat and a schema change."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import duckdb
import pytest

from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import ORDERS, TABLES, materializations, sync
from tests.orchestration.test_sensor import connections

KEY = dg.AssetKey(["duckdb", "public", "orders"])
STAYS = {
    "dagster/column_lineage",
    "dagster/column_schema",
    "dagster/row_count",
    "dagster/table_name",
    "dagster/uri",
    "etl/bytes",
    "etl/comment",
    "etl/lsn",
    "etl/summary",
}
"""What is on the page whatever the last report was."""


def test_a_step_asks_for_all_sizes_on_one_connection(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = connections(monkeypatch)
    result = sync(replication, instance)
    assert {event.metadata["etl/bytes"].value for event in materializations(result).values()} >= {16384}
    assert roles.count("size") == 1


class Shop:
    """The replicated tables, as the pages of Dagster show them."""

    def __init__(
        self, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
    ) -> None:
        self.replication = replication
        self.instance = instance
        self.database = database

    def stream(self, **config: Any) -> None:
        """Streams what has come, and reports it."""
        result = build_stream_job(self.replication, TABLES).execute_in_process(
            instance=self.instance,
            resources={names.resource_key(self.replication.name): self.replication},
            run_config=dg.RunConfig(
                ops={f"stream_{self.replication.name}": StreamConfig(mode="micro_batch", **config)}
            ),
        )
        assert result.success

    def page(self) -> Mapping[str, Any]:
        """The metadata of the last report of `orders`."""
        event = self.instance.get_latest_materialization_event(KEY)
        assert event is not None
        assert event.asset_materialization is not None
        return {label: value.value for label, value in event.asset_materialization.metadata.items()}

    def observations(self, key: dg.AssetKey) -> list[dg.AssetObservation]:
        """The newest first."""
        records = self.instance.fetch_observations(key, limit=100).records
        return [record.asset_observation for record in records if record.asset_observation is not None]

    def count(self) -> int:
        with duckdb.connect(self.replication.destination.options()["path"], read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM public.orders").fetchall()[0][0])


@pytest.fixture
def shop(replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database) -> Shop:
    """`orders` is copied, and waits for the stream."""
    database.execute("COMMENT ON TABLE orders IS 'What was bought'; COMMENT ON COLUMN orders.note IS 'By the customer'")
    assert sync(replication, instance, ORDERS).success
    return Shop(replication, instance, database)


def test_what_is_known_of_a_table_stays_on_its_page(shop: Shop) -> None:
    copied = shop.page()
    assert copied.keys() >= STAYS
    assert copied["etl/bytes"] >= copied["etl/bytes_copied"]
    assert copied["etl/summary"] == f"copied 100 rows at {copied['etl/lsn']}"
    shop.database.execute(
        "INSERT INTO orders SELECT i, i FROM generate_series(101, 150) i; DELETE FROM orders WHERE id < 21"
    )
    shop.stream()
    streamed = shop.page()
    assert streamed.keys() >= STAYS | {"etl/last_change", "etl/lag_seconds"}
    assert streamed["etl/summary"] == f"70 changes up to {streamed['etl/lsn']}: 50 inserted, 20 deleted"
    shop.stream(heartbeat_every_seconds=1e-9)
    quiet = shop.page()
    assert quiet.keys() >= STAYS | {"etl/last_change"}
    assert quiet["etl/summary"] == f"no change since {streamed['etl/lsn']}: the stream is alive"
    assert quiet["etl/last_change"] == streamed["etl/last_change"]
    assert [page["dagster/row_count"] for page in (copied, streamed, quiet)] == [100, 130, 130]
    assert shop.count() == 130
    with duckdb.connect(shop.replication.destination.options()["path"], read_only=True) as connection:
        [(name,)] = connection.execute("SELECT current_database()").fetchall()
    assert {page["dagster/table_name"] for page in (copied, streamed, quiet)} == {f"{name}.public.orders"}
    assert copied["dagster/column_schema"] == streamed["dagster/column_schema"] == quiet["dagster/column_schema"]
    columns = {column.name: column for column in copied["dagster/column_schema"].columns}
    assert [(column.name, column.type) for column in columns.values()] == [
        ("id", "INTEGER"),
        ("n", "INTEGER"),
        ("note", "VARCHAR"),
    ]
    assert columns["id"].constraints == dg.TableColumnConstraints(nullable=False, unique=True, other=["key"])
    assert columns["note"].description == "By the customer"
    [source] = copied["dagster/column_lineage"].deps_by_column["note"]
    assert source == dg.TableColumnDep(dg.AssetKey([shop.replication.name, "public", "orders"]), "note")


def test_the_count_is_right_after_everything_that_changes_it(shop: Shop) -> None:
    """Each step ends with a report; the count is what a query finds, or is not said."""
    counts = []
    for change in (
        "UPDATE orders SET id = id + 1000 WHERE id <= 10",
        "DELETE FROM orders WHERE id > 1000; INSERT INTO orders VALUES (1, 1)",
        "TRUNCATE orders; INSERT INTO orders SELECT i, i FROM generate_series(1, 7) i",
        "INSERT INTO orders VALUES (8, 8)",
    ):
        shop.database.execute(change)
        shop.stream()
        counts.append((shop.page()["dagster/row_count"], shop.count()))
    assert counts == [(100, 100), (91, 91), (7, 7), (8, 8)]


def test_the_count_goes_on_after_a_run_that_could_report_nothing(shop: Shop) -> None:
    shop.stream()
    shop.database.execute("DELETE FROM orders WHERE id <= 40")
    with shop.replication.pipeline() as pipeline:  # as by a run that was killed before its report
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
    shop.database.execute("DELETE FROM orders WHERE id <= 50")
    shop.stream()
    assert shop.page()["dagster/row_count"] == shop.count() == 50


def test_changes_that_a_new_copy_has_already_are_not_counted_twice(shop: Shop, instance: dg.DagsterInstance) -> None:
    shop.stream()
    shop.database.execute("INSERT INTO orders SELECT i, i FROM generate_series(101, 110) i")
    assert sync(shop.replication, instance, ORDERS, full_refresh=True).success
    assert shop.page()["dagster/row_count"] == 110
    shop.database.execute("INSERT INTO orders SELECT i, i FROM generate_series(111, 115) i")
    shop.stream()  # reads both inserts, and applies the second
    assert shop.page()["etl/rows_inserted"] == 5
    assert shop.page()["dagster/row_count"] == shop.count() == 115


def test_a_schema_change_is_an_event_with_its_difference(shop: Shop) -> None:
    shop.stream()
    assert shop.observations(KEY) == []
    shop.database.execute("ALTER TABLE orders ADD COLUMN paid boolean; INSERT INTO orders VALUES (101, 1, 'x', true)")
    shop.stream()
    [change] = shop.observations(KEY)
    assert change.description == "columns changed: paid (BOOLEAN) was added"
    columns = shop.page()["dagster/column_schema"]
    assert [column.name for column in columns.columns] == ["id", "n", "note", "paid"]
    assert change.metadata["dagster/column_schema"].value == columns
    after, before = shop.observations(dg.AssetKey([shop.replication.name, "public", "orders"]))
    for observation, types in ((before, ["int4", "int4", "text"]), (after, ["int4", "int4", "text", "bool"])):
        shown: Any = observation.metadata["etl/columns"].value
        assert [column.type for column in shown.columns] == types
        assert observation.metadata["etl/comment"].value == "What was bought"
    shop.stream(heartbeat_every_seconds=1e-9)
    assert shop.observations(KEY) == [change]


def test_a_change_that_takes_a_new_copy_is_an_event_of_the_copy(shop: Shop, instance: dg.DagsterInstance) -> None:
    shop.stream()
    shop.database.execute("ALTER TABLE orders ALTER COLUMN n TYPE bigint")
    assert sync(shop.replication, instance, ORDERS, full_refresh=True).success
    [change] = shop.observations(KEY)
    assert change.description == "columns changed: n changed from INTEGER to BIGINT"
