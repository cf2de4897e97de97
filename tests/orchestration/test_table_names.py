"""How tables of several pipelines and databases are told apart in one code location."""

import logging

import dagster as dg
import pytest

from etl_core.identifiers import TableName
from etl_dagster.addresses import Address, parse_address
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

USERS = TableName("public", "users")


def pipeline(
    name: str, destination: DestinationResource | None = None, **source: object
) -> PostgresReplicationResource:
    settings = source or {"dsn": f"postgresql://etl@db.example/{name}"}
    return PostgresReplicationResource(
        name=name,
        publication="pub",
        tables=["public.users"],
        state=StateStoreResource(url="sqlite:////nowhere/state.db"),
        destination=destination or DuckDBDestinationResource(path=f"/nowhere/{name}.duckdb"),
        **settings,  # type: ignore[arg-type]
    )


def metadata(replication: PostgresReplicationResource) -> tuple[dict[str, object], dict[str, object]]:
    """Of the source's table and of the replicated one."""
    props, translator = ReplicatedTableProps(USERS, replication), DagsterReplicationTranslator()
    source, replicated = translator.get_source_asset_spec(props), translator.get_asset_spec(props)
    return dict(source.metadata), dict(replicated.metadata)


def test_source_and_destination_are_two_storages() -> None:
    source, replicated = metadata(pipeline("crm", dsn="postgresql://etl@db.example:6432/sales"))
    assert source == {
        "dagster/table_name": "sales.public.users",
        "dagster/uri": "postgresql://db.example:6432/sales",
    }
    assert replicated == {"dagster/table_name": "crm.public.users"}
    warehouse = BigQueryDestinationResource(project="my-project", dataset="raw_{namespace}")
    assert metadata(pipeline("crm", warehouse))[1] == {"dagster/table_name": "my-project.raw_public.users"}


def test_no_name_is_guessed_where_a_variable_says_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a code location reads no variable, and `public.users` alone would be the same table everywhere."""
    for name in ("CRM_DSN", "CRM_FILE"):
        monkeypatch.delenv(name, raising=False)
    file = DuckDBDestinationResource(path=dg.EnvVar("CRM_FILE"))
    assert metadata(pipeline("crm", file, dsn=dg.EnvVar("CRM_DSN"))) == ({}, {})
    source, _ = metadata(pipeline("crm", host="db.example", database=dg.EnvVar("CRM_DSN")))
    assert source == {}


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        ("postgresql://etl@db.example/sales", Address("db.example", "5432", "sales")),
        ("postgres://db.example:6432/my%20sales?sslmode=require", Address("db.example", "6432", "my sales")),
        ("postgresql://etl@[::1]:6432/sales", Address("[::1]", "6432", "sales")),
        ("postgresql:///sales?host=/run/postgresql&port=6432", Address("/run/postgresql", "6432", "sales")),
        ("postgresql://etl@db.example", Address("db.example", "5432", None)),
        (r"host=db.example dbname='my \'sales\'' user = etl", Address("db.example", "5432", "my 'sales'")),
        ("service=crm", Address(None, "5432", None)),
    ],
)
def test_what_a_connection_string_says(dsn: str, address: Address) -> None:
    assert parse_address(dsn) == address


@pytest.mark.parametrize(
    ("dsn", "uri"),
    [
        ("postgresql://etl:secret@db.example/sales", "postgresql://db.example:5432/sales"),
        ("postgresql://etl@one.example,two.example/sales", None),
        ("host=db.example user=etl", None),
    ],
)
def test_the_uri_has_no_user_and_names_one_server(dsn: str, uri: str | None) -> None:
    assert parse_address(dsn).uri == uri


def test_two_pipelines_with_a_table_of_the_same_name_load_together(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        crm = build_postgres_replication(pipeline("crm"))
        shop = build_postgres_replication(pipeline("shop"), translator=DagsterReplicationTranslator(key_prefix="shop"))
    assert caplog.messages == []
    both = dg.Definitions.merge(crm, shop)
    dg.Definitions.validate_loadable(both)
    keys = both.resolve_asset_graph().materializable_asset_keys
    assert keys == {dg.AssetKey(["duckdb", "public", "users"]), dg.AssetKey(["shop", "duckdb", "public", "users"])}


def test_a_clash_of_keys_names_both_pipelines_and_the_option(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        crm = build_postgres_replication(pipeline("crm"))
        crm = build_postgres_replication(pipeline("crm"))  # loaded again: no other pipeline
        assert caplog.messages == []
        shop = build_postgres_replication(pipeline("shop"))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="Duplicate asset key"):
        dg.Definitions.merge(crm, shop).get_repository_def()
    [said] = caplog.messages
    assert "pipelines crm and shop both define the asset duckdb/public/users" in said
    assert "translator=DagsterReplicationTranslator(key_prefix='shop')" in said
    assert "translation: {key_prefix: shop}" in said
