"""A code location: PostgreSQL into a DuckLake, and a pandas asset and a polars asset on a replicated table.

    export SHOP_DSN=postgresql://replicator:…@db.example.com/shop STATE_URL=postgresql://etl:…@db.example.com/etl
    dagster dev -f examples/ducklake.py

Needs `pip install 'etl-dagster[ducklake,pandas,polars,ui]'`. The catalog is in SQLite, so that assets read while the
stream writes; with a catalog in PostgreSQL, and files that all can see, they may run on other machines.
"""

from __future__ import annotations

import dagster as dg
import pandas as pd
import polars as pl

from etl_dagster import (
    DuckLakeDestinationResource,
    PostgresReplicationResource,
    ReplicatedTableIOManager,
    StateStoreResource,
    build_postgres_replication,
    on_replicated_change,
)

ORDERS = dg.AssetKey(["ducklake", "public", "orders"])

shop = PostgresReplicationResource(
    name="shop",
    dsn=dg.EnvVar("SHOP_DSN"),
    publication="shop_pub",
    tables=["public.orders"],
    state=StateStoreResource(url=dg.EnvVar("STATE_URL")),
    destination=DuckLakeDestinationResource(catalog="sqlite:lake.sqlite", data="lake-files"),
)


@dg.asset(
    key=["marts", "orders_by_day"],
    ins={"orders": dg.AssetIn(ORDERS, input_manager_key="replicated")},
    automation_condition=on_replicated_change(),
    kinds={"pandas"},
)
def orders_by_day(orders: pd.DataFrame) -> pd.DataFrame:
    """How many orders each day had."""
    return orders.groupby(orders["created_at"].dt.date).size().rename("orders").reset_index()


@dg.asset(
    key=["marts", "revenue"],
    ins={"orders": dg.AssetIn(ORDERS, input_manager_key="replicated")},
    automation_condition=on_replicated_change(),
    kinds={"polars"},
)
def revenue(orders: pl.DataFrame) -> pl.DataFrame:
    """What each customer has paid."""
    return orders.group_by("customer_id").agg(paid=pl.col("total").sum()).sort("customer_id")


defs = dg.Definitions.merge(
    build_postgres_replication(shop, default_sensor_status=dg.DefaultSensorStatus.RUNNING),
    dg.Definitions(
        assets=[orders_by_day, revenue], resources={"replicated": ReplicatedTableIOManager(replication=shop)}
    ),
)
