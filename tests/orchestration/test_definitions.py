"""The definitions of one pipeline in one call, loaded without a source."""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from etl_core.identifiers import TableName
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.definitions.specs import build_source_asset_specs
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.reports.checks import build_replication_checks
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from etl_dagster.sync.assets import build_initial_sync_assets

ORDERS = [TableName("public", "orders")]
BUILD: dict[str, Callable[[PostgresReplicationResource], Any]] = {
    "replication": build_postgres_replication,
    "assets": lambda resource: build_initial_sync_assets(resource, ORDERS),
    "specs": lambda resource: build_source_asset_specs(resource, ORDERS),
    "stream": lambda resource: build_stream_job(resource, ORDERS),
    "checks": lambda resource: build_replication_checks(resource, ORDERS),
}


def replication(**changes: object) -> PostgresReplicationResource:
    settings = {
        "name": "shop",
        "dsn": "postgresql://nobody@127.0.0.1:1/nowhere",
        "publication": "shop_pub",
        "tables": ["public.orders", 'public."Line Items"'],
        "state": StateStoreResource(url="sqlite:////nowhere/state.db"),
        "destination": DuckDBDestinationResource(path="/nowhere/shop.duckdb"),
    }
    return PostgresReplicationResource(**(settings | changes))  # type: ignore[arg-type]


def test_everything_is_there_and_names_that_need_quotes_load() -> None:
    definitions = build_postgres_replication(replication())
    dg.Definitions.validate_loadable(definitions)
    repository = definitions.get_repository_def()
    copied = {dg.AssetKey(["duckdb", "public", "orders"]), dg.AssetKey(["duckdb", "public", "Line Items"])}
    assert copied < set(repository.asset_graph.get_all_asset_keys())
    jobs = {job.name for job in repository.get_all_jobs()}
    assert {"shop_initial_sync", "shop_stream", "shop_checks", "shop_control"} <= jobs
    assert [sensor.name for sensor in repository.sensor_defs if "shop" in sensor.name] == ["shop_stream_sensor"]
    checked = {key.name for key in repository.asset_graph.asset_check_keys}
    assert checked == {"replication_lag", "table_state", "slot_health", "schema_matches", "equals_source"}


def test_a_schedule_takes_the_sensor_s_place() -> None:
    repository = build_postgres_replication(replication(), cron_schedule="*/10 * * * *").get_repository_def()
    assert [schedule.name for schedule in repository.schedule_defs] == ["shop_stream_schedule"]
    assert [sensor.name for sensor in repository.sensor_defs if "shop" in sensor.name] == []


@pytest.mark.parametrize("status", ["RUNNING", "STOPPED"])
def test_the_schedule_has_the_status_that_the_sensor_would_have(status: str) -> None:
    definitions = build_postgres_replication(
        replication(), cron_schedule="*/10 * * * *", default_sensor_status=dg.DefaultSensorStatus[status]
    )
    [schedule] = definitions.schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.default_status is dg.DefaultScheduleStatus[status]


def test_batches_without_a_schedule_are_refused() -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="pipeline shop: mode micro_batch needs cron_schedule"):
        build_postgres_replication(replication(), stream=StreamConfig(mode="micro_batch"))


def test_scheduled_batches_report_as_often_as_configured() -> None:
    stream = StreamConfig(report_every_seconds=7, heartbeat_every_seconds=70)
    definitions = build_postgres_replication(replication(), cron_schedule="*/10 * * * *", stream=stream)
    [schedule] = definitions.schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    data = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=datetime(2026, 1, 1, tzinfo=UTC)))
    [request] = data.run_requests or ()
    config = request.run_config["ops"]["stream_shop"]["config"]
    assert (config["mode"], config["report_every_seconds"], config["heartbeat_every_seconds"]) == ("micro_batch", 7, 70)


def test_the_stream_s_run_has_the_tags_of_its_op_and_ours_win() -> None:
    tags = {"size": "small", "dagster/max_retries": "5"}
    job = build_postgres_replication(replication(), stream_op_tags=tags).resolve_job_def("shop_stream")
    assert job.tags["size"] == "small"
    assert job.tags["dagster/max_retries"] == "0"


def test_tables_must_be_named() -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="which tables"):
        build_postgres_replication(replication(tables=None))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Shop"}, "'Shop' cannot name a pipeline; use up to 43 lower-case letters"),
        ({"name": "s" * 60}, "cannot name a pipeline; use up to 43 lower-case letters"),
        ({"batch_max_rows": 0}, "batch_max_rows: must be greater than 0, not 0"),
        (
            {"batch_max_bytes": "64 megs"},
            "batch_max_bytes: '64 megs' is not a size; write bytes, or a number with a unit",
        ),
        ({"batch_max_bytes": "0"}, "batch_max_bytes: must be greater than 0, not 0"),
        ({"batch_max_age": "soon"}, "batch_max_age: 'soon' is not a duration; write seconds, or a number with a unit"),
        ({"copy_connections": -1}, "copy_connections: must be greater than 0, not -1"),
        ({"tables": []}, "tables: is empty; name a table"),
        ({"tables": ["orders", "public.orders"]}, "tables[1]: public.orders is listed twice"),
        ({"tables": ["public.orders", "a.b.c"]}, "tables[1]: 'a.b.c' is not a table name; write namespace.table"),
    ],
)
@pytest.mark.parametrize("build", ["replication", "assets", "stream", "checks"])
def test_a_value_that_no_run_could_take_is_refused_when_it_loads(
    changes: dict[str, object], said: str, build: str
) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=re.escape(said)) as refused:
        BUILD[build](replication(**changes))
    assert str(refused.value).startswith(f"pipeline {changes.get('name', 'shop')}: ")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("public.orders", "pipeline shop: tables: must be a list, not text"),
        (["orders", "public.orders"], "pipeline shop: tables[1]: public.orders is listed twice"),
        (["a.b.c"], "pipeline shop: tables[0]: 'a.b.c' is not a table name; write namespace.table"),
    ],
)
def test_wrong_tables_are_refused(tables: Any, said: str) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=re.escape(said)):
        build_postgres_replication(replication(tables=None), tables=tables)


def test_a_publication_may_have_no_tables_yet() -> None:
    dg.Definitions.validate_loadable(build_postgres_replication(replication(tables=None), tables=[]))


@pytest.mark.parametrize(
    ("max_lag", "said"),
    [
        (-1, "must be greater than 0, not -1"),
        (0, "must be greater than 0, not 0"),
        ("soon", "must be a number of seconds, not text"),
        (None, "must be a number of seconds, not NoneType"),
    ],
)
def test_a_lag_that_is_none_is_refused(max_lag: Any, said: str) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=f"pipeline shop: max_lag: {said}"):
        build_postgres_replication(replication(), max_lag=max_lag)


def test_what_a_variable_holds_is_looked_at_when_something_runs() -> None:
    unset = replication(batch_max_bytes=dg.EnvVar("ETL_TEST_UNSET"), batch_max_rows=dg.EnvVar.int("ETL_TEST_UNSET"))
    dg.Definitions.validate_loadable(build_postgres_replication(unset))


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:hunter2@h/d", "postgresql://u:hunter2/x#y@h/d", "host=h password=hunter2 dbname=d"]
)
def test_a_password_as_text_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(ValueError, match="password_env") as refused:
        replication(dsn=dsn)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["password", "sslpassword"])
def test_a_password_among_the_keywords_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"keywords holds {name}") as caught:
        PostgresReplicationResource(
            name="shop",
            publication="shop_pub",
            host="db.example",
            keywords={name: "s3cret"},
            state=StateStoreResource(url="sqlite:///state.db"),
            destination=DuckDBDestinationResource(path="shop.duckdb"),
        )
    assert "s3cret" not in str(caught.value)


# --- what an environment variable holds, read by Python when the code location loads -------------------------------

WITH_PASSWORD = "postgresql://etl:hunter2@db/shop"
KEY = '{"type": "service_account", "private_key": "hunter2"}'


class TokenDestination(DuckDBDestinationResource):
    """A destination of a person's own."""

    token: str


def with_dsn(value: str) -> dict[str, object]:
    return {"dsn": value}


def with_state(value: str) -> dict[str, object]:
    return {"state": StateStoreResource(url=value)}


def with_credentials(value: str) -> dict[str, object]:
    return {"destination": BigQueryDestinationResource(project="p", credentials=value)}


def with_token(value: str) -> dict[str, object]:
    return {"destination": TokenDestination(path="/nowhere/shop.duckdb", token=value)}


IN_A_FIELD = pytest.mark.parametrize(
    ("changes", "secret", "field"),
    [
        (with_dsn, WITH_PASSWORD, "dsn holds a password"),
        (with_state, WITH_PASSWORD, "state: url holds a password"),
        (with_credentials, KEY, "destination: credentials holds a key"),
        (with_token, "hunter2", "destination: token holds a password"),
    ],
    ids=["dsn", "state", "credentials", "token"],
)
Changes = Callable[[str], dict[str, object]]


@IN_A_FIELD
@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_a_secret_that_python_read_from_the_environment_is_refused(
    changes: Changes,
    secret: str,
    field: str,
    build: Callable[[PostgresReplicationResource], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_DSN", secret)
    resource = replication(**changes(os.environ["SHOP_DSN"]))

    with pytest.raises(dg.DagsterInvalidDefinitionError, match=field) as refused:
        build(resource)

    assert "pipeline shop" in str(refused.value)
    assert 'dg.EnvVar("SHOP_DSN")' in str(refused.value)
    assert "hunter2" not in str(refused.value)


@IN_A_FIELD
def test_no_page_has_what_a_variable_holds(
    changes: Changes, secret: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DSN", secret)
    resource = replication(**changes(dg.EnvVar("SHOP_DSN")))

    repository = build_postgres_replication(resource).get_repository_def()

    assert "hunter2" not in str(RepositorySnap.from_def(repository))


def test_assets_refer_to_the_line_that_defines_the_pipeline() -> None:
    definitions = build_postgres_replication(replication())
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.key.path == ["duckdb", "public", "orders"]]
    value = spec.metadata["dagster/code_references"]
    assert isinstance(value, dg.CodeReferencesMetadataValue)
    [reference] = value.code_references
    assert isinstance(reference, dg.LocalFileCodeReference)
    assert reference.file_path == __file__
    line = Path(__file__).read_text().splitlines()[(reference.line_number or 0) - 1]
    assert line == "    definitions = build_postgres_replication(replication())"
