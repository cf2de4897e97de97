"""A dbt project downstream of replicated tables, in one code location with the pipeline.

    pip install 'etl-dagster[dbt]'
    dagster dev -f examples/dbt_location.py

dbt's sources are the assets of the replicated tables by what stands in `examples/dbt/models/sources.yml`, which
`python -m examples.write_dbt_sources` writes again when tables or columns changed.

DuckDB admits one writing process to a file, or several reading ones. dbt holds what it has attached as long as it runs,
and takes a file that is just being written for an error. So it reads a copy of the replicated file: the stream goes on
meanwhile, and all models see the tables as of one batch. What dbt writes is in a file of its own.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from etl_dagster import DuckDBDestinationResource, build_postgres_replication, on_replicated_change
from examples.shop_replication import DEMO, shop

# Read by dbt/profiles.yml.
os.environ.setdefault("SHOP_COPY", str(DEMO / "shop.copy.duckdb"))
os.environ.setdefault("SHOP_REPORTS", str(DEMO / "reports.duckdb"))

# `dagster dev` parses the project, which opens no database. For a deployment: cd examples/dbt && dbt parse
project = DbtProject(Path(__file__).resolve().parent / "dbt")
project.prepare_if_dev()


class ReportsTranslator(DagsterDbtTranslator):
    """Builds a model when a table that it reads has changed, every ten minutes at most; other models with their own."""

    def get_automation_condition(self, dbt_resource_props: Mapping[str, Any]) -> dg.AutomationCondition[Any] | None:
        reads = dbt_resource_props.get("depends_on", {}).get("nodes", ())
        if any(unique_id.startswith("source.") for unique_id in reads):
            return on_replicated_change(every="10m")
        return dg.AutomationCondition.eager()


@dbt_assets(manifest=project.manifest_path, project=project, dagster_dbt_translator=ReportsTranslator())
def shop_reports(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """The models of the dbt project, and their tests as checks."""
    assert isinstance(shop.destination, DuckDBDestinationResource)
    shop.destination.copy_file(os.environ["SHOP_COPY"])
    yield from dbt.cli(["build"], context=context).stream()


defs = dg.Definitions.merge(
    build_postgres_replication(shop),
    dg.Definitions(assets=[shop_reports], resources={"dbt": DbtCliResource(project)}),
)
