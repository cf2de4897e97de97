"""BigQuery under Dagster: initial syncs as assets, read by its own IO manager without further configuration."""

from typing import Any

import dagster as dg
import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")
pytest.importorskip("dagster_gcp_pandas", reason="dagster-gcp-pandas is not installed")

import google.auth
import pandas as pd
from dagster_gcp_pandas import BigQueryPandasIOManager
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from etl_core.testing.postgres import Database
from etl_core.testing.servers.bigquery_emulator import BigQueryEmulator
from etl_dagster import names
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.assets import build_initial_sync_assets
from tests.orchestration.syncing import ORDERS

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Google's and Dagster's libraries with each other
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def into_bigquery(
    replication: PostgresReplicationResource, bigquery_options: dict[str, Any]
) -> PostgresReplicationResource:
    """The pipeline of the other tests, into BigQuery."""
    return PostgresReplicationResource(
        name=replication.name,
        publication=replication.publication,
        dsn=replication.dsn,
        tables=replication.tables,
        state=replication.state,
        destination=BigQueryDestinationResource(**bigquery_options),
    )


def test_the_io_manager_finds_a_replicated_table(
    into_bigquery: PostgresReplicationResource,
    bigquery_emulator: BigQueryEmulator | None,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destination = into_bigquery.destination
    assert isinstance(destination, BigQueryDestinationResource)
    if bigquery_emulator is not None:  # as Google's client has it
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", bigquery_emulator.api_endpoint)
        monkeypatch.setattr(google.auth, "default", lambda **_: (AnonymousCredentials(), None))  # type: ignore[no-untyped-call]
        # Its Storage API has no such variable; without it results come by REST.
        monkeypatch.setattr(bigquery.Client, "_ensure_bqstorage_client", lambda *_, **__: None)
    [orders] = build_initial_sync_assets(into_bigquery, [ORDERS])
    seen: list[Any] = []

    @dg.asset(ins={"orders": dg.AssetIn(orders.key, input_manager_key="warehouse")})
    def biggest(orders: pd.DataFrame) -> None:
        seen.append((len(orders), orders["n"].max(), sorted(orders.columns)))

    resources = {
        names.resource_key(into_bigquery.name): into_bigquery,
        "warehouse": BigQueryPandasIOManager(project=destination.project),
    }
    result = dg.materialize([orders, biggest], instance=instance, resources=resources)
    assert result.success
    assert seen == [(100, 100, ["id", "n", "note"])]
    [event] = result.asset_materializations_for_node(orders.op.name)
    assert event.metadata["dagster/row_count"].value == 100
    assert "console.cloud.google.com/bigquery" in str(event.metadata["dagster/uri"].value)

    frame = into_bigquery.table("public.orders").to_pandas()
    assert sorted(frame.itertuples(index=False, name=None)) == database.execute("SELECT * FROM orders ORDER BY 1")


def test_the_example_loads_and_its_asset_is_downstream_of_the_replicated_table() -> None:
    from examples.bigquery import defs

    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    orders = dg.AssetKey(["bigquery", "raw_public", "orders"])
    assert graph.get(dg.AssetKey(["bigquery", "marts", "orders_by_day"])).parent_keys == {orders}
    assert graph.get(orders).is_executable
