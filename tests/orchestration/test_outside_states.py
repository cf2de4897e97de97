"""What the `etl` command does while no stream run is there, and what the sensor's next tick tells Dagster of it."""

from pathlib import Path

import dagster as dg
import pytest
import yaml

from etl_core.cli import main
from etl_core.testing.postgres import Database
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.names import resource_key, stream_sensor_name
from etl_dagster.reports.table_states import TABLE_STATE
from etl_dagster.resources import PostgresReplicationResource
from tests.orchestration.syncing import NOTES, ORDERS, TABLES, await_slot, sync
from tests.orchestration.test_sensor import read_elsewhere, synced
from tests.orchestration.test_stream import Runs

KEYS = {table.name: dg.AssetKey(["duckdb", "public", table.name]) for table in TABLES}


class Shop:
    """A pipeline in Dagster, whose sensor is on, and the configuration of the `etl` command for it."""

    def __init__(
        self, replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, folder: Path
    ) -> None:
        self.replication = replication
        self.instance = instance
        self.database = database
        self.definitions = build_postgres_replication(replication)
        self.cursor: str | None = None
        self.runs = Runs(replication, instance)
        assert isinstance(replication.destination, DuckDBDestinationResource)
        self.file = folder / "etl.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "pipeline": replication.name,
                    "source": {"dsn": database.server.local_dsn(database.name), "publication": "shop_pub"},
                    "destination": {"type": "duckdb", "path": replication.destination.path},
                    "state": {"url": replication.state.url},
                }
            )
        )

    def etl(self, *arguments: str) -> None:
        assert main([*arguments, "--config", str(self.file)]) == 0

    def tick(self) -> int:
        """One tick as the daemon does it: how many results it told."""
        name = self.replication.name
        sensor = self.definitions.resolve_sensor_def(stream_sensor_name(name))
        resources = {resource_key(name): self.replication}
        with dg.build_sensor_context(self.instance, resources=resources, cursor=self.cursor) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        for event in data.asset_events:
            assert isinstance(event, dg.AssetCheckEvaluation)
            self.instance.report_runless_asset_event(event)
        return len(data.asset_events)

    def told(self) -> dict[str, list[str]]:
        """The descriptions of all results of the check that Dagster has, the first first."""
        storage = self.instance.event_log_storage
        found = {}
        for table, key in KEYS.items():
            records = storage.get_asset_check_execution_history(dg.AssetCheckKey(key, TABLE_STATE), limit=100)
            found[table] = [str(one.evaluation.description) for one in reversed(records) if one.evaluation is not None]
        return found


@pytest.fixture
def shop(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, tmp_path: Path
) -> Shop:
    """Its tables stream, as a run has told, which has ended."""
    synced(replication)
    shop = Shop(replication, instance, database, tmp_path)
    assert shop.runs.execute(mode="micro_batch").success
    assert shop.told() == {table: [f"public.{table} streams"] for table in KEYS}
    await_slot(replication, active=False)
    return shop


def test_a_pause_and_a_resync_by_the_command_line_are_told_once_each(shop: Shop) -> None:
    with read_elsewhere(shop.replication):
        assert shop.tick() == 0
        shop.etl("pause", "public.customers")
        shop.etl("resync", "public.orders")
        assert shop.tick() == 2
        assert shop.tick() == 0
    control = f"launch job {shop.replication.name}_control"
    assert shop.told() == {
        "customers": [
            "public.customers streams",
            "public.customers is paused, and its changes are not replicated → "
            f"{control} with resume: {{tables: [public.customers]}}",
        ],
        "notes": ["public.notes streams"],
        "orders": ["public.orders streams", "public.orders is to be copied; readers have what it had before"],
    }


def test_without_its_cursor_or_with_a_strange_one_a_tick_tells_nothing_again(shop: Shop) -> None:
    shop.etl("pause", "public.customers")
    with read_elsewhere(shop.replication):
        assert shop.tick() == 1
        for cursor in (None, "0/1A2B", "[]"):
            shop.cursor = cursor
            assert shop.tick() == 0


def test_the_next_run_repeats_nothing_and_tells_what_changed_since(shop: Shop) -> None:
    shop.etl("pause", "public.customers")
    with read_elsewhere(shop.replication):
        assert shop.tick() == 1
    before = shop.told()
    assert shop.runs.execute(mode="micro_batch").success
    assert shop.told() == before
    with read_elsewhere(shop.replication):
        assert shop.tick() == 0


def test_a_tick_that_starts_a_run_leaves_it_to_the_run(shop: Shop) -> None:
    shop.etl("pause", "public.customers")
    assert shop.tick() == 0
    assert len(shop.told()["customers"]) == 1
    assert shop.runs.execute(mode="micro_batch").success
    assert len(shop.told()["customers"]) == 2


def test_after_a_lost_slot_for_which_no_run_is_started_it_is_told_once(shop: Shop, database: Database) -> None:
    database.execute("SELECT pg_drop_replication_slot(%s)", [f"etl_{shop.replication.name}"])
    assert not shop.runs.execute().success
    shop.etl("pause", "public.customers")
    assert not shop.runs.execute().success  # the one try for the change
    ticks = [shop.tick(), shop.tick()]
    told = shop.told()["customers"]
    assert told[0] == "public.customers streams"
    assert [text for text in told if "is paused" in text] == told[1:]
    assert (len(told), ticks[1]) == (2, 0)


def test_a_table_that_was_copied_while_nothing_streams_is_no_longer_to_be_copied(shop: Shop) -> None:
    with read_elsewhere(shop.replication):
        shop.etl("resync", "public.orders")
        assert shop.tick() == 1
        assert sync(shop.replication, shop.instance, ORDERS).success
        assert shop.tick() == 1
    assert shop.told()["orders"][-1] == (
        "public.orders is copied, to be caught up; its changes come with the next stream"
    )


def test_a_table_that_left_the_pipeline_is_told_once(shop: Shop) -> None:
    with shop.replication.pipeline() as pipeline:
        pipeline.store.remove_table(pipeline.find(NOTES).table_id)
    with read_elsewhere(shop.replication):
        assert (shop.tick(), shop.tick()) == (1, 0)
    assert "public.notes is not replicated" in shop.told()["notes"][-1]


def test_one_tick_looks_at_so_many_tables_and_the_next_at_the_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.stream.outside_states._TABLES_A_TICK", 1)
    shop.etl("pause", "public.orders", "public.customers", "public.notes")
    with read_elsewhere(shop.replication):
        assert [shop.tick() for _ in range(4)] == [1, 1, 1, 0]
