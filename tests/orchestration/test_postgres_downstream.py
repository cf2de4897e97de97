"""PostgreSQL as the destination under Dagster: its resource, its tables handed to assets, and the example as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from etl_core.identifiers import TableName
from etl_core.testing.postgres import Database, create_database
from etl_dagster import PostgresDestinationResource, PostgresReplicationResource, ReplicatedTableIOManager, names
from etl_dagster.sync.assets import build_initial_sync_assets
from tests.orchestration.syncing import CUSTOMERS, NOTES, ORDERS

# Dagster calls a name of its own that it has deprecated, when it resolves nested resources.
pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")


@pytest.fixture
def warehouse(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Another database, whose address is in WAREHOUSE_DSN; copies wait below the test's own folder."""
    made = create_database(database.server)
    monkeypatch.setenv("WAREHOUSE_DSN", made.dsn)
    monkeypatch.chdir(tmp_path)
    yield made
    made.drop()


@pytest.fixture
def into_postgres(replication: PostgresReplicationResource, warehouse: Database) -> PostgresReplicationResource:
    """The pipeline of the other tests, into PostgreSQL."""
    assert warehouse
    return PostgresReplicationResource(
        name=replication.name,
        publication=replication.publication,
        dsn=replication.dsn,
        tables=replication.tables,
        state=replication.state,
        destination=PostgresDestinationResource(dsn=dg.EnvVar("WAREHOUSE_DSN")),
    )


def test_inputs_are_replicated_tables_of_the_library_that_their_types_name(
    into_postgres: PostgresReplicationResource, warehouse: Database, instance: dg.DagsterInstance
) -> None:
    syncs = build_initial_sync_assets(into_postgres, [ORDERS, CUSTOMERS, NOTES])
    seen: dict[str, Any] = {}

    def reads(name: str, table: str, kind: Any) -> dg.AssetsDefinition:
        @dg.asset(
            name=name, ins={"rows": dg.AssetIn(dg.AssetKey(["postgres", "public", table]), input_manager_key="tables")}
        )
        def read(rows: kind) -> None:
            seen[name] = rows

        return read

    readers = [
        reads("by_pandas", "orders", pd.DataFrame),
        reads("by_default", "orders", Any),
        reads("by_polars", "customers", pl.DataFrame),
        reads("by_arrow", "notes", pa.Table),
    ]
    tables = ReplicatedTableIOManager(replication=into_postgres)
    resources = {names.resource_key(into_postgres.name): into_postgres, "tables": tables}
    assert dg.materialize([*syncs, *readers], instance=instance, resources=resources).success
    assert seen["by_pandas"]["n"].sum() == seen["by_default"]["n"].sum() == 5050
    assert seen["by_polars"]["n"].sum() == 5050
    assert seen["by_arrow"].schema.names == ["id", "note"]
    [event] = instance.fetch_materializations(dg.AssetKey(["postgres", "public", "orders"]), limit=1).records
    found = event.asset_materialization
    assert found is not None
    uri = str(found.metadata["dagster/uri"].value)
    assert uri.startswith("postgresql://")
    assert uri.endswith(f"/{warehouse.name}/public/orders")

    strange = reads("strange", "orders", dict)
    done = dg.materialize(
        [*syncs, strange], selection=[strange], instance=instance, resources=resources, raise_on_error=False
    )
    error = done.get_step_failure_events()[0].step_failure_data.error
    assert "wants builtins.dict" in str(error)
    elsewhere = dg.build_input_context(asset_key=dg.AssetKey(["postgres", "public", "elsewhere"]))
    with pytest.raises(dg.Failure, match="is no table that pipeline"):
        tables.load_input(elsewhere)
    with pytest.raises(dg.Failure, match="reads replicated tables and writes none"):
        tables.handle_output(dg.build_output_context(), [])


def test_the_example_runs(
    database: Database, warehouse: Database, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    monkeypatch.setenv("STATE_URL", "sqlite:///state.db")
    database.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, total numeric(12,2), created_at timestamptz)"
    )
    database.execute("INSERT INTO orders SELECT i, i % 2, i, '2024-01-01 12:00Z' FROM generate_series(1, 4) i")
    from examples.postgres import ORDERS as REPLICATED
    from examples.postgres import defs

    dg.Definitions.validate_loadable(defs)
    assets = [dg.AssetKey(["marts", "orders_by_day"]), dg.AssetKey(["marts", "revenue"])]
    job = dg.define_asset_job("all", dg.AssetSelection.assets(REPLICATED, *assets))
    repository = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).get_repository_def()
    done = repository.get_job("all").execute_in_process(instance=instance)
    assert done.success
    by_day = done.asset_value(assets[0])
    assert by_day["orders"].tolist() == [4]
    assert sorted(warehouse.execute("SELECT customer_id, paid::int FROM marts.revenue")) == [(0, 6), (1, 4)]


def test_an_address_is_known_without_a_connection() -> None:
    table = TableName("public", "orders")
    known = PostgresDestinationResource(dsn="postgresql://etl@warehouse.example.com/shop")
    known.check()
    assert known.table_name(table) == "shop.public.orders"
    assert known.table_uri(table) == "postgresql://warehouse.example.com:5432/shop/public/orders"
    elsewhere = PostgresDestinationResource(dsn="service=warehouse")
    elsewhere.check()
    assert (elsewhere.table_name(table), elsewhere.table_uri(table)) == (None, "postgresql://public/orders")
    with pytest.raises(ValueError, match="dsn holds a password, which Dagster would show"):
        PostgresDestinationResource(dsn="postgresql://etl:secret@host/shop")
