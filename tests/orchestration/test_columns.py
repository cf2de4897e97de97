"""Columns that are left out, renamed and hashed: what Dagster's pages, readers and dbt see, and what it keeps."""

import secrets
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from etl_core.shape.keyed_hash import HashKey
from etl_core.testing.postgres import Database
from etl_dagster import build_postgres_replication, dbt_sources, names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import ORDERS, TABLES, like, materializations, sync

KEY = "a key that is long enough"
SETTINGS = {"public.orders": {"columns": {"hash": ["note"], "exclude": ["n"], "rename": {"note": "remark"}}}}


@pytest.fixture
def shaped(replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch) -> PostgresReplicationResource:
    monkeypatch.setenv("ETL_TEST_HASH_KEY", KEY)
    return like(replication, PostgresReplicationResource, table_settings=SETTINGS, hash_key_env="ETL_TEST_HASH_KEY")


def stream(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    result = build_stream_job(replication, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=dg.RunConfig(ops={f"stream_{replication.name}": StreamConfig(mode="micro_batch")}),
    )
    assert result.success


def page(instance: dg.DagsterInstance) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(["duckdb", "public", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    return {label: value.value for label, value in event.asset_materialization.metadata.items()}


def test_pages_readers_and_dbt_see_the_destinations_columns_and_no_hidden_value_is_kept(
    shaped: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = secrets.token_hex(20)
    database.execute("UPDATE orders SET note = %s WHERE id = 1", [planted])
    result = sync(shaped, instance, ORDERS)
    assert result.success
    copied = page(instance)
    assert set(materializations(result)) == {"orders"}
    database.execute("UPDATE orders SET note = %s WHERE id = 2", [planted])
    stream(shaped, instance)
    for shown in (copied, page(instance)):
        columns = [(column.name, column.type) for column in shown["dagster/column_schema"].columns]
        assert columns == [("id", "INTEGER"), ("remark", "VARCHAR")]
        source = dg.AssetKey([shaped.name, "public", "orders"])
        assert shown["dagster/column_lineage"].deps_by_column == {
            "id": [dg.TableColumnDep(source, "id")],
            "remark": [dg.TableColumnDep(source, "note")],
        }
    [observed, *_] = instance.fetch_observations(dg.AssetKey([shaped.name, "public", "orders"]), limit=1).records
    assert observed.asset_observation is not None
    at_source: Any = observed.asset_observation.metadata["etl/columns"].value
    assert [column.name for column in at_source.columns] == ["id", "n", "note"]

    monkeypatch.delenv("ETL_TEST_HASH_KEY")  # who reads needs no secret
    rows = shaped.table("orders").to_arrow()
    assert rows.schema.names == ["id", "remark"]
    hashed = HashKey.of(KEY).hash_text(planted.encode())
    assert sorted(row["id"] for row in rows.to_pylist() if row["remark"] == hashed) == [1, 2]
    sources = {
        table["name"]: table["columns"]
        for source_ in yaml.safe_load(dbt_sources(shaped))["sources"]
        for table in source_["tables"]
        if "columns" in table
    }
    assert [column["name"] for column in sources["orders"]] == ["id", "remark"]
    leaks = [file for file in tmp_path.rglob("*") if file.is_file() and planted.encode() in file.read_bytes()]
    assert leaks == []


def test_settings_that_are_wrong_are_refused_when_the_location_loads(replication: PostgresReplicationResource) -> None:
    wrong = like(replication, PostgresReplicationResource, table_settings={"orders": {"columns": {"hash": "note"}}})
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"table_settings.orders.columns.hash: must be a list"):
        build_postgres_replication(wrong, tables=["public.orders"])
    wrong = like(replication, PostgresReplicationResource, types={"numeric": "decimal(40,2)"})
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"types.numeric: is 'decimal\(40,2\)'; write decimal"):
        build_postgres_replication(wrong, tables=["public.orders"])


def test_a_key_that_no_variable_holds_is_said(
    shaped: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ETL_TEST_HASH_KEY")
    result = sync(shaped, instance, ORDERS)
    [event] = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data is not None
    assert "ETL_TEST_HASH_KEY is not set" in str(event.step_failure_data.user_failure_data.description)
