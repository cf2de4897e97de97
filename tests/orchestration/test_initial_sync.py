"""The replicated tables as assets: materialised, again, partly, by several processes at once, and interrupted."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import psycopg
import pytest

from etl_core.errors import Stopped
from etl_core.identifiers import TableName
from etl_core.replication.failpoints import COPY_STAGED, SLOT_CREATED, activated
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.assets import build_initial_sync_assets
from etl_dagster.failures import failure_of
from etl_dagster.resources import DuckDBDestinationResource, PostgresReplicationResource, StateStoreResource
from etl_dagster.specs import build_source_asset_specs
from etl_dagster.sync import run_interruptibly
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

# Dagster calls a name of its own that it has deprecated, when it resolves nested resources.
pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")

ORDERS, CUSTOMERS, NOTES = (TableName("public", table) for table in ("orders", "customers", "notes"))
TABLES = (ORDERS, CUSTOMERS, NOTES)


def sync(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    *tables: TableName,
    retry_policy: dg.RetryPolicy | None = None,
    **config: Any,
) -> dg.ExecuteInProcessResult:
    """Materialises in process, with `config` in the launchpad of every table."""
    assets = build_initial_sync_assets(replication, tables or TABLES, retry_policy=retry_policy)
    return dg.materialize(
        assets,
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config={"ops": {asset.op.name: {"config": config} for asset in assets}},
        raise_on_error=False,
    )


def like(
    replication: PostgresReplicationResource, kind: type[PostgresReplicationResource], **options: Any
) -> PostgresReplicationResource:
    """`replication` as another class."""
    return kind(
        name=replication.name,
        publication=replication.publication,
        dsn=replication.dsn,
        tables=replication.tables,
        state=replication.state,
        destination=replication.destination,
        **options,
    )


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    """By the table's name, without the namespace."""
    events = result.get_asset_materialization_events()
    found = [event.step_materialization_data.materialization for event in events]
    return {event.asset_key.path[-1]: event for event in found}


def failures(result: dg.ExecuteInProcessResult) -> dict[str, tuple[str, str]]:
    """What a person reads of the steps that failed: description and hint, by the step's last word."""
    read = {}
    for event in result.get_step_failure_events():
        said = event.step_failure_data.user_failure_data
        assert said is not None, event.step_failure_data.error
        read[str(event.step_key).rsplit("__", 1)[-1]] = (str(said.description), str(said.metadata["hint"].value))
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


# --- definitions ----------------------------------------------------------------------------------------------


def offline(tmp_path: Path) -> PostgresReplicationResource:
    return PostgresReplicationResource(
        name="shop",
        publication="shop_pub",
        dsn="postgresql://nobody@127.0.0.1:1/none",
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )


def test_definitions_load_without_a_database(tmp_path: Path) -> None:
    replication = offline(tmp_path)
    [asset] = build_initial_sync_assets(
        replication,
        [ORDERS],
        retry_policy=dg.RetryPolicy(max_retries=2),
        op_tags={"dagster/priority": "3"},
        automation_condition=dg.AutomationCondition.on_missing(),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1)),
    )
    [spec] = list(asset.specs)
    assert spec.key == dg.AssetKey(["duckdb", "public", "orders"])
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["shop", "public", "orders"])]
    assert spec.automation_condition is not None
    assert spec.freshness_policy is not None
    assert asset.op.name == "shop__public__orders"
    assert asset.op.pool == "shop_sync"
    assert asset.op.retry_policy == dg.RetryPolicy(max_retries=2)
    assert asset.op.tags == {"dagster/priority": "3", names.PIPELINE_TAG: "shop"}
    [source] = build_source_asset_specs(replication, [ORDERS])
    assert source.key == dg.AssetKey(["shop", "public", "orders"])
    definitions = dg.Definitions(assets=[asset, source], resources={"shop": replication})
    dg.Definitions.validate_loadable(definitions)
    assert not list(tmp_path.iterdir())


def test_names_of_ops_are_valid_and_tell_apart_every_two_tables(tmp_path: Path) -> None:
    odd = [
        ("public", "orders"),
        ("public", "Orders"),
        ("public", "my orders"),
        ("public", "my_orders"),
        ("public", 'my"orders'),
        ("public", "my-orders"),
        ("a__b", "c"),
        ("a", "b__c"),
        ("a_", "b"),
        ("a", "_b"),
        ("größe", "日本語"),
        ("größe", "한국어"),
    ]
    replication, tables = offline(tmp_path), [TableName(*parts) for parts in odd]
    assets = build_initial_sync_assets(replication, tables)
    assert len({asset.op.name for asset in assets}) == len(odd)
    definitions = dg.Definitions(
        assets=[*assets, *build_source_asset_specs(replication, tables)], resources={"shop": replication}
    )
    dg.Definitions.validate_loadable(definitions)
    assert [asset.key.path[1:] for asset in assets] == [list(parts) for parts in odd]


def test_a_translator_decides_how_a_table_appears(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    class Renamed(DagsterReplicationTranslator):
        def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
            spec = super().get_asset_spec(props).replace_attributes(key=["raw", props.table.name], owners=["team:data"])
            return spec.with_io_manager_key("warehouse")

    class Warehouse(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj: object) -> None:
            raise AssertionError(f"{context.asset_key} is in the warehouse already, yet got {obj}")

        def load_input(self, context: dg.InputContext) -> str:
            return "/".join(context.asset_key.path)

    seen = []

    @dg.asset(ins={"orders": dg.AssetIn(["raw", "orders"])})
    def report(orders: object) -> None:
        seen.append(orders)

    [asset] = build_initial_sync_assets(replication, [ORDERS], translator=Renamed())
    assert asset.specs_by_key[dg.AssetKey(["raw", "orders"])].owners == ["team:data"]
    resources = {names.resource_key(replication.name): replication, "warehouse": Warehouse()}
    assert dg.materialize([asset, report], instance=instance, resources=resources).success
    assert seen == ["raw/orders"]


# --- copying --------------------------------------------------------------------------------------------------


def test_materialising_copies_and_tells(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    result = sync(replication, instance)
    assert result.success
    for table in ("orders", "customers"):
        assert content(replication, table) == at_source(database, table)
    assert content(replication, "notes") == []

    told = materializations(result)
    assert {table: event.metadata["dagster/row_count"].value for table, event in told.items()} == {
        "orders": 100,
        "customers": 100,
        "notes": 0,
    }
    metadata = told["orders"].metadata
    columns = metadata["dagster/column_schema"].value.columns
    assert [(column.name, column.type, column.constraints.nullable) for column in columns] == [
        ("id", "int4", False),
        ("n", "int4", False),
        ("note", "text", True),
    ]
    source = dg.AssetKey([replication.name, "public", "orders"])
    assert metadata["dagster/column_lineage"].value.deps_by_column == {
        column: [dg.TableColumnDep(source, column)] for column in ("id", "n", "note")
    }
    assert metadata["dagster/uri"].value == replication.destination.uri(ORDERS)
    assert metadata["etl/bytes"].value == 8192
    seconds, rate = metadata["etl/duration_seconds"].value, metadata["etl/rows_per_second"].value
    assert seconds > 0
    assert rate == pytest.approx(100 / seconds)
    with replication.pipeline() as pipeline:
        for name in TABLES:
            lsn = str(pipeline.find(name).snapshot_lsn)
            event = told[name.name]
            assert event.metadata["etl/lsn"].value == lsn
            assert event.tags is not None
            assert event.tags["dagster/data_version"] == lsn
    assert slots(database) == [f"etl_{replication.name}"]


def test_progress_is_in_the_log(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    result = sync(replication, instance, ORDERS)
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    assert [line for line in logged if line.startswith("public.orders: 100 rows copied")]


def test_materialising_again_copies_again_while_the_others_stay(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    first = materializations(sync(replication, instance))
    database.execute("UPDATE orders SET n = -n WHERE id <= 10; DELETE FROM orders WHERE id > 90; DELETE FROM customers")
    second = materializations(sync(replication, instance, ORDERS))
    assert list(second) == ["orders"]
    assert content(replication, "orders") == at_source(database, "orders")
    assert second["orders"].metadata["dagster/row_count"].value == 90
    assert second["orders"].metadata["etl/lsn"].value != first["orders"].metadata["etl/lsn"].value
    assert len(content(replication, "customers")) == 100


def test_a_table_is_copied_again_beside_a_stream(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert sync(replication, instance).success
    stop, failed = threading.Event(), []
    with replication.pipeline(stop=stop) as streaming:

        def stream() -> None:
            try:
                streaming.prepare()
                streaming.stream()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                await_row(connection, "SELECT 1 FROM pg_replication_slots WHERE active")
                connection.execute("UPDATE orders SET n = 1")
                assert sync(replication, instance, ORDERS).success
                connection.execute("UPDATE orders SET n = n + 1; UPDATE customers SET n = 3")
            with replication.pipeline() as asking:
                verified = asking.verify([ORDERS, CUSTOMERS])
        finally:
            stop.set()
            thread.join()
    assert not failed
    assert [(comparison.is_equal, comparison.problem) for comparison in verified] == [(True, None)] * 2
    assert content(replication, "orders") == at_source(database, "orders")
    assert slots(database) == [f"etl_{replication.name}"]


def test_without_full_refresh_a_copied_table_is_reported_as_it_is(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    first = materializations(sync(replication, instance, ORDERS, CUSTOMERS, full_refresh=False))
    copied = content(replication, "orders")
    database.execute("DELETE FROM orders")
    again = materializations(sync(replication, instance, full_refresh=False))
    assert content(replication, "orders") == copied
    assert again["orders"].tags == {**(again["orders"].tags or {}), **data_version(first["orders"])}
    assert again["orders"].metadata["dagster/row_count"].value == 100
    assert "etl/duration_seconds" not in again["orders"].metadata
    assert "etl/duration_seconds" in again["notes"].metadata  # the one that was not copied before

    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
        lsn = str(pipeline.destination.positions().tables[pipeline.find(ORDERS).table_id])
    streamed = materializations(sync(replication, instance, ORDERS, full_refresh=False))["orders"]
    assert streamed.metadata["etl/lsn"].value == lsn
    assert data_version(streamed) != data_version(first["orders"])
    assert "dagster/row_count" not in streamed.metadata  # nobody counted


def data_version(event: dg.AssetMaterialization) -> dict[str, str]:
    return {"dagster/data_version": (event.tags or {})["dagster/data_version"]}


def test_connections_of_the_launchpad_win(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    used = []

    class Watched(PostgresReplicationResource):
        @contextlib.contextmanager
        def pipeline(self, **options: Any) -> Iterator[Any]:
            with super().pipeline(**options) as pipeline:
                used.append(pipeline.config.copy.connections_per_table)
                yield pipeline

    watched = like(replication, Watched, copy_connections=3)
    assert sync(watched, instance, ORDERS).success
    assert sync(watched, instance, ORDERS, connections=1).success
    assert used == [3, 1]
    assert not sync(watched, instance, ORDERS, connections=0).success


# --- failing --------------------------------------------------------------------------------------------------


def test_a_table_that_cannot_be_copied_fails_alone(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    database.execute("ALTER TABLE customers ADD COLUMN price numeric(8,2)")
    database.execute("UPDATE customers SET price = 'NaN' WHERE id = 7")
    result = sync(replication, instance, retry_policy=dg.RetryPolicy(max_retries=3))
    assert not result.success
    [(table, (description, hint))] = failures(result).items()
    assert table == "customers"
    assert "price" in description
    assert hint
    assert set(materializations(result)) == {"orders", "notes"}
    assert content(replication, "orders") == at_source(database, "orders")
    assert result.retry_attempts_for_node(f"{replication.name}__public__customers") == 0  # it would fail again
    assert state(replication, CUSTOMERS) is TableState.ERRORED
    assert state(replication, ORDERS) is TableState.FINISHED_COPY

    database.execute("UPDATE customers SET price = 7.5 WHERE id = 7")
    assert sync(replication, instance, CUSTOMERS).success
    assert content(replication, "customers") == at_source(database, "customers")


def test_a_table_that_is_not_the_pipelines_is_refused_with_those_that_are(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    result = sync(replication, instance, ORDERS, TableName("public", "invoices"))
    [(description, hint)] = failures(result).values()
    assert description.startswith("public.invoices is not a table of pipeline")
    assert "public.orders" in hint
    assert set(materializations(result)) == {"orders"}


def test_a_wrong_password_is_told_without_it(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database.dsn)
    if "password" not in parts:
        pytest.skip("this server asks for no password")
    right, wrong = str(parts.pop("password")), "wr0ng-s3cret"
    monkeypatch.setenv("ETL_TEST_PASSWORD", wrong)
    mistaken = PostgresReplicationResource(
        name=replication.name,
        dsn=psycopg.conninfo.make_conninfo("", **parts),
        password_env="ETL_TEST_PASSWORD",
        publication=replication.publication,
        tables=replication.tables,
        state=replication.state,
        destination=replication.destination,
    )
    result = sync(mistaken, instance, ORDERS)
    [(description, hint)] = failures(result).values()
    assert "password authentication failed" in description
    assert "check the user and the password" in hint
    everything = "".join(map(repr, instance.all_logs(result.run_id)))
    assert wrong not in everything
    assert right not in everything

    monkeypatch.delenv("ETL_TEST_PASSWORD")
    [(description, hint)] = failures(sync(mistaken, instance, ORDERS)).values()
    assert "environment variable ETL_TEST_PASSWORD" in description
    assert "export ETL_TEST_PASSWORD" in hint

    monkeypatch.setenv("ETL_TEST_PASSWORD", right)
    assert sync(mistaken, instance, ORDERS).success


def test_what_may_pass_is_tried_again(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result = sync(offline(tmp_path), instance, ORDERS, retry_policy=dg.RetryPolicy(max_retries=1))
    [(description, _)] = failures(result).values()
    assert description.startswith("cannot connect to 127.0.0.1:1")
    assert result.retry_attempts_for_node("shop__public__orders") == 1


def test_an_error_without_a_hint_is_a_failure_too() -> None:
    failure = failure_of(Stopped("stopped"))
    assert (failure.description, dict(failure.metadata), failure.allow_retries) == ("stopped", {}, True)


# --- several processes ----------------------------------------------------------------------------------------


class AtStaged:
    """Holds the first copy that reaches COPY_STAGED, in this process, until `go` is set."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            self.go.wait()


@contextlib.contextmanager
def copied_elsewhere(replication: PostgresReplicationResource, table: TableName) -> Iterator[AtStaged]:
    """Another pipeline object copies `table` beside the block, and stands just before it publishes."""
    hold = AtStaged()
    with activated(COPY_STAGED, hold), replication.pipeline() as other:
        other.prepare()
        thread = threading.Thread(target=lambda: other.sync([table]))
        thread.start()
        try:
            assert hold.reached.wait(30)
            yield hold
        finally:
            hold.go.set()
            thread.join()


def test_a_copy_under_way_elsewhere_is_left_alone(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    with copied_elsewhere(replication, ORDERS):
        result = sync(replication, instance, ORDERS, NOTES)
    [(description, hint)] = failures(result).values()
    assert description == "another process is copying public.orders now"
    assert "materialise again" in hint
    assert set(materializations(result)) == {"notes"}
    assert state(replication, ORDERS) is TableState.FINISHED_COPY
    assert content(replication, "orders") == at_source(database, "orders")


def test_without_full_refresh_a_copy_under_way_elsewhere_is_waited_for(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance
) -> None:
    with copied_elsewhere(replication, ORDERS) as hold:

        class Waiting(PostgresReplicationResource):
            @contextlib.contextmanager
            def pipeline(self, **options: Any) -> Iterator[Any]:
                with super().pipeline(**options) as pipeline:
                    find = pipeline.find

                    def found(name: TableName) -> Any:
                        status = find(name)
                        if status.state is TableState.DATA_SYNC:
                            hold.go.set()  # only now that we have seen it
                        return status

                    pipeline.find = found
                    yield pipeline

        result = sync(like(replication, Waiting), instance, ORDERS, full_refresh=False)
    event = materializations(result)["orders"]
    assert event.metadata["dagster/row_count"].value == 100
    assert "etl/duration_seconds" not in event.metadata  # it did not copy
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    assert [line for line in logged if "another process is copying public.orders" in line]


def job_from_environment() -> dg.JobDefinition:
    """What a step's process loads: the pipeline that the environment describes."""
    return job_of(PostgresReplicationResource)


def held_job_from_environment() -> dg.JobDefinition:
    return job_of(Held)


def job_of(kind: type[PostgresReplicationResource]) -> dg.JobDefinition:
    replication = kind(
        name=os.environ["ETL_TEST_NAME"],
        publication="shop_pub",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        tables=os.environ["ETL_TEST_TABLES"].split(","),
        state=StateStoreResource(url=os.environ["ETL_TEST_STATE"]),
        destination=DuckDBDestinationResource(path=os.environ["ETL_TEST_DUCKDB"]),
    )
    tables = replication.table_names()
    assert tables is not None
    job = dg.define_asset_job("sync", executor_def=dg.multiprocess_executor.configured({"max_concurrent": 3}))
    return dg.Definitions(
        assets=build_initial_sync_assets(replication, tables),
        resources={names.resource_key(replication.name): replication},
        jobs=[job],
    ).resolve_job_def("sync")


def run_in_processes(job: Callable[[], dg.JobDefinition], instance: dg.DagsterInstance) -> list[str]:
    """Runs it, each step in a process of its own; the tables whose assets were materialised, by name."""
    with dg.execute_job(dg.reconstructable(job), instance=instance) as result:
        events = result.get_asset_materialization_events()
        return sorted(event.step_materialization_data.materialization.asset_key.path[-1] for event in events)


@pytest.fixture
def environment(replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `job_from_environment` reads, for `replication`."""
    assert replication.tables is not None
    monkeypatch.setenv("ETL_TEST_NAME", replication.name)
    monkeypatch.setenv("ETL_TEST_TABLES", ",".join(replication.tables))
    monkeypatch.setenv("ETL_TEST_STATE", replication.state.url)
    monkeypatch.setenv("ETL_TEST_DUCKDB", replication.destination.options()["path"])


@pytest.mark.usefixtures("environment")
def test_several_processes_copy_at_once(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    assert run_in_processes(job_from_environment, instance) == ["customers", "notes", "orders"]
    for table in ("orders", "customers", "notes"):
        assert content(replication, table) == at_source(database, table)
    assert {state(replication, table) for table in TABLES} == {TableState.FINISHED_COPY}
    assert slots(database) == [f"etl_{replication.name}"]


# --- interrupting ---------------------------------------------------------------------------------------------


def await_row(connection: psycopg.Connection[Any], query: str) -> None:
    """Returns when `query` has a row; fails after a minute."""
    deadline = threading.Event()
    timer = threading.Timer(60, deadline.set)
    timer.start()
    try:
        while connection.execute(query.encode()).fetchone() is None:
            assert not deadline.wait(0.02), f"never true: {query}"
    finally:
        timer.cancel()


class Held(PostgresReplicationResource):
    """Its copies stand still under their snapshot until they are stopped; the file ETL_TEST_REACHED says that one does.

    Works in a step's process as in ours, because it holds itself.
    """

    @contextlib.contextmanager
    def pipeline(self, **options: Any) -> Iterator[Any]:
        stop = options["stop"]

        def hold() -> None:
            Path(os.environ["ETL_TEST_REACHED"]).touch()
            assert stop.wait(60), "nobody stopped the copy"

        with activated(SLOT_CREATED, hold), super().pipeline(**options) as pipeline:
            yield pipeline


@contextlib.contextmanager
def interrupted(reached: Path) -> Iterator[None]:
    """This process gets SIGINT, as Dagster's termination of a run sends it, when a held copy has begun in the block."""
    ended = threading.Event()

    def interrupt() -> None:
        while not reached.exists():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        reached.unlink(missing_ok=True)


@pytest.fixture
def reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "reached"
    monkeypatch.setenv("ETL_TEST_REACHED", str(path))
    return path


def assert_interrupted(result: dg.ExecuteInProcessResult) -> None:
    """The step ended by the interruption itself, not by what the copy made of it."""
    [event] = result.get_step_failure_events()
    assert event.step_failure_data.error is not None
    assert event.step_failure_data.error.cls_name == "DagsterExecutionInterruptedError"


def assert_not_copied(replication: PostgresReplicationResource, database: Database) -> None:
    """Nothing of `orders` is left but its entry in the store, and nobody works for it any more."""
    path = replication.destination.options()["path"]
    with duckdb.connect(path, read_only=True) as connection:
        present = connection.execute("SELECT 1 FROM information_schema.tables WHERE table_name = 'orders'").fetchall()
    assert not present
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        await_row(
            connection,
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'etl\\_%\\_copy\\_%')",
        )
    assert slots(database) == [f"etl_{replication.name}"]


def test_a_terminated_run_leaves_nothing_half_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    with interrupted(reached):
        assert_interrupted(sync(like(replication, Held), instance, ORDERS))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sync", "copy"))]
    assert_not_copied(replication, database)
    assert sync(replication, instance, ORDERS).success
    assert content(replication, "orders") == at_source(database, "orders")


@pytest.mark.usefixtures("environment")
def test_a_terminated_run_of_several_processes_leaves_nothing_half_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    with interrupted(reached):
        assert run_in_processes(held_job_from_environment, instance) == []
    [run] = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE  # CANCELED if Dagster had been asked for it
    assert_not_copied(replication, database)
    assert sync(replication, instance, ORDERS).success
    assert content(replication, "orders") == at_source(database, "orders")


def test_a_terminated_copy_again_leaves_readers_what_was_there(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database, reached: Path
) -> None:
    assert sync(replication, instance, ORDERS).success
    before = content(replication, "orders")
    database.execute("DELETE FROM orders WHERE id = 1")
    with interrupted(reached):
        assert_interrupted(sync(like(replication, Held), instance, ORDERS))
    assert content(replication, "orders") == before
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        assert pipeline.find(ORDERS).state is TableState.INIT  # not failed: nobody asked for it yet


def test_work_that_does_not_hear_the_interruption_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_dagster.sync._PATIENCE", 0.05)
    stop, ends, done = threading.Event(), threading.Event(), threading.Event()

    def deaf() -> None:
        ends.wait()
        done.set()

    class Interruption(BaseException):
        pass

    def report() -> None:
        raise Interruption

    monkeypatch.setattr("etl_dagster.sync._REPORT_EVERY", 0.01)
    with pytest.raises(Interruption):
        run_interruptibly(deaf, stop, report)
    assert stop.is_set()
    assert not done.is_set()
    ends.set()
    assert done.wait(30)
