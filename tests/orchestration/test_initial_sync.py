"""The replicated tables as assets: defined, materialised, again, partly, and failing."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from etl_core.errors import Stopped
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.definitions.specs import build_source_asset_specs
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.failures import failure_of
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.sync.assets import build_initial_sync_assets
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps
from tests.orchestration.syncing import (
    CUSTOMERS,
    ORDERS,
    TABLES,
    at_source,
    await_row,
    content,
    failures,
    like,
    materializations,
    slots,
    state,
    streaming,
    sync,
)

# --- definitions ----------------------------------------------------------------------------------------------


def offline(tmp_path: Path) -> PostgresReplicationResource:
    return PostgresReplicationResource(
        name="shop",
        publication="shop_pub",
        dsn="postgresql://nobody@127.0.0.1:1/none",
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )


def test_definitions_load_without_a_database(tmp_path: Path) -> None:
    replication = offline(tmp_path)
    [asset] = build_initial_sync_assets(
        replication,
        [ORDERS],
        retry_policy=dg.RetryPolicy(max_retries=2),
        op_tags={"dagster/priority": "3"},
        automation_condition=dg.AutomationCondition.on_missing(),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1)),
    )
    [spec] = list(asset.specs)
    assert spec.key == dg.AssetKey(["duckdb", "public", "orders"])
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["shop", "public", "orders"])]
    assert spec.automation_condition is not None
    assert spec.freshness_policy is not None
    assert asset.op.name == "shop__public__orders"
    assert asset.op.pool == "shop_sync"
    assert asset.op.retry_policy == dg.RetryPolicy(max_retries=2)
    assert asset.op.tags == {"dagster/priority": "3", names.PIPELINE_TAG: "shop"}
    [source] = build_source_asset_specs(replication, [ORDERS])
    assert source.key == dg.AssetKey(["shop", "public", "orders"])
    definitions = dg.Definitions(assets=[asset, source], resources={"shop": replication})
    dg.Definitions.validate_loadable(definitions)
    assert not list(tmp_path.iterdir())


def test_names_of_ops_are_valid_and_tell_apart_every_two_tables(tmp_path: Path) -> None:
    odd = [
        ("public", "orders"),
        ("public", "Orders"),
        ("public", "my orders"),
        ("public", "my_orders"),
        ("public", 'my"orders'),
        ("public", "my-orders"),
        ("a__b", "c"),
        ("a", "b__c"),
        ("a_", "b"),
        ("a", "_b"),
        ("größe", "日本語"),
        ("größe", "한국어"),
    ]
    replication, tables = offline(tmp_path), [TableName(*parts) for parts in odd]
    assets = build_initial_sync_assets(replication, tables, copy_processes=dict.fromkeys(map(str, tables), 1))
    assert len({asset.op.name for asset in assets}) == len(odd)
    definitions = dg.Definitions(
        assets=[*assets, *build_source_asset_specs(replication, tables)], resources={"shop": replication}
    )
    dg.Definitions.validate_loadable(definitions)
    assert [asset.key.path[1:] for asset in assets] == [list(parts) for parts in odd]


def test_a_translator_decides_how_a_table_appears(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    class Renamed(DagsterReplicationTranslator):
        def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
            spec = super().get_asset_spec(props).replace_attributes(key=["raw", props.table.name], owners=["team:data"])
            return spec.with_io_manager_key("warehouse")

    class Warehouse(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj: object) -> None:
            raise AssertionError(f"{context.asset_key} is in the warehouse already, yet got {obj}")

        def load_input(self, context: dg.InputContext) -> str:
            return "/".join(context.asset_key.path)

    seen = []

    @dg.asset(ins={"orders": dg.AssetIn(["raw", "orders"])})
    def report(orders: object) -> None:
        seen.append(orders)

    [asset] = build_initial_sync_assets(replication, [ORDERS], translator=Renamed())
    assert asset.specs_by_key[dg.AssetKey(["raw", "orders"])].owners == ["team:data"]
    resources = {names.resource_key(replication.name): replication, "warehouse": Warehouse()}
    assert dg.materialize([asset, report], instance=instance, resources=resources).success
    assert seen == ["raw/orders"]


# --- copying --------------------------------------------------------------------------------------------------


def test_materialising_copies_and_tells(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    database.execute("COMMENT ON COLUMN orders.n IS 'how many'")
    result = sync(replication, instance)
    assert result.success
    for table in ("orders", "customers"):
        assert content(replication, table) == at_source(database, table)
    assert content(replication, "notes") == []

    told = materializations(result)
    assert {table: event.metadata["dagster/row_count"].value for table, event in told.items()} == {
        "orders": 100,
        "customers": 100,
        "notes": 0,
    }
    metadata = told["orders"].metadata
    schema: Any = metadata["dagster/column_schema"].value
    assert [
        (column.name, column.type, column.constraints.nullable, column.description) for column in schema.columns
    ] == [
        ("id", "INTEGER", False, None),
        ("n", "INTEGER", False, "how many"),
        ("note", "VARCHAR", True, None),
    ]
    source = dg.AssetKey([replication.name, "public", "orders"])
    lineage: Any = metadata["dagster/column_lineage"].value
    assert lineage.deps_by_column == {column: [dg.TableColumnDep(source, column)] for column in ("id", "n", "note")}
    assert metadata["dagster/uri"].value == replication.destination.table_uri(ORDERS)
    assert metadata["etl/bytes_copied"].value == 8192
    seconds: Any
    seconds, rate = metadata["etl/duration_seconds"].value, metadata["etl/rows_per_second"].value
    assert seconds > 0
    assert rate == pytest.approx(100 / seconds, rel=0.02), "both are rounded"
    with replication.pipeline() as pipeline:
        for name in TABLES:
            lsn = str(pipeline.find(name).snapshot_lsn)
            event = told[name.name]
            assert event.metadata["etl/lsn"].value == lsn
            assert event.tags is not None
            assert event.tags["dagster/data_version"] == lsn
    assert slots(database) == [f"etl_{replication.name}"]


def test_progress_is_in_the_log(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    result = sync(replication, instance, ORDERS)
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    assert [line for line in logged if line.startswith("public.orders: 100 rows copied")]


def test_materialising_again_copies_again_while_the_others_stay(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    first = materializations(sync(replication, instance))
    database.execute("UPDATE orders SET n = -n WHERE id <= 10; DELETE FROM orders WHERE id > 90; DELETE FROM customers")
    second = materializations(sync(replication, instance, ORDERS, full_refresh=True))
    assert list(second) == ["orders"]
    assert content(replication, "orders") == at_source(database, "orders")
    assert second["orders"].metadata["dagster/row_count"].value == 90
    assert second["orders"].metadata["etl/lsn"].value != first["orders"].metadata["etl/lsn"].value
    assert len(content(replication, "customers")) == 100


def test_a_table_is_copied_again_beside_a_stream(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance).success
    with streaming(replication), psycopg.connect(database.dsn, autocommit=True) as connection:
        await_row(connection, "SELECT 1 FROM pg_replication_slots WHERE active")
        connection.execute("UPDATE orders SET n = 1")
        assert sync(replication, instance, ORDERS, full_refresh=True).success
        connection.execute("UPDATE orders SET n = n + 1; UPDATE customers SET n = 3")
        with replication.pipeline() as asking:
            verified = asking.verify([ORDERS, CUSTOMERS])
    assert [(comparison.is_equal, comparison.problem) for comparison in verified] == [(True, None)] * 2
    assert content(replication, "orders") == at_source(database, "orders")
    assert slots(database) == [f"etl_{replication.name}"]


def test_connections_of_the_launchpad_win(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    used = []

    class Watched(PostgresReplicationResource):
        @contextlib.contextmanager
        def pipeline(self, **options: Any) -> Iterator[Any]:
            with super().pipeline(**options) as pipeline:
                used.append(pipeline.config.copy.connections_per_table)
                yield pipeline

    watched = like(replication, Watched, copy_connections=3)
    assert sync(watched, instance, ORDERS).success
    assert sync(watched, instance, ORDERS, connections=1, full_refresh=True).success
    assert used == [3, 1]
    assert not sync(watched, instance, ORDERS, connections=0).success


# --- failing --------------------------------------------------------------------------------------------------


def test_a_table_that_cannot_be_copied_fails_alone(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    database.execute("ALTER TABLE customers ADD COLUMN price numeric(8,2)")
    database.execute("UPDATE customers SET price = 'NaN' WHERE id = 7")
    result = sync(replication, instance, retry_policy=dg.RetryPolicy(max_retries=3))
    assert not result.success
    [(description, hint)] = failures(result).values()
    assert description.startswith("1 of 3 tables failed: ")
    assert "public.customers" in description
    assert "price" in description
    assert hint
    assert set(materializations(result)) == {"orders", "notes"}
    assert content(replication, "orders") == at_source(database, "orders")
    with replication.pipeline() as pipeline:
        assert pipeline.find(CUSTOMERS).attempts == 1  # it would fail again
    assert state(replication, CUSTOMERS) is TableState.ERRORED
    assert state(replication, ORDERS) is TableState.FINISHED_COPY

    database.execute("UPDATE customers SET price = 7.5 WHERE id = 7")
    assert sync(replication, instance, CUSTOMERS).success
    assert content(replication, "customers") == at_source(database, "customers")


def test_a_table_that_is_not_the_pipelines_is_refused_with_those_that_are(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    result = sync(replication, instance, ORDERS, TableName("public", "invoices"))
    [(description, hint)] = failures(result).values()
    assert description.startswith("1 of 2 tables failed: public.invoices is not a table of pipeline")
    assert "public.orders" in hint
    assert set(materializations(result)) == {"orders"}


def test_a_wrong_password_is_told_without_it(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database.dsn)
    if "password" not in parts:
        pytest.skip("this server asks for no password")
    right, wrong = str(parts.pop("password")), "wr0ng-s3cret"
    monkeypatch.setenv("ETL_TEST_PASSWORD", wrong)
    mistaken = PostgresReplicationResource(
        name=replication.name,
        dsn=psycopg.conninfo.make_conninfo("", **parts),
        password_env="ETL_TEST_PASSWORD",
        publication=replication.publication,
        tables=replication.tables,
        state=replication.state,
        destination=replication.destination,
    )
    result = sync(mistaken, instance, ORDERS)
    [(description, hint)] = failures(result).values()
    assert "password authentication failed" in description
    assert "check the user and the password" in hint
    everything = "".join(map(repr, instance.all_logs(result.run_id)))
    assert wrong not in everything
    assert right not in everything

    monkeypatch.delenv("ETL_TEST_PASSWORD")
    [(description, hint)] = failures(sync(mistaken, instance, ORDERS)).values()
    assert "environment variable ETL_TEST_PASSWORD" in description
    assert "export ETL_TEST_PASSWORD" in hint

    monkeypatch.setenv("ETL_TEST_PASSWORD", right)
    assert sync(mistaken, instance, ORDERS).success


def test_what_may_pass_is_tried_again(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result = sync(offline(tmp_path), instance, ORDERS, retry_policy=dg.RetryPolicy(max_retries=1))
    [(description, _)] = failures(result).values()
    assert description.startswith("cannot connect to 127.0.0.1:1")
    assert result.retry_attempts_for_node("shop__public__orders") == 1


def test_what_may_pass_is_tried_again_within_the_step_of_several(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result = sync(offline(tmp_path), instance, retry_policy=dg.RetryPolicy(max_retries=2))
    [(description, _)] = failures(result).values()
    assert description.startswith("3 of 3 tables failed: public.orders, public.customers, public.notes: cannot connect")
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    tried = [line for line in logged if "public.notes: cannot connect" in line and "tried again" in line]
    assert len(tried) == 1  # the same again is left out


def test_an_error_without_a_hint_is_a_failure_too() -> None:
    failure = failure_of(Stopped("stopped"))
    assert (failure.description, dict(failure.metadata), failure.allow_retries) == ("stopped", {}, True)
