"""From PostgreSQL into Iceberg: killed where the catalog has it and nobody knows, and read by other engines."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import duckdb
import pytest
from pyiceberg.catalog import load_catalog

from etl_core.config import DestinationConfig
from etl_core.destination.duckdb_sql.extensions import load_extensions
from etl_core.destination.iceberg.catalog import Access
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from etl_core.testing.servers.seaweedfs import SeaweedFS
from tests.integration.replication.conftest import Lab, lab

__all__ = ["lab"]
pytestmark = pytest.mark.timeout(900)
PATIENCE = 300.0
REMOVAL = """
UPDATE lines SET n = 7 WHERE ctid = (SELECT min(ctid) FROM lines WHERE n IS NULL);
DELETE FROM lines WHERE ctid IN (SELECT ctid FROM lines WHERE n > 0 ORDER BY n, ctid LIMIT 2)
"""


@pytest.fixture
def access(lab: Lab, seaweedfs: SeaweedFS) -> Access:
    """The lab's pipeline writes there."""
    access = seaweedfs.access()
    given = {name: value for name, value in asdict(access).items() if value is not None}
    options = {**given, "staging": str(lab.path.with_name("staging"))}
    lab.config = replace(lab.config, destination=DestinationConfig("iceberg", options))
    return access


def _assert_same(lab: Lab, access: Access, *tables: str) -> None:
    pipeline = lab.caught_up(lab.pipeline())
    others = {s.name.name: s.error for s in pipeline.store.tables() if s.state is not TableState.READY}
    assert not others
    assert not [comparison for comparison in pipeline.verify() if not comparison.is_equal]
    for table in tables:
        there = Counter(lab.execute(f"SELECT id, body FROM {table}"))  # noqa: S608
        assert _by_pyiceberg(access, table) == there
        assert _by_duckdb(access, table) == there


def _by_pyiceberg(access: Access, table: str) -> Counter[tuple[Any, ...]]:
    tokens = {"credential": access.credential, "oauth2-server-uri": f"{access.uri}/v1/oauth/tokens"}
    storage = {"s3.endpoint": access.s3_endpoint, "s3.region": access.s3_region}
    keys = {"s3.access-key-id": access.s3_access_key, "s3.secret-access-key": access.s3_secret_key}
    catalog = load_catalog("lake", type="rest", uri=access.uri, warehouse=access.warehouse, **tokens, **storage, **keys)
    rows = catalog.load_table(("public", table)).scan(selected_fields=("id", "body")).to_arrow()
    return Counter(zip(rows["id"].to_pylist(), rows["body"].to_pylist(), strict=True))


def _by_duckdb(access: Access, table: str) -> Counter[tuple[Any, ...]]:
    """As the page of the destination says."""
    user, _, secret = str(access.credential).partition(":")
    with duckdb.connect() as connection:
        load_extensions(connection, "httpfs", "avro", "iceberg")
        connection.execute(
            "CREATE SECRET (TYPE s3, KEY_ID 'ak', SECRET 'secretkey', REGION 'us-east-1', URL_STYLE 'path',"
            f" USE_SSL false, ENDPOINT '{str(access.s3_endpoint).removeprefix('http://')}')"
        )
        connection.execute(
            f"ATTACH '{access.warehouse}' AS shop (TYPE iceberg, ENDPOINT '{access.uri}', CLIENT_ID '{user}',"
            f" CLIENT_SECRET '{secret}', OAUTH2_SERVER_URI '{access.uri}/v1/oauth/tokens')"
        )
        return Counter(connection.execute(f"SELECT id, body FROM shop.public.{table}").fetchall())  # noqa: S608


def test_killed_where_the_catalog_has_it_and_nobody_knows(lab: Lab, access: Access) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, body text, big text)")
    lab.execute("ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE b (id int PRIMARY KEY, body text)")
    lab.execute("INSERT INTO a SELECT i, 'a', repeat('x', 9000) FROM generate_series(1, 50) i")
    lab.execute("INSERT INTO b SELECT i, 'b' FROM generate_series(1, 50) i")
    lab.execute("CREATE TABLE lines (n int, body text); ALTER TABLE lines REPLICA IDENTITY FULL")
    lab.execute("INSERT INTO lines SELECT nullif(i % 3, 0), 'equal' FROM generate_series(1, 9) i")
    lab.publish()
    for failpoint in (failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED):
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.pipeline().sync()
    _assert_same(lab, access, "a", "b")
    for at in range(2):
        lab.execute(f"UPDATE a SET body = 'a{at}' WHERE id % 7 = {at}; DELETE FROM b WHERE id % 11 = {at}")  # noqa: S608
        lab.execute(f"{REMOVAL}; INSERT INTO lines VALUES ({at}, NULL), ({at}, NULL)")  # noqa: S608
        lab.execute(f"INSERT INTO b VALUES ({1000 + at}, 'new'); UPDATE a SET id = id + 500 WHERE id = {10 + at}")  # noqa: S608
        killed = lab.process("run", failpoint=f"{failpoints.BATCH_WRITTEN}:kill")
        assert killed.wait(PATIENCE) == -signal.SIGKILL
    lab.execute("ALTER TABLE b ADD COLUMN more numeric(10,2) DEFAULT 1.5; ALTER TABLE a RENAME COLUMN big TO large")
    lab.execute("INSERT INTO b VALUES (2000, 'more', 2.5); UPDATE a SET body = 'z' WHERE id = 1; TRUNCATE b")
    lab.execute("INSERT INTO b VALUES (2001, 'after', 3.5)")
    _assert_same(lab, access, "a", "b")
    lab.pipeline().sync()
    lab.execute("UPDATE b SET more = 4.5")
    _assert_same(lab, access, "a", "b")
