"""A dlt pipeline and a dbt project in one code location with replicated tables, and an asset that reads dlt's and ours.

    pip install 'etl-dagster[dbt]' dagster-dlt 'dlt[duckdb]'
    dagster dev -f examples/dlt_location.py

dlt loads a file that finance keeps: the revenue that each country is to reach. Any source of dlt stands in its place.

DuckDB admits one writing process to a file, and the stream writes to the replicated one. So dlt has a file of its own,
and what reads both takes the replicated tables with `shop.table`, for which the stream waits no longer than that takes.
In a warehouse both are in one place, and a query joins them.
"""

import csv
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import dlt
from dagster_dlt import DagsterDltResource, DagsterDltTranslator, dlt_assets
from dagster_dlt.translator import DltResourceTranslatorData
from dagster_duckdb import DuckDBResource

from etl_dagster import PostgresReplicationResource, on_replicated_change
from examples import dbt_location
from examples.shop_replication import DEMO

os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")  # dlt tells its makers of every load otherwise

TARGETS_FILE = Path(__file__).resolve().parent / "targets.csv"
PLANNING = str(DEMO / "planning.duckdb")
TARGETS = dg.AssetKey(["planning", "finance", "targets"])
ORDERS, CUSTOMERS = (dg.AssetKey(["duckdb", "public", table]) for table in ("orders", "customers"))

REACHED = """
CREATE OR REPLACE TABLE finance.targets_reached AS
SELECT t.country, t.revenue AS target, coalesce(sum(o.total), 0) AS revenue
FROM finance.targets t LEFT JOIN customers c ON c.country = t.country LEFT JOIN orders o ON o.customer_id = c.id
GROUP BY t.country, t.revenue
"""


@dlt.resource(primary_key="country", write_disposition="replace")
def targets() -> Iterator[dict[str, Any]]:
    """The revenue that each country is to reach."""
    with TARGETS_FILE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {"country": row["country"], "revenue": Decimal(row["revenue"])}


@dlt.source(name="finance")
def finance() -> Any:
    """What finance keeps in files."""
    return targets


class PlanningTranslator(DagsterDltTranslator):
    """Keys as the replicated tables have them: database, schema, table."""

    def get_asset_spec(self, data: DltResourceTranslatorData) -> dg.AssetSpec:
        """Of one resource of dlt."""
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(key=["planning", "finance", data.resource.name], deps=["targets_csv"])


@dlt_assets(
    dlt_source=finance(),
    dlt_pipeline=dlt.pipeline(
        "finance",
        pipelines_dir=str(DEMO / "dlt"),
        destination=dlt.destinations.duckdb(PLANNING),
        dataset_name="finance",
    ),
    name="finance",
    dagster_dlt_translator=PlanningTranslator(),
)
def finance_tables(context: dg.AssetExecutionContext, dlt: DagsterDltResource) -> Iterator[Any]:
    """The tables that dlt loads."""
    yield from dlt.run(context=context)


@dg.asset(
    key=["planning", "finance", "targets_reached"],
    deps=[TARGETS, CUSTOMERS, ORDERS],
    automation_condition=on_replicated_change(every="10m"),
    kinds={"duckdb", "sql"},
)
def targets_reached(planning: DuckDBResource, shop: PostgresReplicationResource) -> None:
    """How far each country is: revenue of the replicated orders, and the target that dlt loaded."""
    with planning.get_connection() as connection:
        for table in ("customers", "orders"):
            connection.register(table, shop.table(f"public.{table}").to_arrow())
        connection.execute(REACHED)


defs = dg.Definitions.merge(
    dbt_location.defs,
    dg.Definitions(
        assets=[finance_tables, targets_reached],
        resources={"dlt": DagsterDltResource(), "planning": DuckDBResource(database=PLANNING)},
    ),
)
