"""The behaviour suite of state stores, over SQLite and PostgreSQL, whole processes, and migrations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

import etl_core
from etl_core.errors import PermanentError
from etl_core.identifiers import TableId, TableName
from etl_core.state.sql_engine import begin_migration, open_engine
from etl_core.state.sql_migrations import MIGRATIONS, Migration, apply_migrations
from etl_core.state.sql_store import open_store
from etl_core.state.sql_tables import build_tables
from etl_core.state.store import StateStore
from etl_core.testing.database import Database
from etl_core.testing.hostile import HostileStore
from etl_core.testing.postgres import PostgresServer, create_database
from etl_core.testing.state_suite import OpenStore, StateStoreSuite

TABLE = TableId(1)
PROGRAM = Path(__file__).with_name("state_process.py")


@pytest.fixture(scope="module")
def module_database(postgres: PostgresServer) -> Iterator[Database]:
    """One database for this file: a new schema takes a test 20 ms, a new database half a second."""
    database = create_database(postgres)
    yield database
    database.drop()


@pytest.fixture
def postgresql_url(module_database: Database) -> str:
    module_database.execute("DROP SCHEMA IF EXISTS etl CASCADE")
    return module_database.dsn


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


class TestSqlite(StateStoreSuite):
    @pytest.fixture
    def open_store(self, sqlite_url: str) -> OpenStore:
        return partial(open_store, sqlite_url)


class TestPostgresql(StateStoreSuite):
    @pytest.fixture
    def open_store(self, postgresql_url: str) -> OpenStore:
        return partial(open_store, postgresql_url)


class TestSqliteHostile(StateStoreSuite):
    """Answers are lost, requests arrive twice and late."""

    @pytest.fixture
    def open_store(self, sqlite_url: str) -> OpenStore:
        return hostile(sqlite_url)


class TestPostgresqlHostile(StateStoreSuite):
    @pytest.fixture
    def open_store(self, postgresql_url: str) -> OpenStore:
        return hostile(postgresql_url)


def hostile(url: str) -> OpenStore:
    def open_hostile(pipeline: str, *, now: Callable[[], datetime]) -> StateStore:
        return cast(StateStore, HostileStore(open_store(url, pipeline, now=now)))

    return open_hostile


@pytest.fixture(params=["sqlite_url", "postgresql_url"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty storage, of either kind."""
    value = request.getfixturevalue(request.param)
    assert isinstance(value, str)
    return value


def test_processes_migrate_at_once(url: str) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(process("migrate", url)) for _ in range(4)]
        for racer in processes:
            go(racer)
        assert [line(racer) for racer in processes] == ["None"] * 4


def test_one_of_several_processes_wins_a_transition(url: str) -> None:
    with closing(open_store(url, "shop")) as store:
        store.migrate()
        store.add_table(TABLE, TableName("public", "orders"))
        with ExitStack() as stack:
            processes = [stack.enter_context(process("take", url)) for _ in range(3)]
            for racer in processes:
                go(racer)
            assert sorted(line(racer) for racer in processes) == ["lost", "lost", "won"]
        assert len(store.history(TABLE)) == 2


def test_a_killed_process_leaves_a_consistent_store(url: str) -> None:
    """Killed at once after a word, the process is anywhere in its next write: between statements, in a commit."""
    with closing(open_store(url, "shop")) as store:
        store.migrate()
        for words in (1, 2, 3, 7, 20):
            with process("write", url) as writer:
                go(writer)
                said = [line(writer) for _ in range(words)][-1]
                writer.kill()
            # Waits for what the killed process had begun: its server process may still be committing.
            store.set_publication_owned(True)
            number, version = map(int, said.split())
            status, progress = store.table(TABLE), store.progress()
            assert status is not None
            assert progress is not None
            newest = store.history(TABLE, limit=1)[0]
            assert (newest.to_state, newest.at) == (status.state, status.updated_at)
            assert version <= status.version
            # What was said is stored. The writes come in turn, so progress is at most one transition ahead.
            assert number <= progress.flushed_lsn
            assert 0 <= (progress.flushed_lsn - number) - (status.version - version) <= 1


def migrate(engine: Engine, migrations: Sequence[Migration]) -> int:
    with engine.begin() as connection:
        begin_migration(connection)
        return apply_migrations(connection, build_tables(engine.dialect.name), datetime.now(UTC), migrations)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine, _ = open_engine(url, "shop")
    yield engine
    engine.dispose()


def test_a_database_is_upgraded_step_by_step(url: str, engine: Engine) -> None:
    tables = build_tables(engine.dialect.name)
    newer = (
        *MIGRATIONS,
        ("ALTER TABLE %(etl)sslots ADD COLUMN note TEXT", "UPDATE %(etl)sslots SET note = 'kept'"),
        ("CREATE TABLE %(etl)snotes (at %(time)s, lsn %(lsn)s)",),
    )
    assert migrate(engine, MIGRATIONS[:1]) == 1
    with closing(open_store(url, "shop")) as store:
        store.migrate()
        store.record_slot("etl_shop", None)
    assert migrate(engine, newer) == 2
    assert migrate(engine, newer) == 0
    with engine.begin() as connection:
        assert connection.scalar(sa.select(sa.column("note")).select_from(tables.slots)) == "kept"
        versions = connection.scalars(sa.select(tables.migrations.c.version).order_by(sa.text("version"))).all()
        assert versions == list(range(1, len(newer) + 1))


def test_a_newer_database_is_refused(url: str, engine: Engine) -> None:
    migrate(engine, (*MIGRATIONS, ("CREATE TABLE %(etl)snotes (note TEXT)",)))
    with closing(open_store(url, "shop")) as store, pytest.raises(PermanentError, match="version") as caught:
        store.migrate()
    assert caught.value.hint is not None
    assert "upgrade" in caught.value.hint


def test_a_failing_migration_leaves_the_database_as_it_was(url: str, engine: Engine) -> None:
    migrate(engine, MIGRATIONS)
    broken = ("CREATE TABLE %(etl)snotes (note TEXT)", "INSERT INTO %(etl)snowhere VALUES (1)")
    with pytest.raises(SQLAlchemyError):
        migrate(engine, (*MIGRATIONS, broken))
    assert migrate(engine, (*MIGRATIONS, ("CREATE TABLE %(etl)snotes (note TEXT)",))) == 1


def test_queries_know_the_tables_as_the_migrations_made_them(engine: Engine) -> None:
    migrate(engine, MIGRATIONS)
    tables = build_tables(engine.dialect.name)
    inspector = sa.inspect(engine)
    schema = tables.migrations.schema
    known = [getattr(tables, field.name) for field in fields(tables)]
    assert set(inspector.get_table_names(schema=schema)) == {table.name for table in known}
    for table in known:
        stored = [column["name"] for column in inspector.get_columns(table.name, schema=schema)]
        assert stored == [column.name for column in table.columns]


@contextmanager
def process(role: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A `state_process.py` that is ready for its `go`; killed at the end if it still runs."""
    root = Path(etl_core.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, PROGRAM, role, url],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert line(started) == "ready"
            yield started
        finally:
            started.kill()


def go(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("go\n")
    started.stdin.flush()


def line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()
