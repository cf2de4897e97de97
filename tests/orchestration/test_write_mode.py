"""Tables that keep their deleted rows: what Dagster's pages and readers see."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from etl_core.testing.postgres import Database
from etl_dagster import build_postgres_replication, names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import ORDERS, TABLES, like, sync


@pytest.fixture
def keeping(replication: PostgresReplicationResource) -> PostgresReplicationResource:
    return like(replication, PostgresReplicationResource, write_mode="soft_delete")


def page(instance: dg.DagsterInstance) -> Mapping[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(["duckdb", "public", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    return {label: value.value for label, value in event.asset_materialization.metadata.items()}


def test_a_page_shows_the_column_the_mode_and_how_many_rows_live(
    keeping: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(keeping, instance, ORDERS).success
    copied = page(instance)
    living = copied["dagster/row_count"] - 1
    database.execute("DELETE FROM orders WHERE id = 1")
    result = build_stream_job(keeping, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(keeping.name): keeping},
        run_config=dg.RunConfig(ops={f"stream_{keeping.name}": StreamConfig(mode="micro_batch")}),
    )
    assert result.success
    streamed = page(instance)
    assert streamed["dagster/row_count"] == living
    for shown in (copied, streamed):
        assert shown["etl/write_mode"] == "soft_delete"
        column = shown["dagster/column_schema"].columns[-1]
        assert (column.name, column.type) == ("_etl_deleted_at", "TIMESTAMP WITH TIME ZONE")
        assert column.description == "When the row was deleted at the source; NULL while it lives."
        assert "_etl_deleted_at" not in shown["dagster/column_lineage"].deps_by_column
    rows = keeping.table("orders").to_arrow().to_pylist()
    assert len(rows) == living + 1
    assert [row["id"] for row in rows if row["_etl_deleted_at"] is not None] == [1]


def test_a_log_counts_its_rows(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    logging = like(replication, PostgresReplicationResource, write_mode="append")
    assert sync(logging, instance, ORDERS).success
    copied = page(instance)
    database.execute("DELETE FROM orders WHERE id = 1; UPDATE orders SET n = 0 WHERE id = 2; TRUNCATE orders")
    result = build_stream_job(logging, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(logging.name): logging},
        run_config=dg.RunConfig(ops={f"stream_{logging.name}": StreamConfig(mode="micro_batch")}),
    )
    assert result.success
    streamed = page(instance)
    assert streamed["dagster/row_count"] == copied["dagster/row_count"] + 3
    assert [shown["etl/write_mode"] for shown in (copied, streamed)] == ["append", "append"]


def test_a_mode_that_there_is_not_is_refused_when_the_location_loads(replication: PostgresReplicationResource) -> None:
    wrong = like(replication, PostgresReplicationResource, write_mode="soft-delete")
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="write_mode: is 'soft-delete'"):
        build_postgres_replication(wrong, tables=["public.orders"])
    wrong = like(replication, PostgresReplicationResource, recopy="never")
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="recopy: is 'never'"):
        build_postgres_replication(wrong, tables=["public.orders"])
