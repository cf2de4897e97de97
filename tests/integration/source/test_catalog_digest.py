"""The digest of the source's catalog: another one after what a person changes, the same after what goes on alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from etl_core.source.catalog_digest import catalog_digest
from etl_core.source.connection import Connection, connect
from etl_core.testing.postgres import Database


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    database.execute("CREATE TABLE a (id int NOT NULL, n int); CREATE TABLE b (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR TABLE a")
    with closing(connect(database.dsn, pipeline="digest", role="test")) as opened:
        yield opened


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO a SELECT i, i FROM generate_series(1, 1000) i",
        "VACUUM a",
        "ANALYZE",
        "CHECKPOINT",
        "CREATE TEMP TABLE t (id int)",
    ],
)
def test_what_goes_on_by_itself_changes_nothing(database: Database, connection: Connection, statement: str) -> None:
    before = catalog_digest(connection, "p", "s")
    database.execute(statement)
    assert catalog_digest(connection, "p", "s") == before


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE a ADD COLUMN x int",
        "ALTER TABLE a ALTER COLUMN n TYPE bigint",
        "ALTER TABLE a ADD PRIMARY KEY (id)",
        "CREATE UNIQUE INDEX ON a (id)",
        "ALTER TABLE a REPLICA IDENTITY FULL",
        "ALTER TABLE a RENAME TO c",
        "DROP TABLE b",
        "CREATE TABLE c (id int)",
        "ALTER PUBLICATION p ADD TABLE b",
        "ALTER PUBLICATION p SET (publish = 'insert')",
        "DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE a",
        "GRANT SELECT ON a TO PUBLIC",
        "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
    ],
)
def test_what_a_person_changes_is_seen(database: Database, connection: Connection, statement: str) -> None:
    before = catalog_digest(connection, "p", "s")
    try:
        database.execute(statement)
        assert catalog_digest(connection, "p", "s") != before
    finally:
        database.execute("SELECT pg_drop_replication_slot('s') FROM pg_replication_slots WHERE slot_name = 's'")
