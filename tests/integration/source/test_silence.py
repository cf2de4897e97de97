"""Connections through a hop that falls silent while TCP stays up: each kind is given up, none that works for us is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_core.errors import SlotInUse, SourceUnavailable
from etl_core.lsn import Lsn
from etl_core.protocol.segment import Segment
from etl_core.silence import SILENCE
from etl_core.source.connection import Connection, connect
from etl_core.source.copy_blocks import copy_blocks
from etl_core.source.replication_stream import Pause, ReplicationStream
from etl_core.source.server import current_lsn
from etl_core.source.slot import create_slot
from etl_core.testing.database import Database
from tests.silent_proxy import SilentProxy

LIMIT = 0.4
GIVEN_UP = r"given up: nothing was heard from the server for 0\.4 s"
PATIENCE = 120.0


@pytest.fixture
def proxy(database: Database) -> Iterator[SilentProxy]:
    with SilentProxy(int(str(conninfo_to_dict(database.dsn)["port"]))) as proxy:
        yield proxy


@pytest.fixture
def through(database: Database, proxy: SilentProxy) -> Iterator[Callable[..., Connection]]:
    """Opens a connection through the hop."""
    opened: list[Connection] = []
    dsn = make_conninfo(database.dsn, host="127.0.0.1", port=proxy.port)

    def open_one(*, replication: bool = False) -> Connection:
        opened.append(connect(dsn, pipeline="shop", role="test", replication=replication))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


def asked(connection: Connection) -> threading.Event:
    """Set when the server has been asked, about once a second, what it does for the connection."""
    happened, is_working = threading.Event(), connection.is_working
    assert is_working is not None

    def noted() -> bool:
        answer = is_working()
        happened.set()
        return answer

    connection.silence, connection.is_working = 1.0, noted
    return happened


def test_a_query(through: Callable[..., Connection], proxy: SilentProxy) -> None:
    conn = through()
    current_lsn(conn)
    proxy.fall_silent()
    conn.silence = LIMIT
    with pytest.raises(SourceUnavailable, match=GIVEN_UP) as given_up:
        current_lsn(conn)
    assert conn.closed
    assert "tunnel" in (given_up.value.hint or "")


def test_a_query_with_no_way_to_the_server_left(through: Callable[..., Connection], proxy: SilentProxy) -> None:
    conn = through()
    proxy.fall_silent(refuse_new=True)
    conn.silence = LIMIT
    with pytest.raises(SourceUnavailable, match=f"{GIVEN_UP}, and no new connection"):
        current_lsn(conn)


def test_a_long_statement_is_waited_for(through: Callable[..., Connection], database: Database) -> None:
    conn = through()
    was_asked = asked(conn)
    with psycopg.connect(database.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(1)")

        def release() -> None:
            was_asked.wait(PATIENCE)
            other.commit()

        releasing = threading.Thread(target=release)
        releasing.start()
        assert conn.execute("SELECT 1 FROM pg_advisory_xact_lock(1)").fetchone() == (1,)
        releasing.join()


def test_the_creation_of_a_slot_may_wait_for_hours(through: Callable[..., Connection], database: Database) -> None:
    walsender = through(replication=True)
    was_asked = asked(walsender)
    with psycopg.connect(database.dsn) as writer:
        writer.execute("CREATE TABLE t ()")

        def commit() -> None:
            was_asked.wait(PATIENCE)
            writer.commit()

        committing = threading.Thread(target=commit)
        committing.start()
        created = create_slot(walsender, "waits", export_snapshot=False, temporary=True)
        committing.join()
    assert created.name == "waits"


def test_the_creation_of_a_slot(through: Callable[..., Connection], proxy: SilentProxy) -> None:
    walsender = through(replication=True)
    proxy.fall_silent()
    walsender.silence = LIMIT
    with pytest.raises(SourceUnavailable, match=GIVEN_UP):
        create_slot(walsender, "never", export_snapshot=True, temporary=True)
    assert walsender.closed


def test_a_copy(through: Callable[..., Connection], proxy: SilentProxy) -> None:
    conn = through()
    # More than the buffers between hold, so that the server is not done when the first block is there.
    statement = b"COPY (SELECT repeat('x', 1000) FROM generate_series(1, 200000)) TO STDOUT (FORMAT csv)"
    conn.silence = 2.0
    blocks = copy_blocks(conn, statement, threading.Event())
    assert next(blocks)
    proxy.fall_silent()
    with pytest.raises(SourceUnavailable, match="nothing was heard from the server for 2 s"):
        for _ in blocks:
            pass
    assert conn.closed


def test_a_copy_that_finds_no_row_for_long(through: Callable[..., Connection], database: Database) -> None:
    conn = through()
    was_asked = asked(conn)
    with psycopg.connect(database.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(2)")

        def release() -> None:
            was_asked.wait(PATIENCE)
            other.commit()

        releasing = threading.Thread(target=release)
        releasing.start()
        statement = b"COPY (SELECT 7 FROM pg_advisory_xact_lock(2)) TO STDOUT (FORMAT csv)"
        assert list(copy_blocks(conn, statement, threading.Event())) == [b"7\n"]
        releasing.join()


@pytest.fixture
def open_stream(through: Callable[..., Connection], database: Database) -> Iterator[Callable[[], ReplicationStream]]:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR TABLE t")
    slot = f"silent_{database.name}"
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    yield lambda: ReplicationStream(through(replication=True), slot, "p", Lsn(0))
    database.execute(
        "SELECT pg_terminate_backend(active_pid, 60000) FROM pg_replication_slots WHERE slot_name = %s AND active",
        [slot],
    )
    database.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def receive_until_given_up(stream: ReplicationStream) -> None:
    while True:
        stream.receive(Segment(), 0.05)


def test_a_stream(open_stream: Callable[[], ReplicationStream], proxy: SilentProxy, database: Database) -> None:
    with open_stream() as stream:
        proxy.fall_silent()
        stream.connection.silence = LIMIT
        database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(SourceUnavailable, match=GIVEN_UP):
            receive_until_given_up(stream)
    for _ in range(1200):
        try:
            again = open_stream()
        except SlotInUse:  # the server ends what it did for the connection, which we asked it to, a moment later
            database.execute("SELECT pg_sleep(0.1)")
        else:
            break
    with again:
        received = Segment()
        while received.is_empty:
            again.receive(received, 0.05)


def test_a_quiet_stream_is_asked_and_stays(
    open_stream: Callable[[], ReplicationStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, clock = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed)
    with open_stream() as stream:
        for _ in range(3):
            while not stream.awaits_reply:  # a word of the server's own may come first
                passed += SILENCE / 2 + 1
                assert isinstance(stream.receive(Segment(), 0.05), Pause)
            while stream.awaits_reply:
                assert isinstance(stream.receive(Segment(), 0.05), Pause)
