"""What Snowflake does otherwise than a database of one's own: DDL that commits, lost answers, sessions that end."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("snowflake.connector", reason="the extra is missing: pip install 'etl-dagster[snowflake]'")

from snowflake.connector.errors import ProgrammingError

from etl_core.destination.protocol import LoggedCopy
from etl_core.destination.snowflake import connection
from etl_core.destination.snowflake.destination import SnowflakeDestination
from etl_core.errors import DestinationUnavailable, TableError, WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_deleted_suite import at
from etl_core.testing.destination_history_suite import history
from etl_core.testing.destination_log_suite import THEN, append_copy
from etl_core.testing.destination_tables import INT4, INT8, TEXT, batch, changes, contents, orders, partial, publish
from etl_core.testing.postgres import Database
from etl_core.testing.servers.snowflake_double import Session, SnowflakeAccount

TABLE = orders()
_ID = Column("id", INT8, attnum=1)
OLD, NEW = (1, "a", "b", 1), (2, "c", "d", 2)


@pytest.fixture
def account(database: Database) -> Iterator[SnowflakeAccount]:
    with SnowflakeAccount(database.dsn) as account:
        yield account


@pytest.fixture
def destination(account: SnowflakeAccount, tmp_path: Path) -> SnowflakeDestination:
    """With the table at 100."""
    made = SnowflakeDestination(account.connect, "double", "shop", tmp_path)
    made.prepare()
    publish(made, TABLE, [OLD])
    account.ran.clear()
    return made


def _words(account: SnowflakeAccount) -> list[str]:
    return [statement.split(maxsplit=1)[0] for statement in account.ran]


def test_a_transaction_defines_nothing_in_its_own_session(
    destination: SnowflakeDestination, account: SnowflakeAccount
) -> None:
    """Of a batch with a new column and unchanged values; the double would have committed where one is defined."""
    grown = replace(TABLE, columns=(*TABLE.columns, Column("extra", INT4, missing_value="5")))
    parts = [changes(TABLE, upserts=[NEW]), changes(grown, partials=[partial(grown, ["note"], {(1,): (1, "x", 9, 6)})])]
    account.before["COMMIT"] = _fail
    with pytest.raises(LookupError):
        destination.write(batch(*parts, expected=100, new=200))
    assert contents(destination, TABLE) == Counter([OLD])
    assert destination.positions().tables == {TABLE.table_id: Lsn(100)}
    destination.write(batch(*[replace(part) for part in parts], expected=100, new=200))
    assert contents(destination, grown) == Counter([(1, "x", "b", 9, 6), (*NEW, 5)])


def _fail() -> None:
    raise LookupError("stopped here")


@pytest.mark.parametrize(
    "statement", ["COMMIT", "CREATE OR REPLACE TABLE", "DROP TABLE IF EXISTS", 'DELETE FROM "_etl"']
)
def test_what_a_transaction_decided_is_done_though_an_answer_is_lost(
    destination: SnowflakeDestination, account: SnowflakeAccount, tmp_path: Path, statement: str
) -> None:
    """A new copy, which is made beside the table and replaces it once its watermark is committed."""
    with destination.copy(TABLE) as copy:
        account.before["COMMIT"] = lambda: account.lost.append(statement)
        with pytest.raises(DestinationUnavailable):
            copy.publish(Lsn(200))
    again = SnowflakeDestination(account.connect, "double", "shop", tmp_path)
    assert again.positions().tables == {TABLE.table_id: Lsn(200)}
    assert contents(again, TABLE) == Counter()
    destination.write(batch(changes(TABLE, inserts=[NEW]), expected=200, new=300))
    assert contents(destination, TABLE) == Counter([NEW])
    assert not account.connect(True).rows('SELECT 1 FROM "_etl"."pending"')


def test_views_show_what_was_before_or_what_is_now(
    destination: SnowflakeDestination, account: SnowflakeAccount, tmp_path: Path, database: Database
) -> None:
    """To anyone, between the statements that follow copies with another key; and whichever answer is lost."""
    with_id = history()
    with_both = history(old=(_ID, Column("note", TEXT, attnum=2)))
    append_copy(destination, with_id, [(1, "n0", "x")], 100, LoggedCopy(THEN))
    seen: set[tuple[Any, ...]] = set()
    steps = ["CREATE OR REPLACE VIEW", "CREATE OR REPLACE TABLE", 'DELETE FROM "_etl"."pending']
    lost = [None, *steps, 'CREATE OR REPLACE VIEW "public"."items_current"']
    with SnowflakeAccount(database.dsn) as outside:
        reader = outside.connect(True)

        def look() -> None:
            seen.add(tuple(reader.rows('SELECT "note", "_etl_lsn" FROM "public"."items_history"')))
            account.before.update(dict.fromkeys(steps, look))

        for at, statement in enumerate(lost, start=1):
            schema, lsn = (with_both if at % 2 else with_id), 100 + 100 * at
            account.before["COMMIT"] = functools.partial(account.lost.extend, [statement] if statement else [])
            account.before.update(dict.fromkeys(steps, look))
            with pytest.raises(DestinationUnavailable) if statement else contextlib.nullcontext():
                append_copy(destination, schema, [(1, f"n{at}", "x")], lsn, LoggedCopy(THEN))
            again = SnowflakeDestination(account.connect, "double", "shop", tmp_path)
            assert again.positions().tables[schema.table_id] == Lsn(lsn)
            account.before.clear()
            [now] = [found.to_pylist() for found in again.read_versions(schema)]
            assert [(row["note"], row["_etl_lsn"]) for row in now] == [(f"n{at}", lsn)]
            again.close()
            assert seen <= {((f"n{at - 1}", lsn - 100),), ((f"n{at}", lsn),)}, statement
            seen.clear()


def test_a_view_that_is_refused_is_missing_until_it_is_not(
    destination: SnowflakeDestination, account: SnowflakeAccount
) -> None:
    """It stops neither its table nor another one."""
    schema = replace(history(), table_id=TableId(77))

    def refuse() -> None:
        account.before["CREATE OR REPLACE VIEW"] = refuse
        raise ProgrammingError(msg="Insufficient privileges to operate on schema", errno=3001)

    account.before["CREATE OR REPLACE VIEW"] = refuse
    append_copy(destination, schema, [(1, "a", "x")], 100, LoggedCopy(THEN))
    destination.write(batch(changes(TABLE, inserts=[NEW]), expected=100, new=200))
    with pytest.raises(TableError, match="is not as this pipeline left it"):
        list(destination.read_versions(schema))
    account.before.clear()
    row = (2, "b", "y", None, "insert", 150, 1, at(THEN), None)
    destination.write(batch(changes(schema, inserts=[row]), expected=100, new=200))
    assert sum(found.num_rows for found in destination.read_versions(schema)) == 2


def test_no_batch_comes_between_a_clone_and_its_end(
    destination: SnowflakeDestination,
    account: SnowflakeAccount,
    tmp_path: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CLONE has found its source, and takes long; another writer sees what is pending meanwhile."""
    other = SnowflakeDestination(account.connect, "double", "shop", tmp_path)
    account.guard = contextlib.nullcontext()  # type: ignore[assignment]  # as in Snowflake, DDL waits for nobody
    make = Session._make
    written = threading.Event()

    def write() -> None:
        other.positions()
        other.write(batch(changes(TABLE, inserts=[NEW]), expected=200, new=300))
        written.set()

    writer = threading.Thread(target=write)

    def is_waiting() -> bool:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(database.execute(waiting))

    def slowly(
        session: Session, schema: str, name: str, definition: str, source: str | None, *, replaces: bool
    ) -> None:
        if source is not None and writer.ident is None:
            writer.start()
            while not written.is_set() and not is_waiting():
                time.sleep(0.01)
        make(session, schema, name, definition, source, replaces=replaces)

    monkeypatch.setattr(Session, "_make", slowly)
    with destination.copy(TABLE) as copy:
        copy.publish(Lsn(200))
    writer.join(300)
    assert written.is_set()
    assert destination.positions().tables == {TABLE.table_id: Lsn(300)}
    assert contents(destination, TABLE) == Counter([NEW])


def test_of_two_writers_that_expect_the_same_one_is_refused(
    destination: SnowflakeDestination, account: SnowflakeAccount, tmp_path: Path
) -> None:
    """The second waits for the turn of the first, and sees what that one has committed."""
    other = SnowflakeDestination(account.connect, "double", "shop", tmp_path)
    outcome: list[Exception | None] = []

    def write() -> None:
        try:
            other.write(batch(changes(TABLE, inserts=[(3, "late", "l", 3)]), expected=100, new=200))
            outcome.append(None)
        except WatermarkConflict as conflict:
            outcome.append(conflict)

    late = threading.Thread(target=write)
    account.before["COMMIT"] = late.start  # the first writer has written everything, and holds its turn
    destination.write(batch(changes(TABLE, inserts=[NEW]), expected=100, new=200))
    late.join(300)
    assert [type(error) for error in outcome] == [WatermarkConflict]
    assert contents(destination, TABLE) == Counter([OLD, NEW])


def test_a_transaction_that_snowflake_has_ended_is_not_committed_in_part(
    destination: SnowflakeDestination, account: SnowflakeAccount
) -> None:
    """As it does with one that is idle while others wait. What comes after it would have no fence."""
    account.before['DELETE FROM "public"'] = account.end_transactions
    with pytest.raises(DestinationUnavailable, match="has ended the transaction"):
        destination.write(batch(changes(TABLE, upserts=[(1, "x", "y", 9)]), expected=100, new=200))
    assert contents(destination, TABLE) == Counter([OLD])
    assert destination.positions().tables == {TABLE.table_id: Lsn(100)}


def test_a_lost_session_leaves_nothing_of_its_batch(
    destination: SnowflakeDestination, account: SnowflakeAccount
) -> None:
    for statement in ("BEGIN", "UPDATE", "PUT", "COPY INTO", 'DELETE FROM "public"', "INSERT INTO"):
        account.lost.append(statement)
        with pytest.raises(DestinationUnavailable):
            destination.write(batch(changes(TABLE, upserts=[(1, "x", "y", 9)]), expected=100, new=200))
        assert contents(destination, TABLE) == Counter([OLD]), statement
        assert destination.positions().tables == {TABLE.table_id: Lsn(100)}
    destination.write(batch(changes(TABLE, upserts=[(1, "x", "y", 9)]), expected=100, new=200))
    assert contents(destination, TABLE) == Counter([(1, "x", "y", 9)])


def test_rows_of_several_files(
    destination: SnowflakeDestination, account: SnowflakeAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction runs a statement after each: one that is idle while others wait is ended."""
    monkeypatch.setattr(connection, "_ROWS_PER_FILE", 2)
    rows = [(number, "\\N", None, number) for number in range(2, 7)]
    destination.write(batch(changes(TABLE, inserts=rows), expected=100, new=200))
    words = [word for word in _words(account) if word in ("PUT", "COPY")]
    assert words == ["PUT", "COPY"] * 4, "one is the fence"
    assert account.ran.count("SELECT 1") == len(words) // 2
    assert contents(destination, TABLE) == Counter([OLD, *rows])
