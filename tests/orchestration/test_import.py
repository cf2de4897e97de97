"""Every run and every step imports the package and loads its code location: what that may load, and what not."""

import subprocess
import sys
from pathlib import Path

import pytest

import etl_dagster

HEAVY = ("pyarrow", "numpy", "pandas", "psycopg", "duckdb", "google", "sqlalchemy")
REPOSITORY = Path(etl_dagster.__file__).parent.parent

LOADED = """
{what}
import sys
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
COMPONENT = """
import dagster as dg, etl_dagster
component = etl_dagster.PostgresReplicationComponent.from_attributes_dict(attributes={
    "name": "shop",
    "source": {"dsn": "postgresql://replicator@127.0.0.1:1/shop", "publication": "shop_pub"},
    "destination": {"type": "duckdb", "path": "shop.duckdb"},
    "state": {"url": "sqlite:///shop.state.db"},
    "tables": ["public.orders"],
})
defs = dg.component_defs(component=component)
assert defs.resolve_job_def("shop_stream")
"""


def loaded_by(what: str) -> set[str]:
    """The top-level packages that a new process has loaded after running `what`."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(what=what)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "what",
    ["import etl_dagster", "import etl_dagster.definitions.factory, etl_dagster.definitions.component", COMPONENT],
    ids=["package", "modules", "component"],
)
def test_no_library_of_data_or_databases_is_loaded(what: str) -> None:
    loaded = loaded_by(what)

    assert "etl_dagster" in loaded
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_the_package_alone_loads_none_of_its_modules() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import etl_dagster, sys; print(*(n for n in sys.modules if n.startswith('etl_')))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert set(done.stdout.split()) == {"etl_core", "etl_dagster"}


def test_every_public_name_is_there_and_no_other() -> None:
    for name in etl_dagster._MODULES:
        assert getattr(etl_dagster, name).__module__.startswith("etl_dagster.")
        assert name in dir(etl_dagster)
    assert sorted(etl_dagster._MODULES) == etl_dagster.__all__
    with pytest.raises(AttributeError, match="no attribute 'PostgresReplication'"):
        etl_dagster.PostgresReplication  # noqa: B018
