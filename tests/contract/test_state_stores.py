"""The behaviour suite of state stores, over SQLite and PostgreSQL."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from etl_core.state.sql_store import open_store
from etl_core.testing.database import Database
from etl_core.testing.state_suite import OpenStore, StateStoreSuite


class TestSqlite(StateStoreSuite):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return partial(open_store, f"sqlite:///{tmp_path / 'state.db'}")


class TestPostgresql(StateStoreSuite):
    @pytest.fixture
    def open_store(self, database: Database) -> OpenStore:
        return partial(open_store, database.dsn)
