"""Slots on a real server: created, waited for, stopped, looked at, dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import psycopg
import pytest
from psycopg import sql

from etl_core.errors import SlotInUse, SourceRefused, Stopped
from etl_core.source.connection import Connection
from etl_core.source.server import current_lsn
from etl_core.source.slot import Blocker, create_slot, drop_slot, find_writers, slot_status
from etl_core.testing.database import Database


def test_created_looked_at_dropped(database: Database, conn: Connection, walsender: Connection) -> None:
    before = current_lsn(conn)
    assert slot_status(conn, database.name) is None

    slot = create_slot(walsender, database.name, export_snapshot=False)

    assert (slot.name, slot.snapshot_name) == (database.name, None)
    assert slot.consistent_point > before
    status = slot_status(conn, database.name)
    assert status is not None
    assert (status.plugin, status.database, status.temporary) == ("pgoutput", database.name, False)
    assert (status.active, status.active_pid, status.wal_status) == (False, None, "reserved")
    assert (status.two_phase, status.invalidation_reason, status.is_lost) == (False, None, False)
    assert status.confirmed_flush_lsn == slot.consistent_point
    assert status.restart_lsn is not None
    assert status.restart_lsn <= slot.consistent_point
    database.execute("CREATE TABLE t ()")
    behind = slot_status(conn, database.name)
    assert behind is not None
    assert (behind.bytes_behind or 0) > (status.bytes_behind or 0)
    # The connection that created it goes on to serve.
    assert walsender.execute("SELECT 1").fetchone() == (1,)
    assert drop_slot(conn, database.name)
    assert not drop_slot(conn, database.name)
    assert slot_status(conn, database.name) is None


def test_a_name_that_is_taken(database: Database, walsender: Connection) -> None:
    create_slot(walsender, database.name, export_snapshot=False)
    with pytest.raises(SlotInUse, match="exists already"):
        create_slot(walsender, database.name, export_snapshot=True)


def test_a_name_that_cannot_be(walsender: Connection) -> None:
    with pytest.raises(SourceRefused, match="invalid character"):
        create_slot(walsender, "No Slot", export_snapshot=True)


def start_reading(walsender: Connection, slot: str) -> None:
    command = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names 'p')")
    walsender.pgconn.exec_(command.format(sql.Identifier(slot)).as_bytes(walsender))


def test_a_slot_somebody_reads_is_not_dropped(database: Database, conn: Connection, walsender: Connection) -> None:
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    create_slot(walsender, database.name, export_snapshot=False)
    start_reading(walsender, database.name)
    with pytest.raises(SlotInUse) as caught:
        drop_slot(conn, database.name, timeout=0)
    assert caught.value.active_pid == walsender.info.backend_pid
    status = slot_status(conn, database.name)
    assert status is not None
    assert status.active_pid == walsender.info.backend_pid


def test_a_slot_just_left_is_dropped(database: Database, conn: Connection, walsender: Connection) -> None:
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    create_slot(walsender, database.name, export_snapshot=False)
    start_reading(walsender, database.name)
    walsender.close()
    assert drop_slot(conn, database.name)


class Writer:
    """A transaction that has written and stays open, and holds up the creation of slots."""

    def __init__(self, database: Database) -> None:
        database.execute("CREATE TABLE secrets (v text)")
        self.connection = psycopg.connect(database.dsn, application_name="nightly job")
        self.connection.execute("INSERT INTO secrets VALUES ('secret')")
        self.pid = self.connection.info.backend_pid


def test_the_wait_says_for_whom(
    database: Database, conn: Connection, walsender: Connection, open_connection: Callable[..., Connection]
) -> None:
    writer = Writer(database)
    reports: list[Sequence[Blocker]] = []

    def on_wait(blockers: Sequence[Blocker]) -> None:
        reports.append(blockers)
        writer.connection.rollback()

    create_slot(walsender, database.name, export_snapshot=True, observer=conn, on_wait=on_wait)

    (blocker,) = (blocker for blocker in reports[0] if blocker.pid == writer.pid)
    assert (blocker.application_name, blocker.state, blocker.command) == (
        "nightly job",
        "idle in transaction",
        "INSERT",
    )
    assert blocker.age is not None
    assert blocker.age > 0
    assert "secret" not in str(blocker)
    assert str(blocker).startswith(f"pid {writer.pid} (open for ")
    writer.connection.close()


def test_stop_ends_the_wait_and_leaves_no_slot(database: Database, conn: Connection, walsender: Connection) -> None:
    writer = Writer(database)
    stop = threading.Event()
    with pytest.raises(Stopped):
        create_slot(
            walsender,
            database.name,
            export_snapshot=True,
            observer=conn,
            on_wait=lambda _: stop.set(),
            stop=stop,
        )
    assert slot_status(conn, database.name) is None
    writer.connection.close()
    assert create_slot(walsender, database.name, export_snapshot=True).snapshot_name


def test_prepared_transactions_are_waited_for(database: Database, conn: Connection) -> None:
    writer = Writer(database)
    gid = f"prepared {database.name}"
    writer.connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gid)))
    writer.connection.close()
    try:
        (blocker,) = (blocker for blocker in find_writers(conn) if blocker.gid == gid)
        assert (blocker.pid, blocker.state) == (None, "prepared")
        assert gid in str(blocker)
    finally:
        database.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))


def test_without_the_right_to_see_it_a_writer_still_has_a_name(database: Database, conn: Connection) -> None:
    writer = Writer(database)
    role = f"role_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        (blocker,) = (blocker for blocker in find_writers(conn) if blocker.pid == writer.pid)
        assert (blocker.application_name, blocker.age, blocker.command) == ("nightly job", None, None)
    finally:
        writer.connection.close()
        database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_the_wait_survives_its_observer(database: Database, conn: Connection, walsender: Connection) -> None:
    writer = Writer(database)
    other = psycopg.connect(database.dsn, autocommit=True)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND pid = %s"

    def end_writer_when_waited_for() -> None:
        while other.execute(waiting, (walsender.info.backend_pid,)).fetchone() == (0,):
            pass
        writer.connection.rollback()

    conn.close()
    ender = threading.Thread(target=end_writer_when_waited_for)
    ender.start()
    slot = create_slot(walsender, database.name, export_snapshot=True, observer=conn, on_wait=lambda _: None)
    ender.join()
    assert slot.snapshot_name
    other.close()
    writer.connection.close()


def test_an_error_of_the_callback_cancels_the_creation(
    database: Database, conn: Connection, walsender: Connection
) -> None:
    writer = Writer(database)

    def on_wait(_: Sequence[Blocker]) -> None:
        raise RuntimeError("not interested")

    with pytest.raises(RuntimeError, match="not interested"):
        create_slot(walsender, database.name, export_snapshot=True, observer=conn, on_wait=on_wait)
    backend = walsender.info.backend_pid
    walsender.close()
    # The writer never ended: only the cancellation can have ended this backend, which takes its unfinished slot along.
    while conn.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (backend,)).fetchone() is not None:
        pass
    assert slot_status(conn, database.name) is None
    writer.connection.close()
