"""The demo's code location: the whole of a replication in Dagster, as you would write your own.

`workspace.yaml` names this file. Loading it connects to nothing: SHOP_DSN is read when something runs.
"""

from pathlib import Path

import dagster as dg

from etl_dagster import (
    DuckDBDestinationResource,
    PostgresReplicationResource,
    StateStoreResource,
    build_postgres_replication,
)

DEMO = Path(__file__).resolve().parent.parent / "demo"

shop = PostgresReplicationResource(
    name="shop",
    dsn=dg.EnvVar("SHOP_DSN"),
    publication="shop_pub",
    tables=[
        "public.customers",
        "public.products",
        "public.orders",
        "public.order_items",
        "public.payments",
        "public.events",
        "public.shipments",
        "public.carts",
    ],
    state=StateStoreResource(url=f"sqlite:///{DEMO / 'shop.state.db'}"),
    destination=DuckDBDestinationResource(path=str(DEMO / "shop.duckdb")),
)

defs = build_postgres_replication(shop)
