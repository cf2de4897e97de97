"""The component: definitions from a defs.yaml, errors that name the line, tables asked of the source on command."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import dagster as dg
import duckdb
import pytest
import yaml
from click.testing import CliRunner
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster.components.testing import create_defs_folder_sandbox
from dagster.components.testing.utils import DefsFolderSandbox
from dagster_dg_cli.cli import create_dg_cli

import etl_dagster
from etl_core.schema.pg_types import NUMERIC, format_type
from etl_core.schema.table import Column, PgType
from etl_core.testing import destination_tables
from etl_core.testing.postgres import Database
from etl_dagster.definitions.component import PostgresReplicationComponent
from etl_dagster.definitions.scaffold import ReplicationScaffolder
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.postgres_destination import PostgresDestinationResource
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.sync_step import SyncStep
from etl_dagster.translator import ReplicatedTableProps

pytestmark = [
    pytest.mark.timeout(1200),  # processes that import Dagster, several in a test
    # of Dagster's own doing, whenever it loads a component from YAML
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

CLOSED = "postgresql://replicator@127.0.0.1:1/shop"
SECRET = "s3cret"
REPOSITORY = Path(etl_dagster.__file__).parent.parent
COMPONENT = "etl_dagster.PostgresReplicationComponent"
# `dg` imports every package that has components, dbt's and dlt's too: more than half of what a command costs.
OURS_ALONE = ("--use-component-module", "etl_dagster")


class OwnedByTable(PostgresReplicationComponent):
    """What a person writes to change what `translation` does not."""

    unit: str

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        return super().get_asset_spec(props).merge_attributes(owners=[f"team:{self.unit}_{props.table.name}"])


class Audited(PostgresReplicationComponent):
    """Says before and after a step what the destination has of its tables, and lets an event of its own follow."""

    def execute(self, context: dg.AssetExecutionContext, step: SyncStep) -> Iterator[Any]:
        names = [str(table) for table in step.tables]
        yield dg.AssetObservation("audit", metadata={"when": "before", "rows": self._rows(step), "tables": names})
        yield from super().execute(context, step)
        yield dg.AssetObservation("audit", metadata={"when": "after", "rows": self._rows(step), "tables": names})

    def _rows(self, step: SyncStep) -> int:
        """In `public.orders`, 0 as long as there is no file."""
        path = step.replication.destination.options()["path"]
        if not Path(path).exists():
            return 0
        with duckdb.connect(path, read_only=True) as destination:
            return int(destination.execute("SELECT count(*) FROM public.orders").fetchall()[0][0])


def attributes(**changes: Any) -> dict[str, Any]:
    """Of a pipeline over two tables whose source refuses connections."""
    return {
        "name": "shop",
        "source": {"dsn": CLOSED, "publication": "shop_pub"},
        "destination": {"type": "duckdb", "path": "shop.duckdb"},
        "state": {"url": "sqlite:///shop.state.db"},
        "tables": ["public.orders", "public.customers"],
        **changes,
    }


@pytest.fixture
def sandbox() -> Iterator[DefsFolderSandbox]:
    with create_defs_folder_sandbox() as sandbox:
        yield sandbox


def load(
    sandbox: DefsFolderSandbox, component: type[dg.Component] = PostgresReplicationComponent, **changes: Any
) -> dg.Definitions:
    """The definitions of a defs.yaml with these attributes. Connecting would fail, at the source as at the state."""
    path = sandbox.scaffold_component(
        component,
        defs_path="shop",
        defs_yaml_contents={
            "type": f"{component.__module__}.{component.__qualname__}",
            "attributes": attributes(**changes),
        },
    )
    with sandbox.load_component_and_build_defs(path) as (_, defs):
        return defs


def table_spec(defs: dg.Definitions, *path: str) -> dg.AssetSpec:
    key = dg.AssetKey(path)
    return defs.resolve_assets_def(key).get_asset_spec(key)


def table_keys(defs: dg.Definitions) -> set[str]:
    """The keys of what can be materialised."""
    return {
        key.to_user_string()
        for definition in defs.resolve_asset_graph().assets_defs
        if definition.is_executable
        for key in definition.keys
    }


# --- definitions --------------------------------------------------------------------------------------------------


def test_all_of_a_pipeline_comes_from_a_few_lines(sandbox: DefsFolderSandbox) -> None:
    defs = load(sandbox)

    assert table_keys(defs) == {"duckdb/public/orders", "duckdb/public/customers"}
    assert {job.name for job in defs.jobs or ()} == {
        "shop_initial_sync",
        "shop_stream",
        "shop_control",
        "shop_checks",
    }
    assert [sensor.name for sensor in defs.sensors or ()] == ["shop_stream_sensor"]
    assert not defs.schedules
    replication = (defs.resources or {})["shop"]
    assert isinstance(replication, PostgresReplicationResource)
    assert replication.dsn == CLOSED
    assert replication.tables == ["public.orders", "public.customers"]
    assert isinstance(replication.destination, DuckDBDestinationResource)
    assert not list(sandbox.project_root.rglob("*.db")), "loading opens neither the state nor the destination"


def test_every_attribute_arrives(sandbox: DefsFolderSandbox) -> None:
    defs = load(
        sandbox,
        source={
            "host": "127.0.0.1",
            "port": 1,
            "database": "shop",
            "user": "replicator",
            "password_env": "SHOP_PASSWORD",
            "keywords": {"sslmode": "require"},
            "publication": "shop_pub",
        },
        state={"url_env": "SHOP_STATE"},
        stream={
            "lease_seconds": 600,
            "report_every_seconds": 5,
            "heartbeat_every_seconds": 50,
            "sensor": "running",
            "op_tags": {"size": "small"},
        },
        batch={"max_rows": 10, "max_bytes": "1MiB", "max_age": "2s"},
        initial_sync={"connections": 2, "processes": {"public.customers": 3}},
        allow_append_only=True,
        table_settings={"public.orders": {"columns": {"exclude": ["note"], "truncate": {"zip": 3}}}},
        hash_key_env="SHOP_HASH_KEY",
        types={"numeric": "decimal(38,10)", "out_of_range": None},
        pools={"sync": "copies", "stream": "streams"},
        max_lag=7,
        freshness={"fail_after_seconds": 7200, "warn_after_seconds": 3600},
        retry_policy={"max_retries": 3, "delay_seconds": 10, "backoff": "exponential"},
        op_tags={"dagster/priority": "3"},
        translation={
            "key": "warehouse/{{ table.namespace }}/{{ table.name }}",
            "key_prefix": "raw",
            "group_name": "bronze",
            "owners": ["team:data"],
            "tags": {"domain": "sales"},
            "kinds": ["bronze"],
            "metadata": {"asset": "{{ spec.key.to_user_string() }}"},
            "automation_condition": "{{ dg.AutomationCondition.on_cron('@weekly') }}",
        },
    )

    replication = (defs.resources or {})["shop"]
    assert (replication.host, replication.port, replication.database) == ("127.0.0.1", 1, "shop")
    assert (replication.user, replication.password_env) == ("replicator", "SHOP_PASSWORD")
    assert replication.keywords == {"sslmode": "require"}
    config = replication.batch_max_rows, replication.batch_max_bytes, replication.batch_max_age
    assert config == (10, "1MiB", "2s")
    assert replication.copy_connections == 2
    assert replication.allow_append_only
    assert replication.table_settings == {"public.orders": {"columns": {"exclude": ["note"], "truncate": {"zip": 3}}}}
    assert replication.hash_key_env == "SHOP_HASH_KEY"
    priced = destination_tables.table("orders", Column("price", PgType(NUMERIC, "numeric")), key=())
    price = replication.shapes().of(priced).target.column("price")
    assert (format_type(price), price.out_of_range) == ("numeric(38,10)", "null")
    assert isinstance(replication.state.url, dg.EnvVar)
    assert replication.state.url.env_var_name == "SHOP_STATE"

    spec = table_spec(defs, "raw", "warehouse", "public", "orders")
    assert spec.group_name == "bronze"
    assert list(spec.owners) == ["team:data"]
    assert spec.tags["domain"] == "sales"
    assert spec.kinds == {"bronze", "duckdb", "postgres"}
    assert spec.metadata["asset"] == "duckdb/public/orders"
    assert spec.automation_condition == dg.AutomationCondition.on_cron("@weekly")
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["shop", "public", "orders"])]

    assets = defs.resolve_assets_def(spec.key)
    assert assets.op.retry_policy == dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL)
    assert assets.op.tags["dagster/priority"] == "3"
    assert assets.get_asset_spec(spec.key).freshness_policy is not None
    assert assets.op.pool == "copies"
    shared = defs.resolve_assets_def(dg.AssetKey(["raw", "warehouse", "public", "customers"])).node_def
    assert isinstance(shared, dg.GraphDefinition)
    assert {node.name for node in shared.nodes} == {"copy", "share", "help", "report"}
    job = defs.resolve_job_def("shop_stream")
    [op] = job.nodes
    assert isinstance(op.definition, dg.OpDefinition)
    assert (op.definition.pool, op.definition.tags) == ("streams", {"size": "small"})
    [sensor] = defs.sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert job.run_config is not None
    config = job.run_config["ops"]["stream_shop"]["config"]
    assert (config["lease_seconds"], config["report_every_seconds"], config["heartbeat_every_seconds"]) == (600, 5, 50)
    descriptions = [spec.description or "" for checks in defs.asset_checks or () for spec in checks.check_specs]
    assert any("7 s ago" in description for description in descriptions)


def test_a_schedule_takes_the_sensors_place(sandbox: DefsFolderSandbox) -> None:
    defs = load(sandbox, stream={"mode": "schedule", "cron": "*/5 * * * *", "sensor": "running"})

    assert not defs.sensors
    (schedule,) = defs.schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.cron_schedule == "*/5 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_a_subclass_changes_the_assets_and_keeps_the_translation(sandbox: DefsFolderSandbox) -> None:
    defs = load(sandbox, OwnedByTable, unit="web", tables=["public.orders"], translation={"group_name": "bronze"})

    spec = table_spec(defs, "duckdb", "public", "orders")
    assert list(spec.owners) == ["team:web_orders"]
    assert spec.group_name == "bronze"


def test_a_table_is_copied_through_the_component(
    sandbox: DefsFolderSandbox,
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    defs = load(
        sandbox,
        name=replication.name,
        source={"dsn_env": "SHOP_DSN", "publication": "shop_pub"},
        state={"url": f"sqlite:///{tmp_path / 'state.db'}"},
        destination={"type": "duckdb", "path": str(tmp_path / "shop.duckdb")},
        tables=["public.orders", "public.customers"],
    )

    job = defs.resolve_job_def(f"{replication.name}_initial_sync")
    result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["duckdb", "public", "orders"])])

    assert result.success
    with duckdb.connect(str(tmp_path / "shop.duckdb"), read_only=True) as destination:
        assert destination.execute("SELECT count(*), sum(n) FROM public.orders").fetchone() == (100, 5050)


BEFORE, COPIED, AFTER = ("before", 0), ("materialized", 100), ("after", 100)


@pytest.mark.parametrize(
    ("processes", "events"),
    [
        ({}, [BEFORE, COPIED, AFTER]),
        ({"public.orders": 1}, [BEFORE, COPIED, AFTER]),
        ({"public.orders": 2}, [BEFORE, AFTER, COPIED]),  # the step after the copy says what several processes copied
    ],
    ids=["one step for all", "a step of its own", "several processes"],
)
def test_a_subclass_does_something_before_and_after_a_step(
    processes: dict[str, int],
    events: list[tuple[str, int]],
    sandbox: DefsFolderSandbox,
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    defs = load(
        sandbox,
        Audited,
        name=replication.name,
        source={"dsn_env": "SHOP_DSN", "publication": "shop_pub"},
        state={"url": f"sqlite:///{tmp_path / 'state.db'}"},
        destination={"type": "duckdb", "path": str(tmp_path / "shop.duckdb")},
        tables=["public.orders", "public.customers"],
        initial_sync={"processes": processes},
    )

    job = defs.resolve_job_def(f"{replication.name}_initial_sync")
    result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["duckdb", "public", "orders"])])

    assert result.success
    told = []
    for event in result.all_events:
        if event.is_step_materialization:
            rows = event.step_materialization_data.materialization.metadata["dagster/row_count"].value
            told.append(("materialized", rows))
        elif event.is_asset_observation and event.asset_key == dg.AssetKey(["audit"]):
            metadata = event.asset_observation_data.asset_observation.metadata
            assert metadata["tables"].value == ["public.orders"], "those that the run has selected"
            told.append((str(metadata["when"].value), metadata["rows"].value))
    assert told == events


def test_dbt_sources_have_the_keys_of_the_component(
    project: Path, replication: PostgresReplicationResource, tmp_path: Path
) -> None:
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
    write_defs(
        project,
        name=replication.name,
        state={"url": f"sqlite:///{tmp_path / 'state.db'}"},
        destination={"type": "duckdb", "path": str(tmp_path / "shop.duckdb")},
        translation={"key_prefix": "crm"},
    )
    program = """if True:
        from pathlib import Path
        import dagster as dg
        print(dg.ComponentTree.for_project(Path.cwd()).load_component("shop").dbt_sources())
    """
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(project / "src")])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    [source] = yaml.safe_load(printed)["sources"]
    tables = {table["name"]: table["config"]["meta"]["dagster"]["asset_key"] for table in source["tables"]}
    assert tables == {name: ["crm", "duckdb", "public", name] for name in ("customers", "notes", "orders")}


# --- what is refused ----------------------------------------------------------------------------------------------


PASSWORD_IN_DSN = f"postgresql://replicator:{SECRET}@127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"source": {"dsn": PASSWORD_IN_DSN, "publication": "shop_pub"}}, "source.dsn"),
        ({"source": {"dsn": f"host=127.0.0.1 password={SECRET}", "publication": "shop_pub"}}, "source.dsn"),
        ({"source": {"dsn": "{{ env.SHOP_DSN }}", "publication": "shop_pub"}}, "source.dsn"),
        ({"state": {"url": f"postgresql://etl:{SECRET}@127.0.0.1:1/state"}}, "state.url"),
        # and with another mistake, whose error would repeat what it is about
        ({"source": {"host": "h", "password": SECRET, "publication": "shop_pub"}}, "source.password"),
        ({"source": {"dsn": {"password": SECRET}, "publication": "shop_pub"}}, "source.dsn.password"),
        ({"source": {"dsn": PASSWORD_IN_DSN}}, "source.dsn"),
        ({"source": PASSWORD_IN_DSN}, "source"),
        ({"source": [PASSWORD_IN_DSN]}, "source"),
        ({"source": {"dsn": PASSWORD_IN_DSN, "dsn_env": "X", "publication": "shop_pub"}}, "source.dsn"),
        ({"source": {"dsn": CLOSED, "publication": "p", "keywords": {"sslpassword": SECRET}}}, "source.keywords"),
        (
            {"source": {"dsn": CLOSED, "publication": "p", "keywords": {"password": SECRET, "port": 5}}},
            "source.keyword",
        ),
        ({"state": {"url": f"postgresql://etl:{SECRET}@127.0.0.1:1/state", "url_env": "X"}}, "state.url"),
        ({"destination": {"type": "duckdb", "path": 5, "token": SECRET}}, "destination.token"),
    ],
)
def test_a_password_in_the_file_is_refused_and_not_repeated(
    sandbox: DefsFolderSandbox, changes: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DSN", PASSWORD_IN_DSN)

    with pytest.raises(Exception, match="shop") as caught:
        load(sandbox, **changes)

    said = chain(caught.value)
    assert where in said
    assert "holds a password, which Dagster would show on its pages" in said
    assert SECRET not in said


KEY = json.dumps({"type": "service_account", "private_key": SECRET})
BIGQUERY = {"type": "bigquery", "project": "p"}


@pytest.mark.parametrize(
    "destination",
    [
        {**BIGQUERY, "credentials": KEY},
        {**BIGQUERY, "credentials": json.loads(KEY)},
        {**BIGQUERY, "credentials": [KEY]},
        {**BIGQUERY, "credentials": "{{ env.GCP_KEY }}"},
        # and with another mistake, whose error would repeat what it is about
        {"type": "bigquery", "credentials": KEY},
        {"type": "duckdb", "path": "shop.duckdb", "credentials": KEY},
        {**BIGQUERY, "credential": KEY},
        KEY,
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(
    sandbox: DefsFolderSandbox, destination: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCP_KEY", KEY)

    with pytest.raises(Exception, match="shop") as caught:
        load(sandbox, destination=destination)

    said = chain(caught.value)
    assert "holds a key, which Dagster would show on its pages" in said
    assert "(credentials_env)" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("destination", "type_name", "options"),
    [
        ("duckdb:lake/shop.duckdb", "duckdb", {"path": "lake/shop.duckdb"}),
        ("postgresql://etl@warehouse/shop", "postgres", {"dsn": "postgresql://etl@warehouse/shop"}),
        ("bigquery:project.dataset", "bigquery", {"project": "project", "dataset": "dataset"}),
        ("{{ env.SHOP_URL }}", "duckdb", {"path": "shop.duckdb"}),
        (
            {"type": "snowflake", "account_env": "ACCOUNT", "user": "etl", "private_key_file": "k.p8", "database": "d"},
            "snowflake",
            {"account": "org-acme", "user": "etl", "private_key_file": "k.p8", "database": "d"},
        ),
    ],
)
def test_a_destination_is_a_url_or_its_options(
    sandbox: DefsFolderSandbox,
    monkeypatch: pytest.MonkeyPatch,
    destination: object,
    type_name: str,
    options: dict[str, Any],
) -> None:
    monkeypatch.setenv("SHOP_URL", "duckdb:shop.duckdb")
    monkeypatch.setenv("ACCOUNT", "org-acme")

    found = (load(sandbox, destination=destination).resources or {})["shop"].destination

    assert found.type == type_name
    assert found.options().items() >= options.items()


def test_a_key_comes_from_the_environment(sandbox: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCP_KEY", KEY)

    defs = load(sandbox, destination={**BIGQUERY, "credentials_env": "GCP_KEY"})

    destination = (defs.resources or {})["shop"].destination
    assert isinstance(destination.credentials, dg.EnvVar)
    assert destination.credentials.env_var_name == "GCP_KEY"
    assert destination.options()["credentials"] == KEY
    assert SECRET not in str(RepositorySnap.from_def(defs.get_repository_def()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tables": None}, "give either tables, a list, or discover: publication"),
        ({"discover": "publication"}, "give either tables, a list of names, or discover: publication"),
        ({"tables": ["public.*"]}, "tables has patterns, and loading asks no database"),
        ({"stream": {"mode": "schedule"}}, "mode schedule needs cron"),
        ({"state": {}}, "give either url or url_env"),
        ({"source": {"dsn": CLOSED, "dsn_env": "SHOP_DSN", "publication": "p"}}, "dsn and dsn_env exclude each other"),
        ({"destination": {"type": "oracle", "path": "x"}}, "there is no destination type 'oracle'; use one of: "),
        ({"destination": {"type": "bigquery", "path": "x"}}, "project"),
        ({"retry_policy": {"backoff": "linear"}}, "backoff needs delay_seconds"),
        ({"name": "Shop"}, "'Shop' cannot name a pipeline; use up to 43 lower-case letters"),
        ({"tables": []}, "tables: is empty; name a table, or write discover: publication"),
        ({"tables": ["orders", "public.orders"]}, "tables[1]: public.orders is listed twice"),
        ({"tables": ["a.b.c"]}, "tables[0]: 'a.b.c' is not a table name; write namespace.table"),
        ({"batch": {"max_bytes": "lots"}}, "max_bytes: 'lots' is not a size; write bytes, or a number with a unit"),
        ({"batch": {"max_age": "0s"}}, "max_age: must be greater than 0, not 0"),
        (
            {"destination": {"type": "bigquery", "project": "p", "credentials": "key.json", "credentials_env": "X"}},
            "credentials and credentials_env exclude each other",
        ),
        ({"destination": {"type": "postgres"}}, "destination: give either dsn or dsn_env"),
        ({"destination": {"type": "ducklake", "catalogue": "x.ducklake", "data": "x"}}, "catalogue"),
        (
            {"destination": {"type": "iceberg", "uri": "http://x"}},
            "destination: give either warehouse or warehouse_env",
        ),
        ({"destination": "duckdb"}, "destination: must be a mapping or a URL"),
        ({"destination": "oracle:x"}, "there is no destination type 'oracle'; use one of: "),
        ({"destination": "duckdb://x"}, "destination: is not a URL of its type; write duckdb:PATH"),
        ({"destination": f"postgresql://etl:{SECRET}@db/x"}, "destination holds a password"),
    ],
)
def test_what_does_not_fit_together_is_refused(sandbox: DefsFolderSandbox, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match="shop") as caught:
        load(sandbox, **changes)

    assert said in chain(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Shop"}, "name"),
        ({"max_lag": -1}, "max_lag"),
        ({"tables": []}, "tables"),
        ({"stream": {"lease_seconds": 0}}, "stream.lease_seconds"),
        ({"stream": {"report_every_seconds": 0}}, "stream.report_every_seconds"),
        ({"stream": {"heartbeat_every_seconds": -5}}, "stream.heartbeat_every_seconds"),
        ({"batch": {"max_rows": 0}}, "batch.max_rows"),
        ({"batch": {"max_bytes": "lots"}}, "batch.max_bytes"),
        ({"retry_policy": {"max_retries": -1}}, "retry_policy.max_retries"),
        ({"retry_policy": {"max_retries": 1, "delay_seconds": -1}}, "retry_policy.delay_seconds"),
    ],
)
def test_what_no_run_could_take_is_refused_with_its_line(
    sandbox: DefsFolderSandbox, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(Exception, match="shop") as caught:
        load(sandbox, **changes)

    [file] = sandbox.project_root.rglob("defs.yaml")
    lines = file.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{field.rpartition('.')[2]}:"))
    assert re.search(rf"attributes\.{re.escape(field)}\b.* at \S+defs\.yaml:{number}\b", chain(caught.value))


def test_a_template_is_checked_once_it_has_a_value(sandbox: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_NAME", "shop")
    monkeypatch.setenv("SHOP_BYTES", "lots")
    template: dict[str, Any] = {"name": "{{ env.SHOP_NAME }}", "tables": ["public.{{ env.SHOP_NAME }}"]}

    assert table_keys(load(sandbox, **template)) == {"duckdb/public/shop"}
    with pytest.raises(Exception, match="shop") as caught:
        load(sandbox, batch={"max_bytes": "{{ env.SHOP_BYTES }}"})
    assert "max_bytes: 'lots' is not a size" in chain(caught.value)


def chain(error: BaseException | None) -> str:
    """An error's words and those of what caused it."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(words)


# --- a project on disk, through `dg` ------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project of a person's own, as `create-dagster project` makes one."""
    root = tmp_path / "project"
    package = root / "src" / "person"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (root / "dg.toml").write_text('directory_type = "project"\n\n[project]\nroot_module = "person"\n')
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return root


def dg_command(project: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What `dg` says in the project; its errors and output together."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("dg")), *arguments],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(project / "src")]),
            "DAGSTER_HOME": str(project.parent / "home"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,  # imports of Dagster on a machine that has other work
        check=False,
    )


def write_defs(project: Path, **changes: Any) -> Path:
    folder = project / "src" / "person" / "defs" / "shop"
    folder.mkdir()
    file = folder / "defs.yaml"
    file.write_text(yaml.safe_dump({"type": COMPONENT, "attributes": attributes(**changes)}, sort_keys=False))
    return file


def test_the_scaffolded_file_is_right_and_loads_once_the_address_is_there(project: Path) -> None:
    scaffolded = dg_command(project, "scaffold", "defs", COMPONENT, "Web-Shop")
    assert scaffolded.returncode == 0, scaffolded.stdout
    file = project / "src" / "person" / "defs" / "Web-Shop" / "defs.yaml"
    assert yaml.safe_load(file.read_text())["attributes"]["name"] == "web_shop"

    checked = dg_command(project, "check", "yaml")
    assert checked.returncode == 0, checked.stdout
    listed = dg_command(project, "list", "defs", "--json", WEB_SHOP_DSN=CLOSED)
    assert listed.returncode == 0, listed.stdout
    assert "duckdb/public/customers" in listed.stdout
    assert "web_shop_stream_sensor" in listed.stdout


def test_the_scaffolded_comments_are_attributes_too(sandbox: DefsFolderSandbox) -> None:
    path = sandbox.scaffold_component(PostgresReplicationComponent, defs_path="shop")
    file = path / "defs.yaml"
    lines = file.read_text().splitlines()
    optional = ("stream:", "max_lag:", "freshness:", "retry_policy:", "op_tags:", "translation:", "batch:", "pools:")
    more = (
        "initial_sync:",
        "table_settings:",
        "hash_key_env:",
        "types:",
        "  lease_seconds:",
        "  sensor:",
        "  op_tags:",
    )
    copying = ("  connections:", "  own_step_from:", "  processes:")
    inside = ("  key:", "  key_prefix:", "  group_name:", "  owners:", "  tags:", "  kinds:", "  automation_condition:")
    wanted = tuple(f"  # {start}" for start in (*optional, *more, *copying, *inside))
    file.write_text("\n".join(line.replace("# ", "", 1) if line.startswith(wanted) else line for line in lines))

    with sandbox.load_component_and_build_defs(path) as (_, defs):
        assert table_keys(defs) == {"raw/warehouse/public/customers"}


def test_a_component_is_scaffolded_below_another_and_in_python(sandbox: DefsFolderSandbox) -> None:
    path = sandbox.scaffold_component(PostgresReplicationComponent, defs_path="shop", scaffold_format="python")
    assert "@dg.component_instance" in (path / "component.py").read_text()

    path = sandbox.scaffold_component(PostgresReplicationComponent, defs_path="2nd_shop")
    request = dg.ScaffoldRequest[Any](
        type_name=COMPONENT,
        target_path=path / "defs.yaml",
        scaffold_format="yaml",
        project_root=sandbox.project_root,
        params=None,
        append=True,
    )
    ReplicationScaffolder().scaffold(request)
    documents = list(yaml.safe_load_all((path / "defs.yaml").read_text()))
    assert [document["attributes"]["name"] for document in documents] == ["pipeline_2nd_shop", "pipeline_2nd_shop"]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"max_lagg": 3}, "max_lagg"),
        ({"max_lag": "soon"}, "max_lag"),
        ({"tables": 5}, "tables"),
        ({"source": {"dsn": CLOSED, "publication": "p", "hots": "x"}}, "hots"),
        ({"stream": {"mode": "strem"}}, "mode"),
        ({"destination": {"type": "oracle", "path": "x"}}, "destination"),
        ({"freshness": {"fail_after_seconds": "late"}}, "fail_after_seconds"),
        ({"stream": {"lease_seconds": 0}}, "lease_seconds"),
        ({"retry_policy": {"max_retries": -1}}, "max_retries"),
    ],
)
def test_the_check_of_the_yaml_names_the_wrong_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], wrong: str
) -> None:
    """The command called here: a process would import for 15 s. The tests before and after this one start one."""
    file = write_defs(project, **changes)
    lines = file.read_text().splitlines()
    number = max(index for index, line in enumerate(lines, 1) if line.strip().startswith(f"{wrong}:"))

    monkeypatch.setenv("DAGSTER_HOME", str(project.parent / "home"))
    command = ["check", "yaml", "--target-path", str(project), *OURS_ALONE]
    checked = CliRunner().invoke(create_dg_cli(), command)  # type: ignore[no-untyped-call]

    assert checked.exit_code == 1
    assert f"defs.yaml:{number} - {COMPONENT} " in checked.output
    assert checked.output.count(f" - {COMPONENT} ") == 1


def test_a_type_of_another_package_is_checked_and_loaded(project: Path, own_package: Path) -> None:
    path = os.pathsep.join([str(own_package), str(REPOSITORY), str(project / "src")])
    file = write_defs(project, destination={"type": "mine", "path": "tables", "compression": "zstd"})

    checked = dg_command(project, "check", "yaml", *OURS_ALONE, PYTHONPATH=path)
    assert checked.returncode == 0, checked.stdout
    listed = dg_command(project, "list", "defs", "--json", *OURS_ALONE, PYTHONPATH=path)
    assert listed.returncode == 0, listed.stdout
    assert "mine/public/customers" in listed.stdout

    file.write_text(file.read_text().replace("type: mine", "type: mien"))
    refused = dg_command(project, "check", "yaml", *OURS_ALONE, PYTHONPATH=path)
    assert refused.returncode != 0
    number = file.read_text().splitlines().index("  destination:") + 1
    assert f"defs.yaml:{number} - {COMPONENT} " in refused.stdout


@pytest.mark.usefixtures("replication")
def test_discovered_tables_are_those_of_the_last_refresh(project: Path, database: Database) -> None:
    source = {"dsn_env": "SHOP_DSN", "publication": "shop_pub"}
    write_defs(project, source=source, tables=["public.*", "!public.notes"], discover="publication")

    before = dg_command(project, "list", "defs", "--json", *OURS_ALONE, SHOP_DSN=CLOSED)
    assert before.returncode == 0, before.stdout
    assert "run `dg utils refresh-defs-state`" in before.stdout
    assert "duckdb/public" not in before.stdout

    refused = dg_command(project, "utils", "refresh-defs-state", *OURS_ALONE, SHOP_DSN=CLOSED)
    assert refused.returncode != 0
    refreshed = dg_command(project, "utils", "refresh-defs-state", *OURS_ALONE, SHOP_DSN=database.dsn)
    assert refreshed.returncode == 0, refreshed.stdout

    after = dg_command(project, "list", "defs", "--json", *OURS_ALONE, SHOP_DSN=CLOSED)
    assert after.returncode == 0, after.stdout
    for table in ("orders", "customers"):
        assert f"duckdb/public/{table}" in after.stdout
    assert "duckdb/public/notes" not in after.stdout


def test_dagster_dev_does_not_connect_to_discover(
    sandbox: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")  # what `dagster dev` sets, on which Dagster refreshes by default
    with caplog.at_level(logging.WARNING):
        defs = load(sandbox, tables=None, discover="publication")

    assert table_keys(defs) == set()
    assert "pipeline shop has no tables yet" in caplog.text


def test_a_list_of_tables_needs_no_source_to_refresh(tmp_path: Path) -> None:
    component = PostgresReplicationComponent.from_attributes_dict(attributes=attributes())

    component.write_state_to_path(tmp_path / "state")

    expected = {"tables": {"public.orders": 0, "public.customers": 0}, "comments": {}}
    assert json.loads((tmp_path / "state").read_text()) == expected


def test_comments_that_discovery_found_describe_the_tables_on_both_sides(
    replication: PostgresReplicationResource,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database.execute("COMMENT ON TABLE orders IS 'What was bought'")
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    source = {"dsn_env": "SHOP_DSN", "publication": replication.publication}
    discovering = attributes() | {"source": source, "tables": None, "discover": "publication"}
    component = PostgresReplicationComponent.from_attributes_dict(attributes=discovering)
    component.write_state_to_path(tmp_path / "state")
    monkeypatch.delenv("SHOP_DSN")
    unused: Any = None
    defs = component.build_defs_from_state(unused, tmp_path / "state")
    descriptions = {spec.key.to_user_string(): spec.description for spec in defs.resolve_all_asset_specs()}
    assert descriptions["duckdb/public/orders"] == descriptions["shop/public/orders"] == "What was bought"
    assert str(descriptions["duckdb/public/notes"]).startswith("public.notes of shop, replicated from PostgreSQL.")


def test_discovered_tables_from_a_size_on_have_a_step_of_their_own(
    replication: PostgresReplicationResource, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("INSERT INTO orders SELECT i, i, repeat('x', 100) FROM generate_series(1000, 9000) i")
    for table in ("orders", "customers", "notes"):
        database.execute(f"ANALYZE {table}")
    monkeypatch.setenv("SHOP_DSN", database.dsn)
    given = {
        "source": {"dsn_env": "SHOP_DSN", "publication": replication.publication},
        "tables": None,
        "discover": "publication",
        "initial_sync": {"own_step_from": "100kB"},
    }
    component = PostgresReplicationComponent.from_attributes_dict(attributes=attributes(**given))
    component.write_state_to_path(tmp_path / "state")

    defs = component.build_defs_from_state(cast(Any, None), tmp_path / "state")
    steps = [
        {key.path[-1] for key in assets.keys} for assets in defs.assets or () if isinstance(assets, dg.AssetsDefinition)
    ]
    assert sorted(steps, key=len) == [{"orders"}, {"customers", "notes"}]


def test_tables_in_bigquery_are_called_as_its_io_manager_looks_for_them(sandbox: DefsFolderSandbox) -> None:
    defs = load(sandbox, destination={"type": "bigquery", "project": "p", "dataset": "raw_{namespace}"})
    assert table_keys(defs) == {"bigquery/raw_public/orders", "bigquery/raw_public/customers"}
    assert table_spec(defs, "bigquery", "raw_public", "orders").kinds == {"bigquery", "postgres"}


def test_the_address_of_postgresql_comes_from_the_environment(sandbox: DefsFolderSandbox) -> None:
    defs = load(sandbox, destination={"type": "postgres", "dsn_env": "WAREHOUSE_DSN"})
    destination = (defs.resources or {})["shop"].destination
    assert isinstance(destination, PostgresDestinationResource)
    assert destination.dsn == dg.EnvVar("WAREHOUSE_DSN")
    assert table_keys(defs) == {"postgres/public/orders", "postgres/public/customers"}
