"""The reading end of a slot, over each kind of connection: what has come is read without a pause."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from psycopg.conninfo import make_conninfo

from etl_core.errors import SourceUnavailable, StreamBlocked
from etl_core.lsn import Lsn
from etl_core.protocol.messages import Relation
from etl_core.protocol.segment import BEGIN, COMMIT, INSERT, Segment
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH
from etl_core.source import replication_stream
from etl_core.source.connection import connect
from etl_core.source.replication_stream import Pause, ReplicationStream
from etl_core.source.tls import read_ahead
from etl_core.testing.postgres import Database
from tests.distant_proxy import DistantProxy

OpenStream = Callable[[], ReplicationStream]


@pytest.fixture
def database(connected_database: Database) -> Database:
    return connected_database


@pytest.fixture(params=["tcp", "unix", "tls", "tls, without asking OpenSSL"])
def connection(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def connection_kind(connection: str) -> str:
    return connection[:4].rstrip(",")


@pytest.fixture
def open_stream(database: Database, connection: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenStream]:
    """A stream of the table `t`, which is described already: the first message is behind it."""
    if "without" in connection:
        monkeypatch.setattr(replication_stream, "read_ahead", lambda _: None)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, body text); CREATE PUBLICATION p FOR TABLE t")
    slot = f"reading_{database.name}"
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])

    def stream() -> ReplicationStream:
        opened = ReplicationStream(
            connect(database.dsn, pipeline="reading", role="stream", replication=True), slot, "p", Lsn(0)
        )
        database.execute("INSERT INTO t VALUES (0)")
        while not isinstance(opened.receive(Segment(), 0.05), Relation):
            pass
        # The rest of that transaction.
        received = Segment()
        while tags(received) != [INSERT, COMMIT]:
            opened.receive(received, 0.05)
        return opened

    yield stream
    database.execute(
        "SELECT pg_terminate_backend(active_pid, 60000) FROM pg_replication_slots WHERE slot_name = %s AND active",
        [slot],
    )
    database.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def tags(segment: Segment) -> list[int]:
    at, found = 0, []
    for length in segment.lengths:
        found.append(segment.data[at + XLOG_DATA_HEADER_LENGTH])
        at += length
    assert at == segment.size == len(segment.data)
    return found


def wait_until_sent(database: Database, up_to: str) -> None:
    """Until the walsender has handed everything to the kernel, which holds it for us."""
    while database.execute(
        "SELECT FROM pg_stat_replication WHERE application_name = 'etl_reading_stream' AND sent_lsn < %s", [up_to]
    ):
        pass


def commit(database: Database, statement: str) -> str:
    database.execute(statement)
    [(position,)] = database.execute("SELECT pg_current_wal_lsn()::text")
    return str(position)


def test_openssl_is_asked_where_there_is_tls(database: Database, connection_kind: str) -> None:
    with connect(database.dsn, pipeline="reading", role="stream") as connection:
        assert (read_ahead(connection) is not None) == (connection_kind == "tls")


def test_what_has_come_is_read_at_once(
    open_stream: OpenStream, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS libpq reads a record, that is a message, at a time: a pause before each is five ms a row."""
    with open_stream() as stream:
        sent = commit(database, "INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 400) i")
        wait_until_sent(database, sent)
        waits: list[float] = []
        wait = stream._wait

        def waiting(seconds: float) -> bool:
            waits.append(seconds)
            return wait(seconds)

        monkeypatch.setattr(stream, "_wait", waiting)
        received = Segment()
        while len(received.lengths) < 402:
            # The kernel may not have all of it yet, though the server has sent it: a read that brought something is
            # followed by another one, and a pause comes only where one has brought nothing.
            before = len(received.lengths)
            assert stream.receive(received, 0.05) is Pause.READ
            assert len(received.lengths) > before
        assert tags(received) == [BEGIN, *[INSERT] * 400, COMMIT]
        assert len(waits) < 40


@pytest.mark.parametrize("size", [9_000, 16_384, 100_000, 3_000_000])
def test_values_larger_than_a_record_are_read_whole(open_stream: OpenStream, database: Database, size: int) -> None:
    """Nothing comes behind them, so what libpq or OpenSSL has left is found without the socket's help."""
    with open_stream() as stream:
        for number in range(1, 6):
            commit(database, f"INSERT INTO t SELECT {number}, repeat('x', {size + number})")
            received = Segment()
            while tags(received)[-1:] != [COMMIT]:
                # A long wait: were something left unread, it would not end.
                assert stream.receive(received, 600.0) is Pause.READ
            assert tags(received) == [BEGIN, INSERT, COMMIT]
            assert received.lengths[1] > size


@pytest.mark.parametrize("connection", ["tcp", "tls", "tls, without asking OpenSSL"], indirect=True)
def test_somebody_looks_around_while_a_large_value_comes(open_stream: OpenStream, database: Database) -> None:
    """A status must be sent meanwhile, and a stop be heard."""
    with open_stream() as stream, DistantProxy(stream.connection.info.port, piece=lambda: 4096, delay=0.0) as line:
        stream.close()
        distant = make_conninfo(database.dsn, host="127.0.0.1", port=line.port)
        with ReplicationStream(
            connect(distant, pipeline="reading", role="stream", replication=True),
            f"reading_{database.name}",
            "p",
            Lsn(0),
        ) as slow:
            database.execute("INSERT INTO t SELECT 1, repeat('x', 40000000)")
            received, looked_around = Segment(), 0  # the row of `open_stream` comes again
            while tags(received).count(COMMIT) < 2:
                before = received.size
                looked_around += slow.receive(received, 600.0) is Pause.READ and received.size == before
            assert looked_around


def test_a_server_that_ends_the_connection(open_stream: OpenStream, database: Database) -> None:
    with open_stream() as stream:
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'etl_reading_stream'"
        )
        received = Segment()
        with pytest.raises(SourceUnavailable, match="the connection to PostgreSQL was lost"):
            stream.receive(received, 600.0)
        assert received.is_empty


def test_a_connection_that_was_cut_is_found_so_again(open_stream: OpenStream, database: Database) -> None:
    """libpq has freed what OpenSSL had of it, for others to take: whoever reads on must not meet that."""
    with open_stream() as stream:
        stream.cut()
        for _ in range(10):
            with (
                pytest.raises(SourceUnavailable, match="the connection to PostgreSQL was lost"),
                connect(database.dsn, pipeline="reading", role="other"),
            ):
                stream.receive(Segment(), 600.0)


def test_an_error_of_the_server_that_keeps_the_connection(open_stream: OpenStream, database: Database) -> None:
    """What follows it lies in OpenSSL, or is shorter than the low-water mark: the socket says nothing of it."""
    if database.server.version_num < 150000:
        pytest.skip("row filters came with PostgreSQL 15")
    with open_stream() as stream:
        database.execute("ALTER PUBLICATION p SET TABLE t WHERE (10 / id > 0)")
        database.execute("UPDATE t SET body = 'x' WHERE id = 0")
        with pytest.raises(StreamBlocked, match="division by zero"):
            read_on(stream)


def read_on(stream: ReplicationStream) -> None:
    while True:
        stream.receive(Segment(), 600.0)
