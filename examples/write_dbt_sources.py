"""Writes `examples/dbt/models/sources.yml` as the state store knows the tables. Connects to nothing else."""

from pathlib import Path

from etl_dagster import dbt_sources
from examples.shop_replication import shop

SOURCES = Path(__file__).resolve().parent / "dbt" / "models" / "sources.yml"

if __name__ == "__main__":
    SOURCES.write_text(dbt_sources(shop), encoding="utf-8")
