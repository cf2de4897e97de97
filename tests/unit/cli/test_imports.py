"""What a process loads before its first row: names, never a time. Every command, run and test pays for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import etl_core

REPOSITORY = Path(etl_core.__file__).parent.parent
HEAVY = frozenset(
    {"dagster", "duckdb", "google", "grpc", "numpy", "pandas", "psycopg", "pyarrow", "rich", "sqlalchemy", "yaml"}
)
STATUS = """\
pipeline: shop
source: {{dsn: "postgresql://etl@127.0.0.1:1/shop", publication: {publication}}}
destination: {{type: {destination}}}
"""


def modules_loaded_by(*code: str) -> set[str]:
    """The modules that a new process has loaded after running the lines of `code`, however it ends."""
    lines = ["import atexit, sys", "atexit.register(lambda: print('LOADED', *sys.modules))", *code]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, capture_output=True, text=True)
    told = set(done.stdout.rpartition("LOADED")[2].split())
    assert "etl_core" in told, done.stderr
    return told


def loaded_by(*code: str) -> set[str]:
    """The heavy packages among them."""
    return set(HEAVY).intersection(name.partition(".")[0] for name in modules_loaded_by(*code))


def etl(*arguments: str) -> tuple[str, str]:
    """What the `etl` command runs."""
    return "from etl_core.cli import main", f"sys.argv[1:] = {list(arguments)}; sys.exit(main())"


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",), ("nonsense",), ()], ids=str)
def test_help_and_wrong_usage_load_nothing(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*etl(*arguments)) == set()


def test_a_configuration_needs_neither_database_nor_columns() -> None:
    assert loaded_by("import etl_core.config") == {"psycopg"}
    assert loaded_by("import etl_core.config_file") == {"psycopg", "yaml"}


def test_a_wrong_configuration_is_told_without_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(STATUS.format(publication="5", destination="duckdb"))
    assert loaded_by(*etl("status", "-c", str(path))) == {"psycopg", "yaml"}


@pytest.mark.parametrize(
    ("destination", "own"),
    [("memory", set()), ("duckdb, path: shop.duckdb", {"duckdb"})],
    ids=lambda value: value.partition(",")[0] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("command", ["status", "doctor", "sync"])
def test_a_command_loads_what_its_pipeline_needs(tmp_path: Path, command: str, destination: str, own: set[str]) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(STATUS.format(publication="shop_pub", destination=destination))
    assert loaded_by(*etl(command, "-c", str(path))) == {"numpy", "psycopg", "pyarrow", "sqlalchemy", "yaml"} | own


@pytest.mark.parametrize("command", ["pause", "resume", "resync"])
def test_a_decision_about_a_table_loads_neither_columns_nor_the_destination(tmp_path: Path, command: str) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(STATUS.format(publication="shop_pub", destination="duckdb, path: shop.duckdb"))
    assert loaded_by(*etl(command, "public.orders", "-c", str(path))) == {"psycopg", "sqlalchemy", "yaml"}


def test_dbt_sources_of_nothing_load_neither_columns_nor_the_destination(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(STATUS.format(publication="shop_pub", destination="duckdb, path: shop.duckdb"))
    assert loaded_by(*etl("dbt-sources", "-c", str(path))) == {"psycopg", "sqlalchemy", "yaml"}


def test_status_loads_nothing_that_moves_rows(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(STATUS.format(publication="shop_pub", destination="memory"))
    loaded = modules_loaded_by(*etl("status", "-c", str(path)))
    moving = ("etl_core.decode", "etl_core.pipeline", "etl_core.source.replication_stream")
    assert not [name for name in loaded if name.startswith(moving)]
