"""DuckLake as the destination under Dagster: the example as it is, whose assets get a table as pandas and as polars."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from etl_core.testing.postgres import Database

pytestmark = pytest.mark.timeout(900)


def test_the_example_runs(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    monkeypatch.setenv("STATE_URL", "sqlite:///state.db")
    database.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, total numeric(12,2), created_at timestamptz)"
    )
    database.execute("INSERT INTO orders SELECT i, i % 2, i, '2024-01-01 12:00Z' FROM generate_series(1, 4) i")
    from examples.ducklake import ORDERS, defs

    dg.Definitions.validate_loadable(defs)
    by_day, revenue = dg.AssetKey(["marts", "orders_by_day"]), dg.AssetKey(["marts", "revenue"])
    job = dg.define_asset_job("all", dg.AssetSelection.assets(ORDERS, by_day, revenue))
    repository = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        done = repository.get_job("all").execute_in_process(instance=instance)
        assert done.success
        [event] = instance.fetch_materializations(ORDERS, limit=1).records
    assert done.asset_value(by_day)["orders"].tolist() == [4]
    assert done.asset_value(revenue).rows() == [(0, Decimal("6.00")), (1, Decimal("4.00"))]
    found = event.asset_materialization
    assert found is not None
    assert found.metadata["dagster/uri"].value == "ducklake://lake/public/orders"
