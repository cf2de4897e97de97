"""Resources whose fields are the options that a destination's type declares."""

import os
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from pydantic import ValidationError

from etl_core.destination.registry import find_type
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_dagster import (
    DestinationResource,
    DuckLakeDestinationResource,
    IcebergDestinationResource,
    PostgresReplicationComponent,
    PostgresReplicationResource,
    SnowflakeDestinationResource,
    StateStoreResource,
    build_postgres_replication,
)

ORDERS = TableName("public", "orders")
PAGES = Path(__file__).parents[2] / "docs" / "destinations"


def loaded(destination: DestinationResource) -> dg.Definitions:
    """Of a pipeline into it, as a code location loads it."""
    shop = PostgresReplicationResource(
        name="shop",
        dsn="postgresql://replicator@127.0.0.1:1/shop",
        publication="shop_pub",
        tables=["public.orders"],
        state=StateStoreResource(url="sqlite:///shop.state.db"),
        destination=destination,
    )
    return build_postgres_replication(shop)


def test_the_options_are_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lake = DuckLakeDestinationResource(
        catalog="postgresql://etl@db.example.com/lake", catalog_password=dg.EnvVar("LAKE_PASSWORD"), data="files"
    )
    lake.check()  # reads no variable
    assert (lake.database_name(), lake.table_uri(ORDERS)) == ("lake", "ducklake://lake/public/orders")
    with pytest.raises(ConfigError, match="LAKE_PASSWORD is not set"):
        lake.options()
    monkeypatch.setenv("LAKE_PASSWORD", "hunter2")
    assert lake.options()["catalog_password"] == "hunter2"
    config = lake.config()
    assert (config.type, "s3_secret" in config.options, config.options["keep_snapshots"]) == ("ducklake", False, "168h")
    assert "hunter2" not in repr(lake)


def test_a_secret_as_text_is_refused() -> None:
    for field, text in (("credential", "etl:hunter2"), ("s3_secret_key", "hunter2")):
        with pytest.raises(ValidationError, match=f"{field} is a secret") as refused:
            IcebergDestinationResource(uri="https://catalog.example.com", warehouse="shop", **{field: text})
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ValidationError, match="catalog holds a password") as refused:
        DuckLakeDestinationResource(catalog="postgresql://etl:hunter2@db.example.com/lake", data="files")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("field", ["credential", "token", "s3_access_key", "s3_secret_key"])
def test_a_secret_that_python_read_is_refused_when_the_code_location_loads(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOG_SECRET", "etl:hunter2")
    read: dict[str, str] = {field: os.environ["CATALOG_SECRET"]}
    catalog = IcebergDestinationResource(uri="https://catalog.example.com", warehouse="shop", **read)
    with pytest.raises(
        dg.DagsterInvalidDefinitionError, match=f'{field} holds .* dg.EnvVar."CATALOG_SECRET"'
    ) as refused:
        loaded(catalog)
    assert "hunter2" not in str(refused.value)


def test_the_file_of_a_key_is_no_secret_and_the_key_is() -> None:
    names = {"account": "a-b", "user": "ETL", "database": "shop"}
    loaded(SnowflakeDestinationResource(private_key_file="key.p8", **names))
    key = "-----BEGIN PRIVATE KEY-----\nhunter2"
    with pytest.raises((ValidationError, dg.DagsterInvalidDefinitionError)) as refused:
        loaded(SnowflakeDestinationResource(private_key_file=key, **names))
    assert "hunter2" not in str(refused.value)


def test_a_name_that_a_variable_holds_is_not_known_yet() -> None:
    told = SnowflakeDestinationResource(account="a-b", user="ETL", private_key_file="key.p8", database="shop")
    assert (told.database_name(), told.table_name(ORDERS)) == ("SHOP", "SHOP.public.orders")
    variable = SnowflakeDestinationResource(
        account="a-b", user="ETL", private_key_file="key.p8", database=dg.EnvVar("SHOP_DATABASE")
    )
    assert variable.database_name() is None


def test_what_is_wrong_is_told_when_the_code_location_loads() -> None:
    with pytest.raises(ConfigError, match=r"destination\.data: must be a directory, or s3://bucket/prefix"):
        DuckLakeDestinationResource(catalog="lake.ducklake", data="gs://bucket/lake").check()


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("ducklake", "LAKE_PASSWORD"),
        ("iceberg", "CATALOG_CREDENTIAL"),
        ("snowflake", "SNOWFLAKE_KEY_PASSPHRASE"),
    ],
)
def test_the_page_has_one_destination_in_python_and_in_yaml(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (PAGES / f"{name}.md").read_text().split("## In Dagster\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (text,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code, shown)  # noqa: S102
    attributes = {
        "name": "shop",
        "source": {"dsn": "postgresql://replicator@127.0.0.1:1/shop", "publication": "shop_pub"},
        "state": {"url": "sqlite:///shop.state.db"},
        "tables": ["public.orders"],
        **yaml.safe_load(text),
    }
    component = PostgresReplicationComponent.from_attributes_dict(attributes=attributes)
    both = (shown["destination"], component.destination)
    for destination in both:
        loaded(destination)  # reads no variable
    monkeypatch.setenv(variable, "etl:hunter2")
    in_python, in_yaml = (find_type(name).read_options(destination.options()) for destination in both)
    assert in_python == in_yaml
    assert "etl:hunter2" in in_python.values()
    assert both[0].table_uri(ORDERS) == both[1].table_uri(ORDERS)
