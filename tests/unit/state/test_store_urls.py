"""Which URLs name a state store, and what is said about the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.errors import ConfigError
from etl_core.state.sql_store import open_store


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:hunter2?uri=true",
        "mysql://etl:hunter2@db/state",
        "postgresql+asyncpg://etl:hunter2@db/state",
        "postgresql://etl:hunter2@db:54x32/state",
        "postgresql://etl@db:hunter2/state",
    ],
)
def test_other_urls_are_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, "shop")
    assert caught.value.field == "state.url"
    assert caught.value.hint is not None
    assert "sqlite:///" in caught.value.hint
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://etl:hunter2@db.example:6432/state?sslmode=require", "db.example:6432/state"),
        ("postgresql+psycopg://etl:hunter2@db/state", "db:5432/state"),
        ("postgres://etl@db/state?password=hunter2&sslpassword=hunter2", "db:5432/state"),
        ("postgresql:///state?host=/run/postgresql&port=5433", "/run/postgresql:5433/state"),
    ],
)
def test_postgresql_urls_are_named_without_secrets(url: str, place: str) -> None:
    store = open_store(url, "shop")
    assert repr(store) == f"<SqlStateStore shop at {place}>"
    store.close()


def test_a_pipeline_needs_a_name_that_can_be_a_slots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a pipeline"):
        open_store(f"sqlite:///{tmp_path}/state.db", "My Shop")


def test_the_directory_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing") as caught:
        open_store(f"sqlite:///{tmp_path}/missing/state.db", "shop")
    assert caught.value.field == "state.url"
    assert not (tmp_path / "missing").exists()


def test_opening_creates_nothing(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/state.db", "shop").close()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_does_not_move_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///state.db", "shop")
    monkeypatch.chdir("/")
    store.migrate()
    store.close()
    assert (tmp_path / "state.db").is_file()
