"""The embedded PostgreSQL: what tests and the demo rely on."""

from __future__ import annotations

import signal

import pytest

from etl_core.testing.postgres import Database, PostgresServer


def test_has_what_logical_replication_needs(database: Database) -> None:
    assert database.execute("SHOW wal_level") == [("logical",)]
    assert database.execute("SELECT current_database()") == [(database.name,)]


@pytest.mark.parametrize("end", [signal.SIGQUIT, signal.SIGKILL])
def test_data_survives_a_crash(postgres: PostgresServer, database: Database, end: signal.Signals) -> None:
    database.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    port = postgres.port
    postgres.crash(end)
    assert database.execute("TABLE t") == [(1,)]
    assert postgres.port == port


def test_data_survives_a_restart(postgres: PostgresServer, database: Database) -> None:
    database.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    postgres.restart()
    assert database.execute("TABLE t") == [(1,)]
