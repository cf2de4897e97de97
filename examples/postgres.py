"""A code location: PostgreSQL into another PostgreSQL, and a pandas asset and a SQL asset on a replicated table.

    export SHOP_DSN=postgresql://replicator:…@db.example.com/shop STATE_URL=postgresql://etl:…@db.example.com/etl
    export WAREHOUSE_DSN=postgresql://etl:…@warehouse.example.com/shop
    dagster dev -f examples/postgres.py

Needs `pip install 'etl-dagster[pandas,ui]'`. Readers and the stream do not wait for each other, so the SQL asset writes
to the database that it reads, in a schema of its own.
"""

from __future__ import annotations

import os

import dagster as dg
import pandas as pd
import psycopg

from etl_dagster import (
    PostgresDestinationResource,
    PostgresReplicationResource,
    ReplicatedTableIOManager,
    StateStoreResource,
    build_postgres_replication,
    on_replicated_change,
)

ORDERS = dg.AssetKey(["postgres", "public", "orders"])

shop = PostgresReplicationResource(
    name="shop",
    dsn=dg.EnvVar("SHOP_DSN"),
    publication="shop_pub",
    tables=["public.orders"],
    state=StateStoreResource(url=dg.EnvVar("STATE_URL")),
    destination=PostgresDestinationResource(dsn=dg.EnvVar("WAREHOUSE_DSN")),
)


@dg.asset(
    key=["marts", "orders_by_day"],
    ins={"orders": dg.AssetIn(ORDERS, input_manager_key="replicated")},
    automation_condition=on_replicated_change(),
    kinds={"pandas"},
)
def orders_by_day(orders: pd.DataFrame) -> pd.DataFrame:
    """How many orders each day had. A polars.DataFrame or pyarrow.Table as the type of `orders` would be handed too."""
    return orders.groupby(orders["created_at"].dt.date).size().rename("orders").reset_index()


@dg.asset(
    key=["marts", "revenue"], deps=[ORDERS], automation_condition=on_replicated_change(), kinds={"postgres", "sql"}
)
def revenue() -> None:
    """What each customer has paid, as a table next to the replicated ones."""
    with psycopg.connect(os.environ["WAREHOUSE_DSN"]) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS marts")
        connection.execute("DROP TABLE IF EXISTS marts.revenue")
        connection.execute(
            "CREATE TABLE marts.revenue AS"
            " SELECT customer_id, sum(total) AS paid FROM public.orders GROUP BY customer_id"
        )


defs = dg.Definitions.merge(
    build_postgres_replication(shop, default_sensor_status=dg.DefaultSensorStatus.RUNNING),
    dg.Definitions(
        assets=[orders_by_day, revenue], resources={"replicated": ReplicatedTableIOManager(replication=shop)}
    ),
)
