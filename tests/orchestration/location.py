"""The code location that the tests of a real `dagster dev` load; what is replicated stands in environment variables."""

import os

import dagster as dg

from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.stream.stream_job import StreamConfig

replication = PostgresReplicationResource(
    name=os.environ["TEST_PIPELINE"],
    dsn=dg.EnvVar("TEST_DSN"),
    publication="shop_pub",
    tables=["public.orders", "public.customers", "public.notes"],
    batch_max_age="200ms",
    state=StateStoreResource(url=dg.EnvVar("TEST_STATE")),
    destination=DuckDBDestinationResource(path=dg.EnvVar("TEST_DUCKDB")),
)

defs = build_postgres_replication(
    replication,
    stream=StreamConfig(lease_seconds=float(os.environ.get("TEST_LEASE", "900")), report_every_seconds=1.0),
)
