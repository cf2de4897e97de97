"""The definitions of one pipeline in one call, loaded without a source."""

import dagster as dg
import pytest

from etl_dagster.definitions import build_postgres_replication
from etl_dagster.resources import DuckDBDestinationResource, PostgresReplicationResource, StateStoreResource


def replication(**changes: object) -> PostgresReplicationResource:
    settings = {
        "name": "shop",
        "dsn": "postgresql://nobody@127.0.0.1:1/nowhere",
        "publication": "shop_pub",
        "tables": ["public.orders", 'public."Line Items"'],
        "state": StateStoreResource(url="sqlite:////nowhere/state.db"),
        "destination": DuckDBDestinationResource(path="/nowhere/shop.duckdb"),
    }
    return PostgresReplicationResource(**(settings | changes))  # type: ignore[arg-type]


def test_everything_is_there_and_names_that_need_quotes_load() -> None:
    definitions = build_postgres_replication(replication())
    dg.Definitions.validate_loadable(definitions)
    repository = definitions.get_repository_def()
    copied = {dg.AssetKey(["duckdb", "public", "orders"]), dg.AssetKey(["duckdb", "public", "Line Items"])}
    assert copied < set(repository.asset_graph.get_all_asset_keys())
    assert {"shop_initial_sync", "shop_stream", "shop_checks"} <= {job.name for job in repository.get_all_jobs()}
    assert [sensor.name for sensor in repository.sensor_defs if "shop" in sensor.name] == ["shop_stream_sensor"]
    checked = {(key.asset_key, key.name) for key in repository.asset_graph.asset_check_keys}
    kinds = ("replication_lag", "slot_health", "schema_matches", "equals_source")
    assert checked == {(key, kind) for key in copied for kind in kinds}


def test_a_schedule_takes_the_sensor_s_place() -> None:
    repository = build_postgres_replication(replication(), cron_schedule="*/10 * * * *").get_repository_def()
    assert [schedule.name for schedule in repository.schedule_defs] == ["shop_stream_schedule"]
    assert [sensor.name for sensor in repository.sensor_defs if "shop" in sensor.name] == []


def test_tables_must_be_named() -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="which tables"):
        build_postgres_replication(replication(tables=None))


@pytest.mark.parametrize("dsn", ["postgresql://u:hunter2@h/d", "host=h password=hunter2 dbname=d"])
def test_a_password_as_text_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(ValueError, match="password_env") as refused:
        replication(dsn=dsn)
    assert "hunter2" not in str(refused.value)
