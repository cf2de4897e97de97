"""The examples with dbt, and with dlt next to it, as a person runs them: sources written, project parsed, models built
while a stream writes, a file loaded."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import yaml

from etl_core.cli import main
from etl_core.destination.registry import reader_names
from etl_core.identifiers import TableName
from etl_core.testing.database import Database, Postgres, create_database
from etl_dagster import DagsterReplicationTranslator, dbt_sources
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from examples.shop import TABLES, create_shop
from tests.orchestration.syncing import streaming

ROOT = Path(__file__).parents[2]

REVENUE = """
    SELECT c.country::text, count(o.id), coalesce(sum(o.total), 0)
    FROM customers c LEFT JOIN orders o ON o.customer_id = c.id GROUP BY c.country ORDER BY 1
"""
REACHED = """
    SELECT country, target, (SELECT coalesce(sum(o.total), 0) FROM customers c JOIN orders o ON o.customer_id = c.id
                             WHERE c.country = t.country)
    FROM (VALUES ('DE', 5000000.00), ('FR', 4500000.00), ('JP', 2500000.00), ('US', 9000000.00)) t(country, target)
    ORDER BY 1
"""
GRAPHS = """
import importlib, json, sys
def told(node):
    condition = node.automation_condition
    return {"parents": sorted(key.to_user_string() for key in node.parent_keys),
            "condition": condition and condition.get_label(), "checks": len(node.check_keys)}
def graph(location):
    nodes = importlib.import_module(f"examples.{location}").defs.resolve_asset_graph().asset_nodes
    return {node.key.to_user_string(): told(node) for node in nodes}
print(json.dumps({location: graph(location) for location in sys.argv[1:]}))
"""
Graph = dict[str, dict[str, Any]]


class Shop:
    """The examples in a folder of their own, and the pipeline `shop` that they read, copied."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.database = database
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "target"))
        demo = folder / "demo"
        demo.mkdir()
        self.reports = demo / "reports.duckdb"
        self.replication = PostgresReplicationResource(
            name="shop",
            dsn=database.server.local_dsn(database.name),
            publication="shop_pub",
            tables=[f"public.{table}" for table in TABLES],
            batch_max_age="200ms",
            state=StateStoreResource(url=f"sqlite:///{demo / 'shop.state.db'}"),
            destination=DuckDBDestinationResource(path=str(demo / "shop.duckdb")),
        )

    @property
    def sources(self) -> Path:
        return self.folder / "examples" / "dbt" / "models" / "sources.yml"

    def run(self, *command: str) -> str:
        """What a process in that folder prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ
            | {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
                "SHOP_DSN": self.database.dsn,
                "DAGSTER_HOME": str(self.folder / "demo"),
                "DO_NOT_TRACK": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def materialize(self, selection: str, location: str = "dbt_location") -> None:
        self.run("dagster", "asset", "materialize", "-f", f"examples/{location}.py", "--select", selection)

    @functools.cached_property
    def graphs(self) -> dict[str, Graph]:
        """Of each location with dbt: the parents of each asset, the label of its condition, how many checks it has."""
        printed = self.run(sys.executable, "-c", GRAPHS, "dbt_location", "dlt_location")
        found: dict[str, Graph] = json.loads(printed.splitlines()[-1])
        return found

    def report(self, query: str) -> list[tuple[Any, ...]]:
        return read(self.reports, query)


def read(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def shop(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    database = create_database(postgres)
    create_shop(database.dsn, 0.002)
    shop = Shop(tmp_path_factory.mktemp("shop"), database)
    with shop.replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    yield shop
    database.drop()


def keys(sources: str) -> dict[str, list[str]]:
    """The asset key of each dbt source."""
    return {
        f"{source['name']}.{table['name']}": table["config"]["meta"]["dagster"]["asset_key"]
        for source in yaml.safe_load(sources)["sources"]
        for table in source["tables"]
    }


def test_the_examples_sources_are_those_that_are_written(shop: Shop) -> None:
    committed = shop.sources.read_text(encoding="utf-8")
    shop.run(sys.executable, "-m", "examples.write_dbt_sources")
    assert shop.sources.read_text(encoding="utf-8") == committed
    assert keys(committed) == {f"shop_public.{table}": ["duckdb", "public", table] for table in sorted(TABLES)}


def test_the_keys_are_those_of_the_translator(shop: Shop) -> None:
    found = keys(dbt_sources(shop.replication, DagsterReplicationTranslator(key_prefix=["eu", "crm"])))
    assert found["shop_public.orders"] == ["eu", "crm", "duckdb", "public", "orders"]

    class Other(DagsterReplicationTranslator):
        def get_asset_spec(self, props: Any) -> dg.AssetSpec:
            return super().get_asset_spec(props).replace_attributes(key=["raw", props.table.name])

    assert keys(dbt_sources(shop.replication, Other()))["shop_public.orders"] == ["raw", "orders"]


@pytest.mark.parametrize(
    "destination",
    [
        DuckDBDestinationResource(path="ware.house.duckdb"),
        BigQueryDestinationResource(project="my-project", dataset="raw_{namespace}"),
    ],
    ids=lambda destination: destination.type,
)
def test_dbt_and_the_assets_call_a_table_the_same(destination: DestinationResource) -> None:
    table = TableName("Sales 2", "Order {x}")
    names = reader_names(destination.config())
    assert names.path(table) == destination.table_path(table)
    assert names.database == destination.database_name()


def test_the_command_line_writes_the_same_below_its_header(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = shop.folder / "demo"
    (demo / "etl.yaml").write_text(
        "pipeline: shop\n"
        "source: {host: 127.0.0.1, database: shop, publication: shop_pub}\n"
        "destination: {type: duckdb, path: shop.duckdb}\n"
        f"state: {{url: 'sqlite:///{demo / 'shop.state.db'}'}}\n"
    )
    monkeypatch.chdir(demo)
    assert main(["dbt-sources"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    written = [line for line in dbt_sources(shop.replication).splitlines() if not line.startswith("#")]
    assert printed == written


def test_a_pipeline_that_never_ran_says_what_to_do(shop: Shop, tmp_path: Path) -> None:
    other = PostgresReplicationResource(
        name="other",
        dsn="host=127.0.0.1 dbname=shop",
        publication="shop_pub",
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "other.duckdb")),
    )
    with pytest.raises(dg.Failure) as failed:
        dbt_sources(other)
    assert failed.value.description == (
        "pipeline other has no tables yet, so there are no sources for dbt → they are known from its first start on:"
        " the next stream run"
    )


def test_a_file_copied_while_a_stream_writes_is_whole_and_replaces_the_last(shop: Shop, tmp_path: Path) -> None:
    destination = shop.replication.destination
    assert isinstance(destination, DuckDBDestinationResource)
    copy = tmp_path / "copy.duckdb"
    counted = []
    with streaming(shop.replication):
        for _ in range(3):
            shop.database.execute("INSERT INTO carts (customer_id, items) SELECT max(customer_id) + 1, 1 FROM carts")
            assert destination.copy_file(copy) == copy.stat().st_size
            with duckdb.connect(copy, read_only=True) as connection:
                counted.append(connection.execute("SELECT count(*) FROM public.orders").fetchall())
    assert counted == [shop.database.execute("SELECT count(*) FROM orders")] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["copy.duckdb"]


def test_a_copy_replaces_a_file_that_somebody_wrote_to(shop: Shop, tmp_path: Path) -> None:
    destination = shop.replication.destination
    assert isinstance(destination, DuckDBDestinationResource)
    copy, wal = tmp_path / "copy.duckdb", tmp_path / "copy.duckdb.wal"
    destination.copy_file(copy)
    write = f"c = duckdb.connect({str(copy)!r}); c.execute('CREATE TABLE t (i int)'); os._exit(0)"
    shop.run(sys.executable, "-c", f"import duckdb, os; {write}")
    assert wal.exists(), "it ended before it could write its table into the file"
    destination.copy_file(copy)
    with duckdb.connect(copy, read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM public.orders").fetchall() != [(0,)]
        assert connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 't'").fetchall() == [(0,)]


def test_a_place_where_no_copy_can_be_is_told(shop: Shop, tmp_path: Path) -> None:
    destination = shop.replication.destination
    assert isinstance(destination, DuckDBDestinationResource)
    with pytest.raises(dg.Failure, match=re.escape(f"cannot write {tmp_path}: ")):
        destination.copy_file(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def parsed(shop: Shop) -> Shop:
    """With the project parsed, as for a deployment."""
    warned = shop.run("dbt", "parse", "--project-dir", "examples/dbt", "--profiles-dir", "examples/dbt")
    assert "eprecat" not in warned
    return shop


def test_the_lineage_leads_from_the_source_over_the_replicated_table_to_the_models(parsed: Shop) -> None:
    graph = parsed.graphs["dbt_location"]
    assert graph["duckdb/public/orders"]["parents"] == ["shop/public/orders"]
    assert graph["customer_orders"] == {
        "parents": ["duckdb/public/customers", "duckdb/public/orders"],
        "condition": "on_replicated_change(every=10m)",
        "checks": 2,
    }
    assert graph["revenue_by_country"]["parents"] == ["customer_orders"]
    assert graph["revenue_by_country"]["condition"] == "eager"
    keys = {*graph}
    assert keys == {
        *(f"{side}/public/{table}" for side in ("shop", "duckdb") for table in TABLES),
        "shop/replication_slot",
        "customer_orders",
        "revenue_by_country",
    }


def change_and_stream(shop: Shop, change: str) -> None:
    shop.database.execute(change)
    with shop.replication.pipeline() as pipeline:
        pipeline.stream(until=pipeline.current_lsn())


@pytest.mark.timeout(1200)  # a run of Dagster, with dbt in a process of its own
def test_dagster_builds_the_models_while_a_stream_writes(parsed: Shop) -> None:
    change_and_stream(parsed, "INSERT INTO orders (customer_id, total) VALUES (1, 1234.50), (2, 0.01)")
    with streaming(parsed.replication):
        parsed.materialize("key:customer_orders+")
    assert parsed.report("FROM marts.revenue_by_country ORDER BY country") == parsed.database.execute(REVENUE)


def test_dlt_and_dbt_are_in_one_graph_with_the_replicated_tables(parsed: Shop) -> None:
    graph = parsed.graphs["dlt_location"]
    assert graph["planning/finance/targets"]["parents"] == ["targets_csv"]
    assert graph["planning/finance/targets_reached"] == {
        "parents": ["duckdb/public/customers", "duckdb/public/orders", "planning/finance/targets"],
        "condition": "on_replicated_change(every=10m)",
        "checks": 0,
    }
    assert graph["duckdb/public/orders"]["parents"] == ["shop/public/orders"]
    assert graph["customer_orders"]["parents"] == ["duckdb/public/customers", "duckdb/public/orders"]
    added = {"planning/finance/targets", "planning/finance/targets_reached", "targets_csv"}
    assert {*graph} == {*parsed.graphs["dbt_location"]} | added


@pytest.mark.timeout(1200)
def test_what_dlt_loaded_is_read_together_with_replicated_tables_while_a_stream_writes(parsed: Shop) -> None:
    planning = parsed.folder / "demo" / "planning.duckdb"
    change_and_stream(parsed, "INSERT INTO orders (customer_id, total) VALUES (1, 77.25), (3, 0.02)")
    with streaming(parsed.replication):
        parsed.materialize("key:planning/finance/targets+", "dlt_location")
    assert read(planning, "FROM finance.targets_reached ORDER BY country") == parsed.database.execute(REACHED)
    assert read(planning, "SELECT sum(revenue) > 0 FROM finance.targets_reached") == [(True,)]


STRANGE = """
CREATE SCHEMA "Sales 2";
CREATE TABLE "Sales 2"."Order {{ x }}" ("Id" int PRIMARY KEY, "user" text, "{{ nothing }}" text, "a.b""c" int);
INSERT INTO "Sales 2"."Order {{ x }}" VALUES (1, 'Ada', 'y', 2);
COMMENT ON TABLE "Sales 2"."Order {{ x }}" IS '{{ raise }} {% if %} {# gone #} {{{ "ä" }}}';
COMMENT ON COLUMN "Sales 2"."Order {{ x }}"."user" IS 'who: {{ env_var(''HOME'') }} – 100 %';
"""


def test_dbt_finds_tables_and_columns_of_any_name_and_repeats_comments(
    parsed: Shop, database: Database, tmp_path: Path
) -> None:
    for statement in STRANGE.split(";\n"):
        database.execute(statement)
    replication = PostgresReplicationResource(
        name=database.name,
        dsn=database.server.local_dsn(database.name),
        publication="strange_pub",
        tables=['"Sales 2"."Order {{ x }}"'],
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "ware house.duckdb")),
    )
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
    text = dbt_sources(replication)
    [name] = keys(text)
    source, table = name.split(".")

    project = tmp_path / "project"
    (project / "models").mkdir(parents=True)
    (project / "dbt_project.yml").write_text("name: strange\nversion: '1.0'\nprofile: strange\n")
    attached = {"path": str(tmp_path / "ware house.duckdb"), "alias": '"ware house"', "read_only": True}
    output = {"type": "duckdb", "path": str(tmp_path / "made.duckdb"), "schema": "marts", "attach": [attached]}
    (project / "profiles.yml").write_text(yaml.safe_dump({"strange": {"target": "dev", "outputs": {"dev": output}}}))
    sources = yaml.safe_load(text)
    sources["sources"][0]["tables"][0]["columns"][1]["data_tests"] = ["not_null"]  # of the column that is a keyword
    (project / "models" / "sources.yml").write_text(yaml.safe_dump(sources, allow_unicode=True), encoding="utf-8")
    (project / "models" / "made.sql").write_text(
        "{{ config(materialized='table') }} select * from {{ source('%s', '%s') }}" % (source, table)  # noqa: UP031, S608
    )
    parsed.run("dbt", "build", "--project-dir", str(project), "--profiles-dir", str(project))

    with duckdb.connect(tmp_path / "made.duckdb", read_only=True) as connection:
        assert connection.execute("FROM marts.made").fetchall() == [(1, "Ada", "y", 2)]
    manifest = json.loads((project / "target" / "manifest.json").read_text())
    [found] = manifest["sources"].values()
    assert found["relation_name"] == '"ware house"."Sales 2"."Order {{ x }}"'
    assert found["config"]["meta"]["dagster"]["asset_key"] == ["duckdb", "Sales 2", "Order {{ x }}"]
    assert found["description"] == '{{ raise }} {% if %} {# gone #} {{{ "ä" }}}'
    assert [*found["columns"]] == ["Id", "user", "{{ nothing }}", 'a.b"c']
    assert found["columns"]["user"]["description"] == "who: {{ env_var('HOME') }} – 100 %"
