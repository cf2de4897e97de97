"""Assets of your own on replicated tables: one with pandas, one with SQL, both built again when a table has changed.

Copy what you need. The replicated tables have the keys `[duckdb, public, customers]` and `[duckdb, public, orders]`;
the DuckDB IO manager takes the last two parts for schema and table, so it finds them as they are.

DuckDB admits one writing process to a file, and the stream writes to the replicated one. So it is opened for reading,
and only for as long as that takes (the stream waits meanwhile); what these assets produce goes to a file of its own.
Do not call a file like a schema in it (`marts.duckdb`): DuckDB then cannot tell which of the two `marts.x` means.

    dg.Definitions(
        assets=downstream_assets(),
        resources=downstream_resources("shop.duckdb", "reports.duckdb"),
    )
"""

from __future__ import annotations

import dagster as dg
import pandas as pd
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager

from etl_dagster import on_replicated_change

CUSTOMERS = dg.AssetKey(["duckdb", "public", "customers"])
ORDERS = dg.AssetKey(["duckdb", "public", "orders"])

READ_ONLY = {"access_mode": "READ_ONLY"}  # several readers at a time, and nobody writes there by mistake

REVENUE = """
SELECT c.country, count(*) AS orders, sum(o.total) AS revenue
FROM public.orders o JOIN public.customers c ON c.id = o.customer_id
GROUP BY c.country ORDER BY c.country
"""


def io_manager(path: str, *, read_only: bool = False) -> DuckDBPandasIOManager:
    """The standard IO manager on the DuckDB file at `path`."""
    return DuckDBPandasIOManager(database=path, connection_config=READ_ONLY if read_only else {})


def downstream_resources(replicated: str, reports: str) -> dict[str, object]:
    """What the assets below need: the replicated file to read from, another one for what they produce."""
    return {
        "replicated": io_manager(replicated, read_only=True),
        "warehouse": DuckDBResource(database=replicated, connection_config=READ_ONLY),
        "io_manager": io_manager(reports),
    }


# With pandas: the tables arrive as DataFrames. `input_manager_key` says where they are read from.
@dg.asset(
    key=["marts", "order_counts"],
    ins={
        "customers": dg.AssetIn(CUSTOMERS, input_manager_key="replicated"),
        "orders": dg.AssetIn(ORDERS, input_manager_key="replicated"),
    },
    automation_condition=on_replicated_change(),
    kinds={"pandas"},
)
def order_counts(customers: pd.DataFrame, orders: pd.DataFrame) -> pd.DataFrame:
    """How many orders each customer has, customers without any included."""
    counts = orders.groupby("customer_id").size().rename("orders").reset_index()
    joined = customers[["id", "name"]].merge(counts, how="left", left_on="id", right_on="customer_id")
    return joined.assign(orders=joined["orders"].fillna(0).astype("int64"))[["id", "name", "orders"]]


# With SQL: DuckDB reads only the columns the query names, and only its result comes here.
@dg.asset(
    key=["marts", "revenue_by_country"],
    deps=[CUSTOMERS, ORDERS],
    automation_condition=on_replicated_change(),
    kinds={"duckdb", "sql"},
)
def revenue_by_country(warehouse: DuckDBResource) -> pd.DataFrame:
    """Orders and revenue of each country."""
    with warehouse.get_connection() as connection:
        return connection.execute(REVENUE).df()


def downstream_assets() -> list[dg.AssetsDefinition]:
    """Both assets. Loading them opens nothing."""
    return [order_counts, revenue_by_country]
