"""Everything that reads the source, over TCP, over TLS with certificates on both sides, and over the unix socket."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import conninfo

from etl_core.config import BatchConfig
from etl_core.errors import TransientError
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database, PostgresServer
from tests.distant_proxy import DistantProxy
from tests.integration.replication.conftest import PATIENCE, Lab, Running

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn

MakeChurn = Callable[..., "Churn"]
MakeTables = Callable[..., None]
OVER_TCP = pytest.mark.parametrize("connection_kind", ["tcp", "tls"], indirect=True)


@pytest.fixture
def database(connected_database: Database) -> Database:
    return connected_database


def test_the_connection_is_of_its_kind(database: Database, connection_kind: str) -> None:
    with psycopg.connect(database.dsn) as connection:
        [(is_encrypted, address)] = connection.execute(
            "SELECT ssl, inet_client_addr() FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
    assert is_encrypted == (connection_kind == "tls")
    assert (address is None) == (connection_kind == "unix")


def test_the_tls_server_takes_nothing_else(tls_postgres: PostgresServer) -> None:
    for worse in ({"sslmode": "disable"}, {"sslcert": "/nonexistent"}):
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|valid client certificate"):
            psycopg.connect(tls_postgres.dsn(**worse))
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        psycopg.connect(tls_postgres.dsn(sslrootcert="system"))


def test_copy_stream_catch_up_and_verify(lab: Lab, churn: MakeChurn, churned: MakeTables) -> None:
    churned("a", "b")
    lab.publish()
    pipeline = lab.pipeline()
    staged, go_on = threading.Event(), threading.Event()

    def hold_the_copy_back() -> None:
        staged.set()
        assert go_on.wait(PATIENCE)

    with churn("a", "b"), lab.running(pipeline), failpoints.activated(failpoints.COPY_STAGED, hold_the_copy_back):
        assert staged.wait(PATIENCE)
        lab.until_stored(pipeline, pipeline.current_lsn())  # the main stream has passed the copy's snapshot
        go_on.set()
        pipeline.observer.until_ready("a", "b")
        pipeline.observer.until_flushed(pipeline.current_lsn())
    assert ("a", TableState.SYNC_DONE) in pipeline.observer.states
    lab.assert_equal(pipeline)


@pytest.mark.parametrize(
    "failpoint", [failpoints.COPY_STAGED, failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED, failpoints.CONFIRMED]
)
def test_killed_twice_at_a_boundary(lab: Lab, churn: MakeChurn, churned: MakeTables, failpoint: str) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.assert_equal(pipeline)


def test_the_server_crashes_under_the_stream(lab: Lab, churned: MakeTables, database: Database) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    for crash in (1, 2):
        pipeline = lab.pipeline()
        running = Running(pipeline, pipeline.run)
        lab.execute(f"INSERT INTO a SELECT i, {crash} FROM generate_series({crash} * 1000, {crash} * 1000 + 99) i")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        lab.execute(f"UPDATE a SET n = n + {crash}")
        database.server.crash()
        with pytest.raises(TransientError):
            running.join()
    lab.assert_equal()


def make_large_values(lab: Lab, first: int) -> None:
    """Values of 1 and 10 MB, small rows between them, updates that leave them unchanged; a transaction each."""
    for number, size in enumerate((1 << 20, 10, 10 << 20, 0, 10, (1 << 20) + 1), first):
        lab.execute(f"INSERT INTO t VALUES ({number}, 0, repeat(md5('{number}'), {size} / 32 + 1))")
    lab.execute(f"UPDATE t SET n = n + 1 WHERE id >= {first}")
    lab.execute(f"UPDATE t SET body = body || 'more' WHERE id = {first}")


def large_table(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL")
    lab.publish()


@pytest.mark.parametrize("max_bytes", [1 << 16, 64 << 20])
def test_large_values(lab: Lab, max_bytes: int) -> None:
    large_table(lab)
    make_large_values(lab, 1)
    pipeline = lab.synced(batch=BatchConfig(max_age=0.2, max_bytes=max_bytes))
    make_large_values(lab, 101)
    lab.assert_equal(pipeline)
    assert lab.rows("SELECT count(*), max(length(body)) >= 10 * 1024 * 1024 FROM public.t") == [(12, True)]


# --- a server far away ----------------------------------------------------------------------------------------------


@pytest.fixture
def far_away(database: Database, tmp_path: Path) -> Iterator[Callable[..., tuple[Lab, DistantProxy]]]:
    """A lab whose server is reached through a `DistantProxy` with these options."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> tuple[Lab, DistantProxy]:
            port = int(str(conninfo.conninfo_to_dict(database.dsn)["port"]))
            proxy = stack.enter_context(DistantProxy(port, **options))
            lab = Lab(replace(database, parameters={"port": proxy.port}), tmp_path)
            stack.callback(lab.close)
            return lab, proxy

        yield make


@OVER_TCP
def test_a_line_of_seven_bytes_at_a_time(far_away: Callable[..., tuple[Lab, DistantProxy]]) -> None:
    lab, proxy = far_away(piece=lambda: 7)
    lab.execute(
        "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT i, 'n' FROM generate_series(1, 50) i"
    )
    lab.publish()
    pipeline = lab.synced(batch=BatchConfig(max_age=60))  # what is confirmed meanwhile is not to be counted
    lab.execute("DO $$ BEGIN FOR i IN 100..399 LOOP INSERT INTO t VALUES (i, 'note ' || i); COMMIT; END LOOP; END $$")
    lab.execute("UPDATE t SET note = 'other' WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0")
    asked = proxy.requests
    pipeline.stream(until=pipeline.current_lsn())
    assert proxy.requests - asked < 300, "a transaction must not cost a way there and back"
    lab.assert_equal(pipeline)


@OVER_TCP
def test_frames_cut_anywhere_with_keepalives_between(
    far_away: Callable[..., tuple[Lab, DistantProxy]], connection_kind: str
) -> None:
    draw = random.Random(11)
    lab, proxy = far_away(piece=lambda: draw.choice((1, 3, 25, 1000, 8191, 8192, 16408, 70000)), delay=0.0)
    large_table(lab)
    pipeline = lab.synced()
    with lab.running(pipeline):
        for first in (1, 101):
            before = proxy.keepalives
            make_large_values(lab, first)
            # A walsender that has sent all there is says so until it is confirmed. TLS hides it from us.
            if connection_kind == "tcp":
                proxy.wait_for_keepalives(before + 1, PATIENCE)
        pipeline.observer.until_flushed(pipeline.current_lsn())
    lab.assert_equal(pipeline)
