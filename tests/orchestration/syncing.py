"""Initial syncs in tests: materialise in process, and look at what came of it on every side."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import dagster as dg
import duckdb
import psycopg

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.assets import build_initial_sync_assets

ORDERS, CUSTOMERS, NOTES = (TableName("public", table) for table in ("orders", "customers", "notes"))
TABLES = (ORDERS, CUSTOMERS, NOTES)


def sync(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    *tables: TableName,
    retry_policy: dg.RetryPolicy | None = None,
    **config: Any,
) -> dg.ExecuteInProcessResult:
    """Materialises in process, with `config` in the launchpad."""
    assets = build_initial_sync_assets(replication, tables or TABLES, retry_policy=retry_policy)
    return dg.materialize(
        assets,
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=launchpad(**config),
        raise_on_error=False,
    )


def launchpad(**options: Any) -> dict[str, Any]:
    """The run configuration that sets these options, once for all steps."""
    return {"resources": {"etl_materialize": {"config": options}}}


def like(
    replication: PostgresReplicationResource, kind: type[PostgresReplicationResource], **options: Any
) -> PostgresReplicationResource:
    """`replication` as another class, or with other options."""
    same = {
        "name": replication.name,
        "publication": replication.publication,
        "dsn": replication.dsn,
        "tables": replication.tables,
        "state": replication.state,
        "destination": replication.destination,
    }
    return kind(**{**same, **options})


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    """By the table's name, without the namespace."""
    events = result.get_asset_materialization_events()
    found = [event.step_materialization_data.materialization for event in events]
    return {event.asset_key.path[-1]: event for event in found}


def failures(result: dg.ExecuteInProcessResult) -> dict[str, tuple[str, str]]:
    """What a person reads of the steps that failed, by the step's last word: what happened, and the hint.

    The description has both, for alerts show nothing else.
    """
    read = {}
    for event in result.get_step_failure_events():
        said = event.step_failure_data.user_failure_data
        assert said is not None, event.step_failure_data.error
        hint = str(said.metadata["hint"].value)
        happened, _, advice = str(said.description).partition(" → ")
        assert advice.startswith(hint.splitlines()[0])
        read[str(event.step_key).rsplit("__", 1)[-1]] = (happened, hint)
    return read


def content(replication: PostgresReplicationResource, table: str) -> list[tuple[Any, ...]]:
    """The rows in the DuckDB file, ordered."""
    path = replication.destination.options()["path"]
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(f"SELECT * FROM public.{table} ORDER BY 1").fetchall()  # noqa: S608


def at_source(database: Database, table: str) -> list[tuple[Any, ...]]:
    return database.execute(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608


def slots(database: Database) -> list[str]:
    return [slot for (slot,) in database.execute("SELECT slot_name::text FROM pg_replication_slots ORDER BY 1")]


def state(replication: PostgresReplicationResource, table: TableName) -> TableState:
    with replication.pipeline() as pipeline:
        return pipeline.find(table).state


@contextlib.contextmanager
def streaming(replication: PostgresReplicationResource) -> Iterator[None]:
    """Another pipeline object streams beside the block."""
    stop, failed = threading.Event(), []
    with replication.pipeline(stop=stop) as pipeline:

        def stream() -> None:
            try:
                pipeline.prepare()
                pipeline.stream()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
    assert not failed


def await_row(connection: psycopg.Connection[Any], query: str) -> None:
    """Returns when `query` has a row; fails after a minute."""
    deadline = threading.Event()
    timer = threading.Timer(300, deadline.set)
    timer.start()
    try:
        while connection.execute(query.encode()).fetchone() is None:
            assert not deadline.wait(0.02), f"never true: {query}"
    finally:
        timer.cancel()


def await_slot(replication: PostgresReplicationResource, *, active: bool) -> None:
    """Waits until the slot is active, or is not: the server frees it a moment after its reader has gone."""
    with replication.connect("test") as connection:
        slot = f"etl_{replication.name}"
        await_row(
            connection,
            f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND active IS {active}",  # noqa: S608
        )
