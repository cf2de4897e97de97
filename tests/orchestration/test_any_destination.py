"""A destination that another package brings, in Dagster: its generic resource, the component's YAML, real runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
from dagster.components.resolved.errors import ResolutionException

from etl_core.destination.bigquery.declaration import BIGQUERY
from etl_core.destination.declaration import DestinationType
from etl_core.destination.duckdb.declaration import DUCKDB
from etl_core.destination.ducklake.declaration import DUCKLAKE
from etl_core.destination.iceberg.declaration import ICEBERG
from etl_core.destination.postgres.declaration import POSTGRES
from etl_core.destination.registry import reader_names
from etl_core.destination.snowflake.declaration import SNOWFLAKE
from etl_core.identifiers import TableName
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.any_destination import AnyDestinationResource
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.declared_destinations import (
    DuckLakeDestinationResource,
    IcebergDestinationResource,
    SnowflakeDestinationResource,
)
from etl_dagster.definitions.component import PostgresReplicationComponent
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.postgres_destination import PostgresDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import TABLES, materializations, sync
from tests.own_package import environment

SECRET = "hunter2"
MODULE = """\
from etl_core.destination.declaration import DestinationType
from etl_core.destination.duckdb.readers import DuckDBReaderNames
from etl_core.destination.null import NullDestination
from etl_core.destination.options import Option


def build(options, pipeline):
    made = NullDestination()
    made.options = options
    return made


MINE = DestinationType(
    build=build,
    options=(
        Option("path", "A folder.", kind="path", required=True),
        Option("token", "A secret.", secret=True),
        Option("pat", "Another secret.", secret=True),
        Option("labels", "Labels.", kind="mapping"),
    ),
    reader_names=lambda options: DuckDBReaderNames(options["path"].name),
)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a type, as `type` names it, that is not installed."""
    name = f"any_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    return f"{name}:MINE"


def pipeline_into(destination: DestinationResource, tmp_path: Path) -> PostgresReplicationResource:
    """Whose source refuses connections."""
    return PostgresReplicationResource(
        name="shop",
        dsn="postgresql://replicator@127.0.0.1:1/shop",
        publication="shop_pub",
        tables=["public.orders"],
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=destination,
    )


def attributes(destination: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "shop",
        "source": {"dsn": "postgresql://replicator@127.0.0.1:1/shop", "publication": "shop_pub"},
        "destination": destination,
        "state": {"url": "sqlite:///shop.state.db"},
        "tables": ["public.orders"],
    }


def definitions_of(destination: dict[str, Any]) -> dg.Definitions:
    """Of the component with this destination."""
    component = PostgresReplicationComponent.from_attributes_dict(attributes=attributes(destination))
    return dg.component_defs(component=component)


def chain(error: BaseException | None) -> str:
    """An error's words and those of what caused it."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(words)


# --- the resource --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "declared"),
    [
        (DuckDBDestinationResource, DUCKDB),
        (BigQueryDestinationResource, BIGQUERY),
        (PostgresDestinationResource, POSTGRES),
        (DuckLakeDestinationResource, DUCKLAKE),
        (IcebergDestinationResource, ICEBERG),
        (SnowflakeDestinationResource, SNOWFLAKE),
    ],
)
def test_the_resources_of_our_own_types_have_the_options_that_are_declared(
    resource: type[DestinationResource], declared: DestinationType
) -> None:
    options = {option.name: option for option in declared.options or ()}
    assert list(resource.model_fields) == list(options)
    for name, field in resource.model_fields.items():
        assert field.description == options[name].help
        assert field.is_required() is options[name].required
        if options[name].choices:
            assert get_args(field.annotation) == options[name].choices


def test_options_come_from_settings_and_from_the_environment(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_TOKEN", SECRET)
    resource = AnyDestinationResource(
        destination_type=module,
        settings={"path": "data/ware.house", "labels": {"team": "data"}},
        settings_env={"token": "MINE_TOKEN"},
    )
    resource.check()
    assert (resource.type, resource.config().type) == (module, module)
    assert resource.options() == {"path": "data/ware.house", "labels": {"team": "data"}, "token": SECRET}
    assert SECRET not in repr(resource)


def test_queries_and_assets_call_a_table_the_same_without_reading_a_variable(module: str) -> None:
    table = TableName("Sales 2", "Order {x}")
    resource = AnyDestinationResource(
        destination_type=module, settings={"path": "ware.house"}, settings_env={"token": "NOT_SET"}
    )
    names = reader_names(AnyDestinationResource(destination_type=module, settings={"path": "ware.house"}).config())
    assert names.path(table) == resource.table_path(table)
    assert names.database == resource.database_name() == "ware.house"
    label = module.replace(":", "_")
    assert resource.table_uri(table) == f"{label}://ware.house/Sales 2/Order {{x}}"

    unknown = AnyDestinationResource(destination_type=module, settings_env={"path": "NOT_SET"})
    assert unknown.database_name() is None
    assert unknown.table_path(table) == ("Sales 2", "Order {x}")
    unknown.check()


def test_postgresql_whose_address_a_variable_holds_has_tables_of_no_known_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = TableName("public", "orders")
    resource = AnyDestinationResource(destination_type="postgres", settings_env={"dsn": "WAREHOUSE_DSN"})
    resource.check()
    assert (resource.table_name(table), resource.table_uri(table)) == (None, "postgres://public/orders")
    monkeypatch.setenv("WAREHOUSE_DSN", f"postgresql://etl:{SECRET}@host/ware")
    assert resource.options() == {"dsn": f"postgresql://etl:{SECRET}@host/ware"}
    assert reader_names(resource.config()).database == "ware"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"settings": {"pth": "x"}}, "has no option 'pth'; did you mean path?"),
        ({"settings": {}}, "needs the option 'path'; write for example: "),
        ({"settings": {"path": 5}}, "destination.path: must be text, not a number"),
        ({"settings": {"path": "x"}, "settings_env": {"tken": "X"}}, "has no option 'tken'; did you mean token?"),
        ({"settings": {"path": "x"}, "settings_env": {"path": "X"}}, "stands in settings and in settings_env"),
        ({"settings": {"path": "x", "token": SECRET}}, "settings.token holds a password as text, which Dagster would"),
        ({"settings": {"path": "x", "pat": SECRET}}, "destination.pat: is a secret, which Dagster would show"),
        ({"destination_type": "mien"}, "there is no destination type 'mien'"),
    ],
)
def test_a_code_location_is_told_when_it_loads(
    module: str, tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    replication = pipeline_into(AnyDestinationResource(**{"destination_type": module, **given}), tmp_path)
    with pytest.raises(dg.DagsterInvalidDefinitionError) as caught:
        build_postgres_replication(replication)
    assert sentence in str(caught.value)
    assert SECRET not in chain(caught.value)


def test_a_variable_belongs_into_settings_env(module: str) -> None:
    with pytest.raises(ValueError, match=re.escape('write settings_env={"token": "MINE_TOKEN"}')):
        AnyDestinationResource(destination_type=module, settings={"path": "x", "token": dg.EnvVar("MINE_TOKEN")})


# --- the component -------------------------------------------------------------------------------------------------


def test_the_component_takes_its_options_as_they_are_declared(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defs = definitions_of({"type": module, "path": "x/mine", "labels": {"a": "b"}, "token_env": "MINE_TOKEN"})

    key = dg.AssetKey([module.replace(":", "_"), "public", "orders"])
    spec = defs.resolve_assets_def(key).get_asset_spec(key)
    assert spec.kinds == {"postgres", module.replace(":", "_")}
    assert spec.metadata["dagster/table_name"] == "mine.public.orders"
    monkeypatch.setenv("MINE_TOKEN", SECRET)
    resource = (defs.resources or {})["shop"].destination
    assert resource.options() == {"path": "x/mine", "labels": {"a": "b"}, "token": SECRET}
    assert defs.resolve_job_def("shop_stream")


@pytest.mark.parametrize(
    ("destination", "sentence"),
    [
        ({"type": "mien", "path": "x"}, "there is no destination type 'mien'"),
        ({"type": "not_there:MINE"}, "destination.type: there is no module 'not_there'"),
        ({"path": "x", "pth_env": "X"}, "has no option 'pth'; did you mean path?"),
        ({"path": "x", "token": SECRET}, "destination.token holds a password, which Dagster would show"),
        ({"path": "x", "pat": SECRET}, "destination.pat: is a secret, which Dagster would show"),
    ],
)
def test_the_component_refuses_what_is_wrong(module: str, destination: dict[str, Any], sentence: str) -> None:
    with pytest.raises((dg.DagsterInvalidDefinitionError, ResolutionException, ValueError)) as caught:
        definitions_of({"type": module, **destination})
    assert sentence in chain(caught.value)
    assert SECRET not in chain(caught.value)


def test_loading_imports_no_package_that_was_not_asked_for(own_package: Path) -> None:
    code = (
        "import sys, etl_dagster\n"
        f"etl_dagster.PostgresReplicationComponent.from_attributes_dict(attributes={attributes({'type': 'null'})!r})\n"
        "from etl_core.destination.registry import destination_types\n"
        "print('mine' in destination_types(), 'etl_mine' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(own_package), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_gets_the_options_as_they_were_given(
    module: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE_TOKEN", SECRET)
    settings = {"path": "out", "labels": {"team": "data"}}
    seen = []

    @dg.op
    def look(destination: dg.ResourceParam[AnyDestinationResource]) -> None:
        seen.append(destination.options())

    @dg.job
    def looking() -> None:
        look()

    resource = AnyDestinationResource(destination_type=module, settings=settings, settings_env={"token": "MINE_TOKEN"})
    assert looking.execute_in_process(instance=instance, resources={"destination": resource}).success
    assert seen == [{**settings, "token": SECRET}]


def test_tables_are_copied_and_streamed_into_an_installed_package(
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    database: Database,
    own_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(own_package)
    into = replication.model_copy(
        update={
            "destination": AnyDestinationResource(
                destination_type="mine", settings={"path": os.fspath(tmp_path / "tables")}
            )
        }
    )
    result = sync(into, instance)
    assert result.success
    told = materializations(result)
    assert told["orders"].asset_key == dg.AssetKey(["mine", "public", "orders"])
    assert told["orders"].metadata["dagster/row_count"].value == 100
    assert told["orders"].metadata["dagster/uri"].value == "mine://public/orders"

    database.execute("INSERT INTO orders VALUES (1000, 1, 'streamed')")
    streamed = build_stream_job(into, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(into.name): into},
        run_config=dg.RunConfig(ops={f"stream_{into.name}": StreamConfig(mode="micro_batch")}),
    )
    assert streamed.success
    assert into.table("public.orders").to_arrow().num_rows == 101
