"""Tables that are dropped while the server opens them to list what a publication publishes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
import pytest

from etl_core.identifiers import TableId, TableName
from etl_core.source.catalog import published_table, published_tables
from etl_core.source.connection import Connection
from etl_core.source.publication import published_names, unpublished
from etl_core.testing.database import Database

DROPPED = ("b", "c")
KEPT = [TableName("public", "a"), TableName("public", "d")]
_BLOCKING = "SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity WHERE pid = %s"


def asked_while_tables_are_dropped(database: Database, conn: Connection, question: Callable[[], object]) -> object:
    """The answer of `question`, which waits for one DROP TABLE after the other and finds the table gone each time."""
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            answers.append(error)

    with ExitStack() as stack:
        droppers = {}
        for table in DROPPED:
            dropper = stack.enter_context(psycopg.connect(database.dsn))
            dropper.execute(f"DROP TABLE {table}".encode())
            droppers[dropper.info.backend_pid] = dropper
        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            for (pid,) in database.execute(_BLOCKING, [conn.info.backend_pid]):
                if pid in droppers:
                    droppers.pop(pid).commit()
        assert not droppers, "it waited for each of them"
    return answers[0]


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda conn, _: [table.name for table in published_tables(conn, "p")], KEPT),
        (lambda conn, oid: getattr(published_table(conn, oid, "p"), "name", None), KEPT[0]),
        (lambda conn, _: sorted(published_names(conn, "p")), KEPT),
        (lambda conn, _: unpublished(conn, "p", KEPT), []),
    ],
    ids=["published_tables", "published_table", "published_names", "unpublished"],
)
def test_tables_dropped_while_they_are_listed(
    database: Database, conn: Connection, ask: Callable[[Connection, TableId], object], expected: object
) -> None:
    for table in ("a", *DROPPED, "d"):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    oid = TableId(database.execute("SELECT 'a'::regclass::oid::bigint")[0][0])
    assert asked_while_tables_are_dropped(database, conn, lambda: ask(conn, oid)) == expected
