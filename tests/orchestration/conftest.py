"""A real PostgreSQL, a DuckDB file and a state store as Dagster resources, and a Dagster instance on disk."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from etl_core.testing.postgres import Database
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource


@pytest.fixture
def replication(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresReplicationResource:
    """A pipeline over `orders`, `customers` (100 rows each) and the empty `notes`, published, not yet copied."""
    with psycopg.connect(database.dsn) as connection:
        for table in ("orders", "customers"):
            connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL, note text)".encode())
            rows = f"INSERT INTO {table} SELECT i, i, 'note ' || i FROM generate_series(1, 100) i"  # noqa: S608
            connection.execute(rows.encode())
        connection.execute("CREATE TABLE notes (id int PRIMARY KEY, note text)")
        connection.execute("CREATE PUBLICATION shop_pub FOR TABLE orders, customers, notes")
    monkeypatch.setenv("ETL_TEST_SOURCE", database.dsn)  # it holds a password, and so is refused as text
    return PostgresReplicationResource(
        name=f"shop_{database.name[-6:]}",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        publication="shop_pub",
        tables=["public.orders", "public.customers", "public.notes"],
        batch_max_age="200ms",
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )


_NO_COPY = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


@pytest.fixture(scope="session", autouse=True)
def _migrations_read_once() -> Iterator[None]:
    """Alembic's scripts, which Dagster reads twice for the SQLite file of each run: a quarter of a short run's time."""
    read: dict[str | None, ScriptDirectory] = {}
    from_config = ScriptDirectory.from_config

    def kept(config: Config) -> ScriptDirectory:
        if config.config_file_name not in read:
            read[config.config_file_name] = from_config(config)
        return read[config.config_file_name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", kept)
        yield


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Dagster instance that was never used. To make its SQLite files takes five times their copying."""
    home = tmp_path_factory.mktemp("dagster") / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides=_NO_COPY):
        return home


@pytest.fixture
def instance(new_home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of its own, in SQLite files.

    It keeps no copy of stdout: Dagster makes one by turning the process's descriptors about, which two runs in threads
    of one process do to each other; and it costs four processes a step.
    """
    home = tmp_path / "dagster_home"
    shutil.copytree(new_home, home)
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(dg.DagsterInstance.local_temp(str(home), overrides=_NO_COPY))
