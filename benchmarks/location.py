"""The code location that the benchmark of Dagster loads."""

import os

import dagster as dg

from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.stream.stream_job import StreamConfig

bench = PostgresReplicationResource(
    name="bench_dagster",
    dsn=dg.EnvVar("BENCH_DSN"),
    publication="bench_pub",
    tables=["public.ticks"],
    state=StateStoreResource(url=dg.EnvVar("BENCH_STATE")),
    destination=DuckDBDestinationResource(path=dg.EnvVar("BENCH_DUCKDB")),
)

defs = build_postgres_replication(
    bench,
    stream=StreamConfig(
        lease_seconds=float(os.environ.get("BENCH_LEASE", "900")),
        report_every_seconds=float(os.environ.get("BENCH_REPORT", "30")),
    ),
)
