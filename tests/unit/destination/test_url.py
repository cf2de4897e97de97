"""A destination written as one URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.config_file import load_config
from etl_core.destination.registry import check_destination, find_type
from etl_core.errors import ConfigError

REST = "pipeline: shop\nsource: {host: db, database: shop, publication: p}\n"


def loaded(folder: Path, destination: str) -> tuple[str, dict[str, object]]:
    """The type, and the options that differ from what they are by default."""
    (folder / "etl.yaml").write_text(f"{REST}destination: {destination}\n")
    config = load_config(folder / "etl.yaml").destination
    found = find_type(config.type)
    options = found.read_options(config.options, config.folder)
    default = {option.name: option.default for option in found.type.options or ()}
    return config.type, {name: value for name, value in options.items() if value not in (None, {}, default[name])}


@pytest.mark.parametrize(
    ("url", "type", "options"),
    [
        ("bigquery:my-project.raw_{namespace}", "bigquery", {"project": "my-project", "dataset": "raw_{namespace}"}),
        ("bigquery:example.com:shop.raw", "bigquery", {"project": "example.com:shop", "dataset": "raw"}),
        ("bigquery:example.com:shop", "bigquery", {"project": "example.com:shop"}),
        ("postgres://etl@db/shop", "postgres", {"dsn": "postgres://etl@db/shop"}),
        ("postgresql://etl:${PW}@db/shop", "postgres", {"dsn": "postgresql://etl:hunter2@db/shop"}),
    ],
)
def test_it_is_read_by_its_type(
    url: str, type: str, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", "hunter2")
    name, found = loaded(tmp_path, url)
    found.pop("staging", None)
    assert (name, found) == (type, options)


def test_a_path_is_in_the_folder_of_the_file(tmp_path: Path) -> None:
    assert loaded(tmp_path, "duckdb:out/shop.duckdb") == ("duckdb", {"path": tmp_path / "out" / "shop.duckdb"})


@pytest.mark.parametrize(
    ("url", "sentence", "hint"),
    [
        ("shop.duckdb", "must be a mapping or a URL", "write for example duckdb:shop.duckdb"),
        ("[duckdb]", "must be a mapping or a URL, not a list", None),
        ("'duckdb:'", "is not a URL of its type", "write duckdb:PATH"),
        ("duckdb:///shop.duckdb", "is not a URL of its type", "write duckdb:PATH"),
        ("duckdb:s3://bucket", "must be a file or folder of this machine", "write its path"),
        ("dukdb:shop.duckdb", "there is no destination type 'dukdb'", "did you mean duckdb?"),
        ("memory:x", "destination type memory has no URL", "write its options one by one"),
        ("postgresql://u:hunter2@x@h/db", "is not a connection string", "write postgresql://"),
    ],
)
def test_what_is_wrong_with_one_is_told_without_it(url: str, sentence: str, hint: str | None, tmp_path: Path) -> None:
    (tmp_path / "etl.yaml").write_text(f"{REST}destination: {url}\n")
    with pytest.raises(ConfigError, match=sentence) as caught:
        check_destination(load_config(tmp_path / "etl.yaml").destination)
    assert str(caught.value.hint).startswith(str(hint))
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert str(caught.value.field).startswith("destination")
