"""What is particular to the store in a SQLite file: how values lie in it, and how it fails."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event
from sqlalchemy.dialects import sqlite

from etl_core.errors import PermanentError, StateStoreUnavailable
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.state import sql_engine
from etl_core.state.sql_errors import translated
from etl_core.state.sql_store import open_store
from etl_core.state.sql_tables import LsnText
from etl_core.state.sql_transitions import HISTORY_KEPT
from etl_core.state.store import Hold, ReplicationProgress, StateStore, TableUpdate
from etl_core.state.table_state import TableState

ORDERS = TableId(16412)
NOBODY = 65534

lsns = st.integers(0, (1 << 64) - 1).map(Lsn)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[StateStore]:
    with closing(open_store(f"sqlite:///{path}", "shop")) as store:
        store.migrate()
        yield store


@given(lsns, lsns)
def test_lsns_are_ordered_as_text(one: Lsn, other: Lsn) -> None:
    kind, dialect = LsnText(), sqlite.dialect()
    texts = [kind.process_bind_param(lsn, dialect) for lsn in (one, other)]
    assert None not in texts
    assert (str(texts[0]) < str(texts[1])) == (one < other)
    assert [kind.process_result_value(text, dialect) for text in texts] == [one, other]


def test_values_are_readable_in_the_file(store: StateStore, path: Path) -> None:
    time = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
    store.save_progress(ReplicationProgress(Lsn.parse("16/B374D848"), commit_time=time))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT flushed_lsn, commit_time FROM etl_progress").fetchall() == [
            ("00000016/B374D848", "2026-03-29 02:30:00.000000")
        ]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_time_without_a_zone_is_refused(store: StateStore) -> None:
    with pytest.raises(ValueError, match="time zone"):
        store.request_hold(Hold("verify", datetime(2030, 1, 1)))
    assert store.hold() is None


def test_history_is_trimmed_per_table(store: StateStore) -> None:
    other = store.add_table(TableId(1), TableName("public", "customers"))
    status = store.add_table(ORDERS, TableName("public", "orders"))
    for number in range(HISTORY_KEPT + 5):
        status = store.transition(status, TableState.ERRORED, TableUpdate(error=str(number)))
    errors = [line.error for line in store.history(ORDERS, limit=HISTORY_KEPT * 2)]
    assert errors == [str(number) for number in range(HISTORY_KEPT + 4, 4, -1)]
    assert len(store.history(other.table_id)) == 1


def test_reading_does_not_wait_for_a_writer(store: StateStore, path: Path) -> None:
    store.save_progress(ReplicationProgress(Lsn(1)))
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM etl_progress")
        progress = store.progress()
        assert progress is not None
        assert progress.flushed_lsn == 1


def test_a_locked_file_is_unavailable_until_released(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_engine, "LOCK_TIMEOUT", 0.05)
    with closing(open_store(f"sqlite:///{path}", "shop")) as store:
        store.migrate()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StateStoreUnavailable, match="locked") as caught:
                store.save_progress(ReplicationProgress(Lsn(1)))
            assert caught.value.hint
            with pytest.raises(StateStoreUnavailable, match="locked"):
                store.migrate()
        store.save_progress(ReplicationProgress(Lsn(1)))


def test_the_first_migration_waits_for_the_lock_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_engine, "LOCK_TIMEOUT", 0.05)
    with (
        closing(open_store(f"sqlite:///{path}", "shop")) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateStoreUnavailable, match="locked"):
            store.migrate()


def test_the_first_migration_begins_when_another_process_has_written(path: Path) -> None:
    """SQLite itself would not wait here: the switch to WAL fails at once while another connection is about to write."""
    attempts = count(1)
    tried_again = Event()

    def watch(*arguments: Any) -> None:
        if "journal_mode" in arguments[2] and next(attempts) > 1:
            tried_again.set()

    with (
        closing(open_store(f"sqlite:///{path}", "shop")) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        ThreadPoolExecutor(1) as executor,
    ):
        other.execute("BEGIN IMMEDIATE")
        event.listen(Engine, "before_cursor_execute", watch)
        try:
            migrating = executor.submit(store.migrate)
            migrating.add_done_callback(lambda _: tried_again.set())
            tried_again.wait()
            other.execute("COMMIT")
            migrating.result()
        finally:
            event.remove(Engine, "before_cursor_execute", watch)
        assert store.progress() is None


def test_a_full_disk_is_unavailable(path: Path) -> None:
    engine, place = sql_engine.open_engine(f"sqlite:///{path}", "shop")

    def fill_the_disk() -> None:
        with translated(place), engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.exec_driver_sql("CREATE TABLE one_too_many (c TEXT)")

    with pytest.raises(StateStoreUnavailable, match="disk space"):
        fill_the_disk()
    engine.dispose()


def test_a_store_that_was_not_migrated_says_so(path: Path) -> None:
    with (
        closing(open_store(f"sqlite:///{path}", "shop")) as store,
        pytest.raises(PermanentError, match="lacks a table") as caught,
    ):
        store.progress()
    assert caught.value.hint is not None
    assert "migrate()" in caught.value.hint


def test_a_directory_is_not_a_store(path: Path) -> None:
    path.mkdir()
    with (
        closing(open_store(f"sqlite:///{path}", "shop")) as store,
        pytest.raises(PermanentError, match="cannot be opened for writing"),
    ):
        store.migrate()


def test_another_file_is_not_a_store(path: Path) -> None:
    path.write_text("pipeline: shop\n" * 100)
    with closing(open_store(f"sqlite:///{path}", "shop")) as store, pytest.raises(PermanentError, match="SQLite file"):
        store.migrate()


@pytest.fixture
def foreign_directory() -> Iterator[Path]:
    """A directory that may be entered and read, not written, while the test runs."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with closing(open_store(f"sqlite:///{directory / 'old.db'}", "shop")) as store:
            store.migrate()
        directory.chmod(0o555)
        (directory / "old.db").chmod(0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield directory
        finally:
            if root:
                os.seteuid(0)
            directory.chmod(0o755)


@pytest.mark.parametrize("name", ["new.db", "old.db"])
def test_a_missing_right_is_named(foreign_directory: Path, name: str) -> None:
    with (
        closing(open_store(f"sqlite:///{foreign_directory / name}", "shop")) as store,
        pytest.raises(PermanentError, match="cannot be opened for writing") as caught,
    ):
        store.migrate()
    assert caught.value.hint is not None
    assert "write the file and its directory" in caught.value.hint


def test_holds_expire_by_the_clock_of_the_process(store: StateStore) -> None:
    store.request_hold(Hold("verify", datetime.now(UTC) + timedelta(hours=1)))
    assert store.hold() is not None
    store.request_hold(Hold("verify", datetime.now(UTC)))
    assert store.hold() is None
