"""pgoutput as a real server sends it, protocol versions 1 to 4: parsed exactly, and rebuilt to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import psycopg
import pytest
from psycopg import pq, sql

from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import (
    UNCHANGED,
    Begin,
    BeginPrepare,
    ColumnKind,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    LogicalDecodingMessage,
    Message,
    Origin,
    Prepare,
    Relation,
    RelationColumn,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    TupleColumn,
    TupleData,
    Type,
    Update,
)
from etl_core.protocol.pgoutput import parse_message
from etl_core.protocol.timestamp import from_datetime, to_datetime
from etl_core.protocol.walsender import PrimaryKeepalive, StandbyStatusUpdate, XLogData, parse_walsender_message
from etl_core.schema.table import ReplicaIdentity
from etl_core.testing.database import Database
from etl_core.testing.pgoutput import build_message, build_primary_keepalive, build_tuple, build_xlog_data

Kind = TypeVar("Kind")
INT4, TEXT = 23, 25
XID = "SELECT pg_current_xact_id()::text::bigint % (1::bigint << 32)"
ROWS = 4000
"""More than fit into a logical_decoding_work_mem of 64 kB."""


class Stream:
    """A replication connection with a temporary slot of its own; what it sends is parsed as it comes."""

    def __init__(self, connection: psycopg.Connection, version: int) -> None:
        self.pgconn = connection.pgconn
        self.version = version
        self.in_stream = False

    def read_until(self, end: Callable[[Message], bool]) -> list[Message]:
        """The messages up to and including the first for which `end` holds."""
        messages = [self.next()]
        while not end(messages[-1]):
            messages.append(self.next())
        return messages

    def next(self) -> Message:
        while isinstance(envelope := self.envelope(), PrimaryKeepalive):
            pass
        message = parse_message(envelope.data, protocol_version=self.version, in_stream=self.in_stream)
        assert build_message(message) == envelope.data
        self.in_stream = isinstance(message, StreamStart) or (self.in_stream and not isinstance(message, StreamStop))
        return message

    def envelope(self) -> XLogData | PrimaryKeepalive:
        length, data = self.pgconn.get_copy_data(0)
        assert length > 0
        parsed = parse_walsender_message(data)
        assert bytes(data) == (
            build_xlog_data(parsed.data, wal_start=parsed.wal_start, wal_end=parsed.wal_end, send_time=parsed.send_time)
            if isinstance(parsed, XLogData)
            else build_primary_keepalive(
                parsed.wal_end, send_time=parsed.send_time, reply_requested=parsed.reply_requested
            )
        )
        return parsed

    def send(self, update: StandbyStatusUpdate) -> None:
        self.pgconn.put_copy_data(update.to_bytes())
        assert self.pgconn.flush() == 0


@contextmanager
def streaming(database: Database, version: int, *, two_phase: bool = False, **options: str) -> Iterator[Stream]:
    """Streams publication `p` from now on."""
    needed = 150000 if two_phase or version == 3 else 160000 if version == 4 else 140000
    if database.server.version_num < needed:
        pytest.skip(f"needs PostgreSQL {needed // 10000}")
    # 64kB: the least there is, so that a transaction of some thousand rows is streamed.
    connection = psycopg.connect(
        database.dsn, autocommit=True, replication="database", options="-c logical_decoding_work_mem=64kB"
    )
    with connection:
        connection.execute(
            sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput', true, {})").format(
                database.name, two_phase
            )
        )
        options = {"proto_version": str(version), "publication_names": "p", "messages": "true", **options}
        if two_phase:
            options["two_phase"] = "on"
        listed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options.items()
        )
        start = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(sql.Identifier(database.name), listed)
        result = connection.pgconn.exec_(start.as_string(connection).encode())
        assert result.status == pq.ExecStatus.COPY_BOTH, result.error_message
        try:
            yield Stream(connection, version)
        finally:
            connection.pgconn.finish()


def mark_end(database: Database) -> None:
    """Ends the stream with a message that stands in no transaction.

    The transaction has an id and has written, so that its commit makes all WAL before it durable and sent.
    """
    database.execute("SELECT pg_current_xact_id(), pg_logical_emit_message(false, 'end', 'now')")


def is_end(message: Message) -> bool:
    return isinstance(message, LogicalDecodingMessage) and message.prefix == "end"


def table_id(database: Database, name: str) -> TableId:
    return TableId(database.execute("SELECT %s::regclass::oid", [name])[0][0])


def create_numbers(database: Database) -> None:
    database.execute("CREATE TABLE numbers (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE numbers")


def is_a(kind: type[Message]) -> Callable[[Message], bool]:
    return lambda message: isinstance(message, kind)


def of_kind(messages: list[Message], *kinds: type[Kind]) -> list[Kind]:
    return [message for message in messages if isinstance(message, kinds)]


def test_every_message_of_a_plain_transaction(database: Database) -> None:
    database.execute("""
        CREATE SCHEMA "My Schema";
        CREATE TYPE mood AS ENUM ('ok', 'größer');
        CREATE TABLE "My Schema"."Orders" (id int PRIMARY KEY, note text, mood mood, price numeric(10, 2));
        ALTER TABLE "My Schema"."Orders" ALTER note SET STORAGE EXTERNAL;
        CREATE TABLE full_rows (a int, b text);
        ALTER TABLE full_rows REPLICA IDENTITY FULL;
        CREATE PUBLICATION p FOR ALL TABLES
    """)
    orders, full_rows = table_id(database, '"My Schema"."Orders"'), table_id(database, "full_rows")
    [(mood,)] = database.execute("SELECT 'mood'::regtype::oid")
    long_note = "n" * 5000
    before = datetime.now(UTC) - timedelta(seconds=1)

    with streaming(database, version=1) as stream:
        [(xid, _)] = database.execute("""
            INSERT INTO "My Schema"."Orders" VALUES (1, repeat('n', 5000), NULL, 12.50);
            UPDATE "My Schema"."Orders" SET mood = 'größer';
            UPDATE "My Schema"."Orders" SET id = 2;
            DELETE FROM "My Schema"."Orders";
            INSERT INTO full_rows VALUES (7, '');
            UPDATE full_rows SET b = NULL;
            DELETE FROM full_rows;
            TRUNCATE "My Schema"."Orders", full_rows RESTART IDENTITY CASCADE;
            SELECT pg_current_xact_id()::text::bigint, pg_logical_emit_message(true, 'inside', '\\x00ff'::bytea)
        """)
        mark_end(database)
        begin, *messages, commit, end = stream.read_until(is_end)

    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert isinstance(end, LogicalDecodingMessage)
    assert ZERO < begin.final_lsn == commit.commit_lsn < commit.end_lsn
    assert begin.xid == xid % 2**32
    assert begin.commit_time == commit.commit_time
    assert before < to_datetime(begin.commit_time) < datetime.now(UTC) + timedelta(seconds=1)
    emitted = messages.pop()
    assert isinstance(emitted, LogicalDecodingMessage)
    assert (emitted.transactional, emitted.prefix, emitted.content) == (True, "inside", b"\x00\xff")
    assert (end.transactional, end.prefix, end.content) == (False, "end", b"now")
    assert begin.final_lsn >= emitted.lsn > ZERO
    assert end.lsn > commit.commit_lsn
    # TRUNCATE changes the relation's files, for which the server describes it again.
    *described_again, truncate = messages[10:]
    assert truncate == Truncate(None, True, True, (orders, full_rows))
    assert all(message in (messages[0], messages[1], messages[6]) for message in described_again)
    assert messages[:10] == [
        Type(None, mood, "public", "mood"),
        Relation(
            None,
            orders,
            "My Schema",
            "Orders",
            ReplicaIdentity.DEFAULT,
            (
                RelationColumn(True, "id", INT4, -1),
                RelationColumn(False, "note", TEXT, -1),
                RelationColumn(False, "mood", mood, -1),
                RelationColumn(False, "price", 1700, (10 << 16 | 2) + 4),
            ),
        ),
        Insert(None, orders, build_tuple("1", long_note, None, "12.50")),
        Update(None, orders, None, None, build_tuple("1", UNCHANGED, "größer", "12.50")),
        Update(None, orders, build_tuple("1", None, None, None), None, build_tuple("2", UNCHANGED, "größer", "12.50")),
        Delete(None, orders, build_tuple("2", None, None, None), None),
        Relation(
            None,
            full_rows,
            "public",
            "full_rows",
            ReplicaIdentity.FULL,
            (RelationColumn(True, "a", INT4, -1), RelationColumn(True, "b", TEXT, -1)),
        ),
        Insert(None, full_rows, build_tuple("7", "")),
        Update(None, full_rows, None, build_tuple("7", ""), build_tuple("7", None)),
        Delete(None, full_rows, None, build_tuple("7", None)),
    ]


def test_binary_values_and_origins(database: Database) -> None:
    create_numbers(database)
    origin = database.name
    database.execute("SELECT pg_replication_origin_create(%s)", [origin])
    try:
        with streaming(database, version=1, binary="true") as stream:
            with psycopg.connect(database.dsn) as session:
                session.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
                session.execute("SELECT pg_replication_origin_xact_setup('0/ABC', now())")
                session.execute("INSERT INTO numbers VALUES (258)")
            mark_end(database)
            messages = stream.read_until(is_end)
    finally:
        database.execute("SELECT pg_replication_origin_drop(%s)", [origin])

    numbers = table_id(database, "numbers")
    assert of_kind(messages, Origin) == [Origin(Lsn(0xABC), origin)]
    value = TupleColumn(ColumnKind.BINARY, b"\x00\x00\x01\x02")
    assert of_kind(messages, Insert) == [Insert(None, numbers, TupleData((value,)))]


@pytest.mark.parametrize(("version", "mode"), [(2, "on"), (3, "on"), (4, "on"), (4, "parallel")])
def test_a_streamed_transaction(database: Database, version: int, mode: str) -> None:
    create_numbers(database)
    numbers = table_id(database, "numbers")
    with streaming(database, version, streaming=mode) as stream, psycopg.connect(database.dsn) as session:
        session.execute("INSERT INTO numbers SELECT generate_series(1, %s)", [ROWS])
        [(xid,)] = session.execute(XID).fetchall()
        mark_end(database)
        first = stream.read_until(is_a(StreamStop))
        session.execute("SAVEPOINT s")
        session.execute("INSERT INTO numbers SELECT -generate_series(1, %s)", [ROWS])
        mark_end(database)
        second = stream.read_until(lambda message: isinstance(message, Insert) and message.new == build_tuple("-9"))
        session.execute("ROLLBACK TO s; RELEASE s")
        session.execute("TRUNCATE numbers")
        session.commit()
        rest = stream.read_until(is_a(StreamCommit))

    assert first[0] == StreamStart(xid, True)
    assert first[1] == Relation(
        xid, numbers, "public", "numbers", ReplicaIdentity.DEFAULT, (RelationColumn(True, "id", INT4, -1),)
    )
    inserts = of_kind(first, Insert)
    assert inserts == [Insert(xid, numbers, build_tuple(str(i))) for i in range(1, len(inserts) + 1)]
    assert StreamStart(xid, False) in second
    subxids = {message.xid for message in of_kind(second, Insert)} - {xid}
    [subxid] = subxids
    [abort] = of_kind(rest, StreamAbort)
    assert (abort.xid, abort.subxid) == (xid, subxid)
    if mode == "parallel":
        assert abort.abort_lsn is not None
        assert abort.abort_time is not None
        assert abort.abort_lsn > ZERO
        assert abs(to_datetime(abort.abort_time) - datetime.now(UTC)) < timedelta(minutes=1)
    else:
        assert (abort.abort_lsn, abort.abort_time) == (None, None)
    assert of_kind(rest, Truncate) == [Truncate(xid, False, False, (numbers,))]
    commit = rest[-1]
    assert isinstance(commit, StreamCommit)
    assert commit.xid == xid
    assert ZERO < commit.commit_lsn < commit.end_lsn


def test_a_streamed_transaction_that_never_happened(database: Database) -> None:
    create_numbers(database)
    with streaming(database, version=2, streaming="on") as stream, psycopg.connect(database.dsn) as session:
        session.execute("INSERT INTO numbers SELECT generate_series(1, %s)", [ROWS])
        mark_end(database)
        start, *_ = stream.read_until(is_a(StreamStop))
        session.rollback()
        mark_end(database)
        *_, abort = stream.read_until(is_a(StreamAbort))
    assert isinstance(start, StreamStart)
    assert abort == StreamAbort(start.xid, start.xid, None, None)


@pytest.mark.parametrize("version", [3, 4])
def test_prepared_transactions(database: Database, version: int) -> None:
    create_numbers(database)
    kept, undone = f"{database.name} kept", f"{database.name} undone"
    with streaming(database, version, two_phase=True) as stream:
        [(xid,)] = prepare(database, kept, "INSERT INTO numbers VALUES (1)")
        begin_prepare, *changes, prepared = stream.read_until(is_a(Prepare))
        finish_prepared(database, "COMMIT PREPARED", kept)
        commit_prepared = stream.next()
        prepare(database, undone, "INSERT INTO numbers VALUES (2)")
        *_, second = stream.read_until(is_a(Prepare))
        finish_prepared(database, "ROLLBACK PREPARED", undone)
        rollback_prepared = stream.next()

    assert isinstance(begin_prepare, BeginPrepare)
    assert (begin_prepare.xid, begin_prepare.gid) == (xid, kept)
    assert [type(change) for change in changes] == [Relation, Insert]
    assert prepared == Prepare(begin_prepare.prepare_lsn, begin_prepare.end_lsn, begin_prepare.prepare_time, xid, kept)
    assert isinstance(prepared, Prepare)
    assert isinstance(commit_prepared, CommitPrepared)
    assert (commit_prepared.xid, commit_prepared.gid) == (xid, kept)
    assert prepared.end_lsn <= commit_prepared.commit_lsn < commit_prepared.end_lsn
    assert isinstance(second, Prepare)
    assert isinstance(rollback_prepared, RollbackPrepared)
    assert (rollback_prepared.xid, rollback_prepared.gid) == (second.xid, undone)
    assert rollback_prepared.prepare_end_lsn == second.end_lsn < rollback_prepared.rollback_end_lsn
    assert rollback_prepared.prepare_time == second.prepare_time < rollback_prepared.rollback_time


def test_a_streamed_transaction_is_prepared(database: Database) -> None:
    create_numbers(database)
    with streaming(database, version=3, two_phase=True, streaming="on") as stream:
        [(xid,)] = prepare(database, database.name, f"INSERT INTO numbers SELECT generate_series(1, {ROWS})")
        *blocks, prepared = stream.read_until(is_a(StreamPrepare))
        finish_prepared(database, "COMMIT PREPARED", database.name)
        commit_prepared = stream.next()

    assert len(of_kind(blocks, Insert)) == ROWS
    assert blocks[0] == StreamStart(xid, True)
    assert isinstance(prepared, StreamPrepare)
    assert (prepared.xid, prepared.gid) == (xid, database.name)
    assert isinstance(commit_prepared, CommitPrepared)
    assert commit_prepared.gid == prepared.gid


def prepare(database: Database, gid: str, statement: str) -> list[tuple[int]]:
    """Runs `statement` in a transaction, prepares it and returns its id."""
    with psycopg.connect(database.dsn, autocommit=True) as session:
        session.execute("BEGIN")
        session.execute(statement)
        xid = session.execute(XID).fetchall()
        session.execute(sql.SQL("PREPARE TRANSACTION {}").format(gid))
    return xid


def finish_prepared(database: Database, how: str, gid: str) -> None:
    database.execute(sql.SQL(how + " {}").format(gid))


def test_the_server_understands_our_status_update(database: Database) -> None:
    create_numbers(database)
    with streaming(database, version=1) as stream:
        database.execute("INSERT INTO numbers VALUES (1)")
        *_, commit = stream.read_until(is_a(Commit))
        assert isinstance(commit, Commit)
        position = commit.end_lsn
        stream.send(StandbyStatusUpdate(position, position, position, from_datetime(datetime.now(UTC)), True))
        # Asked for a reply, the server sends a keepalive once it has taken the positions in.
        while not isinstance(keepalive := stream.envelope(), PrimaryKeepalive) or keepalive.wal_end < position:
            pass
        slots = database.execute(
            "SELECT confirmed_flush_lsn::text, r.reply_time FROM pg_replication_slots s JOIN pg_stat_replication r"
            " ON r.pid = s.active_pid WHERE s.database = current_database()"
        )
    [(confirmed, reply_time)] = slots
    assert Lsn.parse(confirmed) == position
    assert abs(reply_time - datetime.now(UTC)) < timedelta(minutes=1)
