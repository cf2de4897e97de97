"""Types of this package, of packages that are installed, and by `module:name`; and what each mistake is told as."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from etl_core.config import DestinationConfig
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.memory import MemoryDestination
from etl_core.destination.null import NullDestination
from etl_core.destination.postgres.destination import PostgresDestination
from etl_core.destination.registry import (
    build_destination,
    check_destination,
    destination_types,
    find_type,
    reader_names,
)
from etl_core.errors import ConfigError, DestinationUnavailable

Install = Callable[..., str]

SECRET = "hunter/2 é"
GOOD = """\
from etl_core.destination.declaration import DestinationType
from etl_core.destination.null import NullDestination
from etl_core.destination.options import Option

def build(options, pipeline):
    made = NullDestination()
    made.options, made.pipeline = options, pipeline
    return made

MINE = DestinationType(
    build=build,
    options=(
        Option("path", "A folder.", kind="path", required=True),
        Option("token", "A secret.", secret=True),
        Option("keep", "For so long.", kind="duration", default="10m"),
    ),
)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package onto the path as pip would: a module of a name that no other test has, and its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(code: str = GOOD, *, types: str = "mine = {module}:MINE", distribution: str = "etl-mine") -> str:
        module = f"mine_{tmp_path.name.replace('-', '_')}_{distribution.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[etl.destinations]\n{types.format(module=module)}\n")
        return module

    return put


def refused(type: str, **options: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_destination(DestinationConfig(type, options), "shop")
    return caught.value


# --- this package's ------------------------------------------------------------------------------------------------


def test_every_type_is_built_without_touching_anything(tmp_path: Path) -> None:
    known = ("bigquery", "duckdb", "ducklake", "iceberg", "memory", "null", "postgres", "snowflake")
    assert destination_types() == known
    assert isinstance(build_destination(DestinationConfig("memory"), "shop"), MemoryDestination)
    assert isinstance(build_destination(DestinationConfig("null"), "shop"), NullDestination)
    config = DestinationConfig("duckdb", {"path": "x.duckdb"}, tmp_path)
    assert isinstance(build_destination(config, "shop"), DuckDBDestination)
    config = DestinationConfig("postgres", {"dsn": "postgresql://etl@127.0.0.1:1/shop"}, tmp_path)
    assert isinstance(build_destination(config, "shop"), PostgresDestination)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_lists_the_known(install: Install) -> None:
    install()
    error = refused("oracle")
    assert error.field == "destination.type"
    known = "bigquery, duckdb, ducklake, iceberg, memory, mine, null, postgres, snowflake"
    assert str(error.hint).startswith(f"use one of: {known}; ")
    assert refused("mien").hint == "did you mean mine?"


@pytest.mark.parametrize("kind", ["duckdb", "memory", "null"])
def test_an_unknown_option_is_named(kind: str) -> None:
    config = DestinationConfig(kind, {"path": "x.duckdb", "pth": 1} if kind == "duckdb" else {"pth": 1})
    with pytest.raises(ConfigError, match="'pth'") as caught:
        build_destination(config, "shop")
    assert caught.value.field == "destination.pth"
    assert caught.value.hint == ("did you mean path?" if kind == "duckdb" else "remove it; it has none")
    with pytest.raises(ConfigError, match="'pth'"):
        check_destination(config)


@pytest.mark.parametrize("options", [{}, {"path": ""}, {"path": 5}])
def test_duckdb_needs_a_path(options: dict[str, object]) -> None:
    assert refused("duckdb", **options).field == "destination.path"


def test_a_missing_library_says_what_to_install() -> None:
    """In a process of its own: a package imported anew in this one would hide the modules that other tests patch."""
    code = """\
import sys
sys.modules["duckdb"] = None
from etl_core.config import DestinationConfig
from etl_core.destination.postgres.destination import PostgresDestination
from etl_core.destination.registry import build_destination, check_destination
from etl_core.errors import ConfigError
config = DestinationConfig("duckdb", {"path": "x.duckdb"})
check_destination(config)
try:
    build_destination(config, "shop")
except ConfigError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "run: pip install 'etl-dagster[duckdb]'"


# --- other packages' -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["mine", "{module}:MINE"])
def test_an_installed_type_gets_its_options_read(install: Install, tmp_path: Path, way: str) -> None:
    config = DestinationConfig(way.format(module=install()), {"path": "out"}, tmp_path)
    built = build_destination(config, "shop")
    assert isinstance(built, NullDestination)
    assert vars(built)["options"] == {"path": tmp_path / "out", "token": None, "keep": 600.0}
    assert vars(built)["pipeline"] == "shop"


@pytest.mark.parametrize("way", ["mine", "{module}:build"])
def test_a_function_is_enough_and_gets_its_options_as_they_are(install: Install, way: str) -> None:
    type = way.format(module=install(types="mine = {module}:build"))
    built = build_destination(DestinationConfig(type, {"anything": [1]}), "shop")
    assert vars(built)["options"] == {"anything": [1]}


def test_types_are_listed_and_others_built_without_importing_it(install: Install) -> None:
    module = install("raise RuntimeError('imported')")
    assert "mine" in destination_types()
    build_destination(DestinationConfig("null"), "shop")
    assert module not in sys.modules
    error = refused("mine")
    assert str(error).startswith("destination type mine of etl-mine 1.0 cannot be imported: RuntimeError: imported (")


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    one, two = install(), install(distribution="etl-other")
    error = refused("mine", path="x")
    assert "etl-mine 1.0" in str(error)
    assert "etl-other 1.0" in str(error)
    assert f"type: {one}:MINE" in str(error.hint)
    assert build_destination(DestinationConfig(f"{two}:MINE", {"path": "x"}), "shop")


def test_a_name_of_this_package_is_not_taken_over(install: Install) -> None:
    install(types="null = {module}:MINE")
    error = refused("null")
    assert str(error) == "destination type null is brought by several packages: etl-dagster, etl-mine 1.0"
    assert "type: etl_core.destination.null:NULL" in str(error.hint)
    assert isinstance(build_destination(DestinationConfig("memory"), "shop"), MemoryDestination)


@pytest.mark.parametrize(
    ("code", "types", "sentence"),
    [
        ("", "mine = not_there_at_all", "names destination type mine by 'not_there_at_all', which is not module:name"),
        ("", "mine = not_there_at_all:MINE", "there is no module 'not_there_at_all', which etl-mine 1.0 names"),
        ("import not_there.at_all", "", "destination type mine needs the Python package not_there, which is not"),
        ("def build(options, pipeline): import not_there", "build", "destination type mine needs the Python package"),
        ("x = (", "", "of etl-mine 1.0 cannot be imported: SyntaxError: '(' was never closed"),
        ("MIEN = 1", "", "has no 'MINE', which etl-mine 1.0 names as destination type mine"),
        ("MINE = {}", "", ":MINE, which etl-mine 1.0 names as destination type mine, is a dict"),
        ("def build(options, pipeline): return None", "build", "builds a NoneType, which is no destination: it has no"),
        ("class build:\n    def __init__(self, options, pipeline): pass", "build", "builds a build, which is no"),
        ("def build(options): return None", "build", "of etl-mine 1.0 failed with TypeError: build() takes 1"),
        ("def build(options, pipeline): return options['nme']", "build", "failed with KeyError: 'nme' (mine_"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_wrong_with_a_package_is_told(install: Install, code: str, types: str, sentence: str) -> None:
    types = types if "=" in types else f"mine = {{module}}:{types or 'MINE'}"
    install(code, types=types)
    error = refused("mine")
    assert sentence in str(error)
    assert error.hint
    assert error.field is not None
    assert error.field.startswith("destination")


def test_all_missing_methods_are_named(install: Install) -> None:
    install(
        """\
        class Half:
            def __init__(self, options, pipeline): pass
            def prepare(self): pass
            def positions(self): pass
            def close(self): pass
            read = None
        """,
        types="mine = {module}:Half",
    )
    assert str(refused("mine")).endswith("it has no method copy, write, read, forget")


def test_a_module_or_a_name_that_is_mistyped(install: Install) -> None:
    module = install()
    assert (
        refused("no_such_module:MINE").hint
        == "correct the name, install its package, or put its folder into PYTHONPATH"
    )
    assert refused(f"{module}:MIEN").hint == "did you mean MINE?"
    for wrong in (f"{module}:", ":MINE", ".:MINE", "a:b:c", "a b:c"):
        assert f"by {wrong!r}, which is not module:name" in str(refused(wrong))


@pytest.mark.parametrize("declared", [True, False])
def test_an_error_of_the_package_shows_no_secret(install: Install, declared: bool) -> None:
    code = GOOD.replace("made = NullDestination()", "raise OSError(f'no: {options}, {options[\"token\"]}')")
    install(code, types="mine = {module}:" + ("MINE" if declared else "build"))
    error = refused("mine", path="x", token=SECRET)
    assert "failed with OSError: no: {" in str(error)
    assert "hunter" not in str(error)
    assert error.__cause__ is None
    assert "***" in str(error)


def test_an_error_of_ours_passes_as_it_is(install: Install) -> None:
    install(
        "from etl_core.errors import DestinationUnavailable\n"
        "def build(options, pipeline): raise DestinationUnavailable('asleep', hint='wake it')",
        types="mine = {module}:build",
    )
    with pytest.raises(DestinationUnavailable, match="asleep"):
        build_destination(DestinationConfig("mine"), "shop")


def test_checks_and_names_of_a_type_are_used(install: Install) -> None:
    code = GOOD.replace(
        "MINE = DestinationType(",
        """\
from etl_core.errors import ConfigError
from etl_core.destination.duckdb.readers import DuckDBReaderNames

def check(options):
    if options["keep"] > 3600:
        raise ConfigError("destination.keep: is too long", field="destination.keep")

MINE = DestinationType(
    check=check, reader_names=lambda options: DuckDBReaderNames(options["path"].name),""",
    )
    install(code)
    with pytest.raises(ConfigError, match="too long") as caught:
        check_destination(DestinationConfig("mine", {"path": "x", "keep": "2h"}))
    assert caught.value.field == "destination.keep"
    assert reader_names(DestinationConfig("mine", {"path": "data/x"})).database == "x"
    assert find_type("mine").origin == "etl-mine 1.0"
