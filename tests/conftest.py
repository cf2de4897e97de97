"""Fixtures every suite shares: one real PostgreSQL for the session, a new database for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from etl_core.errors import ConfigError
from etl_core.testing.postgres import Database, Postgres, create_database, postgres_from_environment


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
