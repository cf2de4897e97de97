"""Fixtures every suite shares: one real PostgreSQL for the session, a new database for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl_core.testing.postgres import Database, PostgresServer, create_database, temporary_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test session, chosen by ETL_PG_SOURCE and ETL_PG_VERSION."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A new, empty database on the session's server."""
    database = create_database(postgres)
    yield database
    database.drop()
