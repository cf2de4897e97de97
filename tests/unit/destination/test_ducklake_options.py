"""What the options of a lake say, without DuckDB."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.destination.ducklake.catalog import Catalog, Storage, read_catalog, read_storage
from etl_core.destination.ducklake.declaration import DUCKLAKE
from etl_core.destination.options import Options, read_options
from etl_core.errors import ConfigError

FOLDER = Path("/srv/etl")


def read(**given: object) -> Options:
    return read_options("ducklake", DUCKLAKE.options or (), {"data": "files", **given}, FOLDER)


@pytest.mark.parametrize(
    ("text", "catalog"),
    [
        ("lake.ducklake", Catalog("duckdb", "/srv/etl/lake.ducklake")),
        ("/tmp/lake.ducklake", Catalog("duckdb", "/tmp/lake.ducklake")),  # noqa: S108
        ("sqlite:lake.sqlite", Catalog("sqlite", "/srv/etl/lake.sqlite")),
        ("postgresql://etl@host/lake", Catalog("postgres", "postgresql://etl@host/lake")),
        ("postgres:host=host dbname=lake", Catalog("postgres", "host=host dbname=lake")),
    ],
)
def test_places_are_in_the_folder_of_the_configuration(text: str, catalog: Catalog) -> None:
    options = read(catalog=text)
    assert read_catalog(options["catalog"]) == catalog
    assert read_storage(options) == Storage("/srv/etl/files/")
    assert read_options("ducklake", DUCKLAKE.options or (), options) == options


def test_s3_is_told_by_options_or_by_the_variables_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the environment")
    options = read(catalog="lake", data="s3://b/p", s3_key_id="ak", s3_endpoint="http://127.0.0.1:9000/")
    assert read_storage(options) == Storage(
        "s3://b/p",
        (
            ("KEY_ID", "ak"),
            ("SECRET", "of the environment"),
            ("ENDPOINT", "127.0.0.1:9000"),
            ("URL_STYLE", "path"),
            ("USE_SSL", "false"),
        ),
    )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"catalog": "postgresql://etl@host"}, "catalog"),
        ({"catalog": "postgresql://etl:hunter2@host/lake"}, "catalog"),
        ({"catalog": "postgres:nonsense"}, "catalog"),
        ({"catalog": "lake", "catalog_password": "hunter2"}, "catalog_password"),
        ({"catalog": "lake", "data": "gs://bucket"}, "data"),
        ({"catalog": "lake", "s3_region": "eu-central-1"}, "s3_region"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_option(given: dict[str, object], field: str) -> None:
    assert DUCKLAKE.check is not None
    with pytest.raises(ConfigError) as refused:
        DUCKLAKE.check(read(**given))
    assert refused.value.field == f"destination.{field}"
    assert "hunter2" not in str(refused.value)
