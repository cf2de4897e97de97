from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.memory import MemoryDestination
from etl_core.destination.null import NullDestination
from etl_core.destination.registry import build_destination, check_options_of, destination_types
from etl_core.errors import ConfigError


def test_every_type_is_built_without_touching_anything(tmp_path: Path) -> None:
    assert destination_types() == ("bigquery", "duckdb", "memory", "null")
    assert isinstance(build_destination("memory", {}, "shop"), MemoryDestination)
    assert isinstance(build_destination("null", {}, "shop"), NullDestination)
    assert isinstance(build_destination("duckdb", {"path": str(tmp_path / "x.duckdb")}, "shop"), DuckDBDestination)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        build_destination("oracle", {}, "shop")
    assert caught.value.field == "destination.type"
    assert caught.value.hint == "use one of: bigquery, duckdb, memory, null"


@pytest.mark.parametrize("kind", ["duckdb", "memory", "null"])
def test_an_unknown_option_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match="'pth'") as caught:
        build_destination(kind, {"path": "x.duckdb", "pth": 1} if kind == "duckdb" else {"pth": 1}, "shop")
    assert caught.value.field == "destination.pth"
    with pytest.raises(ConfigError, match="'pth'"):
        check_options_of(kind, {"path": "x.duckdb", "pth": 1} if kind == "duckdb" else {"pth": 1})


@pytest.mark.parametrize("options", [{}, {"path": ""}, {"path": 5}])
def test_duckdb_needs_a_path(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_destination("duckdb", options, "shop")
    assert caught.value.field == "destination.path"


def test_a_missing_library_says_what_to_install() -> None:
    """In a process of its own: a package imported anew in this one would hide the modules that other tests patch."""
    code = """\
import sys
sys.modules["duckdb"] = None
from etl_core.destination.registry import build_destination, check_options_of
from etl_core.errors import ConfigError
check_options_of("duckdb", {"path": "x.duckdb"})
try:
    build_destination("duckdb", {"path": "x.duckdb"}, "shop")
except ConfigError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "run: pip install 'etl-dagster[duckdb]'"
