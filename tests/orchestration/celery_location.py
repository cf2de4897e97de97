"""What Celery's workers load: the pipeline that the environment describes, its tables on two queues."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster_celery import celery_executor

from etl_core.identifiers import TableName
from etl_core.replication.failpoints import SLOT_CREATED, activated
from etl_dagster import names
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.sync.assets import build_initial_sync_assets

QUEUES = {"one": ("orders", "notes"), "two": ("customers", "items")}


def replication() -> PostgresReplicationResource:
    return _replication(PostgresReplicationResource)


def job() -> dg.JobDefinition:
    """Every table's initial sync, each on the queue that QUEUES says."""
    return _job(replication())


class Held(PostgresReplicationResource):
    """A copy that has begun says which process it is, in the file ETL_TEST_REACHED, and stands still."""

    @contextlib.contextmanager
    def pipeline(self, **options: Any) -> Iterator[Any]:
        def hold() -> None:
            Path(os.environ["ETL_TEST_REACHED"]).write_text(str(os.getpid()))
            options["stop"].wait(120)

        with activated(SLOT_CREATED, hold), super().pipeline(**options) as pipeline:
            yield pipeline


def held_job() -> dg.JobDefinition:
    return _job(_replication(Held))


def _replication(kind: type[PostgresReplicationResource]) -> PostgresReplicationResource:
    return kind(
        name=os.environ["ETL_TEST_NAME"],
        publication="shop_pub",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        state=StateStoreResource(url=dg.EnvVar("ETL_TEST_STATE")),
        destination=DuckDBDestinationResource(path=os.environ["ETL_TEST_DUCKDB"]),
    )


def _job(resource: PostgresReplicationResource) -> dg.JobDefinition:
    assets = [
        asset
        for queue, tables in QUEUES.items()
        for asset in build_initial_sync_assets(
            resource,
            [TableName("public", table) for table in tables],
            op_tags={"dagster-celery/queue": queue},
            copy_processes={f"public.{table}": 1 for table in tables},
        )
    ]
    return dg.Definitions(
        assets=assets,
        resources={names.resource_key(resource.name): resource},
        jobs=[dg.define_asset_job("sync", executor_def=celery_executor)],
    ).resolve_job_def("sync")


def main() -> None:
    """Runs the named job as `dagster job execute` does: its steps on the workers, DAGSTER_HOME's instance."""
    name, config = sys.argv[1:]
    with dg.execute_job(
        dg.reconstructable({"job": job, "held_job": held_job}[name]),
        instance=dg.DagsterInstance.get(),
        run_config=yaml.safe_load(Path(config).read_text()),
    ) as result:
        sys.exit(0 if result.success else 1)


if __name__ == "__main__":
    from tests.orchestration import celery_location  # the module that the workers can import, not __main__

    celery_location.main()
