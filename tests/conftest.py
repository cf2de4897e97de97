"""Fixtures every suite shares: one real PostgreSQL for the session, a new database for each test; BigQuery likewise."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from etl_core.errors import ConfigError
from etl_core.testing.postgres import (
    Database,
    Postgres,
    PostgresServer,
    create_database,
    find_tls_binaries,
    postgres_from_environment,
    temporary_postgres,
)
from etl_core.testing.servers.bigquery_emulator import BigQueryEmulator, running_emulator
from tests.own_package import install

# Some environments forbid Python to keep what it has compiled. The tests start hundreds of processes, and each would
# compile all that it imports: more than half of the CPU time of an `etl` process.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Temporary files are in memory, where there is room: a test with Dagster waits for a disk 340 times, and a new database
# takes PostgreSQL five times the CPU time there. A process that is killed loses nothing that it has written to a file,
# in memory or not; what a machine that dies would lose, no test can show.
_MEMORY, _ROOM = Path("/dev/shm"), 8 << 30  # noqa: S108 - what is made there is for this user only
if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and psutil.virtual_memory().available > _ROOM:
    _found = os.statvfs(_MEMORY)
    if _found.f_bavail * _found.f_frsize > _ROOM and not _found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

# How long an example takes says something of the machine only: another process next to the tests must not fail one.
settings.register_profile("ci", deadline=None)
settings.register_profile("dev", deadline=None, max_examples=20)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("ETL_HYPOTHESIS", "ci"))


@pytest.fixture(scope="session")
def own_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that packages with a destination of their own, `type: mine` and `type: sqlite`, are installed into."""
    target = tmp_path_factory.mktemp("own_package") / "installed"
    install(target)
    return target


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL server of this test session, chosen by ETL_PG_SOURCE and ETL_PG_VERSION."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_from_environment())
        except ConfigError as error:
            pytest.exit(f"{error}; {error.hint}", returncode=2)  # once, instead of once for each test
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """A new, empty database on the session's server."""
    postgres.start()  # a test that failed may have left it stopped
    database = create_database(postgres)
    yield database
    postgres.start()
    database.drop()


@pytest.fixture(scope="session")
def tls_postgres() -> Iterator[PostgresServer]:
    """A server that takes nothing but TLS over TCP, from clients with a certificate of its authority."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(temporary_postgres(find_tls_binaries(), tls="required"))
        except ConfigError as error:
            pytest.skip(f"no PostgreSQL with TLS to test on: {error}; {error.hint}")
        yield server


@pytest.fixture(params=["tcp", "tls", "unix"])
def connection_kind(request: pytest.FixtureRequest) -> str:
    """How a test's database is connected to: each kind in turn."""
    kind: str = request.param
    return kind


@pytest.fixture
def connected_database(connection_kind: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A new database whose `dsn` is of `connection_kind`: a module that names it `database` runs over each kind."""
    server: Postgres = request.getfixturevalue("tls_postgres" if connection_kind == "tls" else "postgres")
    server.start()
    database = create_database(server)
    if connection_kind == "unix":
        if not isinstance(server, PostgresServer):
            pytest.skip("the unix socket of a container is not on this machine")
        database = replace(database, parameters={"host": str(server.socket_dir)})
    yield database
    server.start()
    database.drop()


@pytest.fixture(scope="session")
def bigquery_emulator() -> Iterator[BigQueryEmulator | None]:
    """None when the tests run on BigQuery itself."""
    if os.environ.get("ETL_BIGQUERY_PROJECT"):
        yield None
        return
    try:
        with running_emulator() as emulator:
            yield emulator
    except ConfigError as error:
        pytest.skip(f"no BigQuery to test on: {error}")


@pytest.fixture
def bigquery_options(bigquery_emulator: BigQueryEmulator | None) -> Iterator[dict[str, str]]:
    """Of a destination in datasets of this test alone, which are gone afterwards: the emulator slows down with each."""
    mark = f"t{secrets.token_hex(4)}"
    if bigquery_emulator is None:
        options = {"project": os.environ["ETL_BIGQUERY_PROJECT"], "dataset": f"{mark}_{{namespace}}"}
    else:
        options = bigquery_emulator.options(f"{mark}_{{namespace}}")
    yield options
    from etl_core.destination.bigquery.connection import Clients
    from etl_core.destination.bigquery.options import parse_options

    with closing(Clients(parse_options(options))) as clients:
        for dataset in clients.rest().list_datasets():
            if mark in dataset.dataset_id:
                clients.rest().delete_dataset(dataset, delete_contents=True, not_found_ok=True)
