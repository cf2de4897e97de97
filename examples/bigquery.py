"""A code location: PostgreSQL into BigQuery, and a pandas asset on a replicated table.

    export SHOP_DSN=postgresql://replicator:…@db.example.com/shop STATE_URL=postgresql://etl:…@db.example.com/etl
    export GCP_PROJECT=my-project
    dagster dev -f examples/bigquery.py

Needs `pip install 'etl-dagster[bigquery,ui]' dagster-gcp-pandas`. The IO manager finds `orders` by its key: dataset and
table are its last two parts.
"""

import os

import dagster as dg
import pandas as pd
from dagster_gcp_pandas import BigQueryPandasIOManager

from etl_dagster import (
    BigQueryDestinationResource,
    PostgresReplicationResource,
    StateStoreResource,
    build_postgres_replication,
    on_replicated_change,
)

PROJECT = os.environ.get("GCP_PROJECT", "my-project")

shop = PostgresReplicationResource(
    name="shop",
    dsn=dg.EnvVar("SHOP_DSN"),
    publication="shop_pub",
    tables=["public.orders", "public.customers"],
    batch_max_age="1m",  # each batch is a job of BigQuery
    state=StateStoreResource(url=dg.EnvVar("STATE_URL")),
    destination=BigQueryDestinationResource(project=PROJECT, dataset="raw_{namespace}", location="EU"),
)


@dg.asset(
    key_prefix=["bigquery", "marts"],
    ins={"orders": dg.AssetIn(["bigquery", "raw_public", "orders"], input_manager_key="warehouse")},
    io_manager_key="warehouse",
    automation_condition=on_replicated_change(),
)
def orders_by_day(orders: pd.DataFrame) -> pd.DataFrame:
    """How many orders each day had."""
    return orders.groupby(orders["created_at"].dt.date).size().rename("orders").reset_index()


defs = dg.Definitions.merge(
    build_postgres_replication(shop, default_sensor_status=dg.DefaultSensorStatus.RUNNING),
    dg.Definitions(assets=[orders_by_day], resources={"warehouse": BigQueryPandasIOManager(project=PROJECT)}),
)
