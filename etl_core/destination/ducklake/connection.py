"""A lake, attached in a DuckDB that this process keeps open.

**The fence needs two writers to meet.** DuckLake refuses the later of two transactions that changed the same table,
unless both did nothing but add rows. So each of ours begins with an update of the one row of `_etl.turns`: of two
that began from the same state one commits, and the other is refused whatever it did, also where it would only have
added the first position of a stream.

**Rows are in files.** DuckLake would keep those of a small change in the catalog, where their types are those of its
database: SQLite changed or refused intervals, numbers and dates, and the whole engine ended at a JSON in an array. Of
the bookkeeping, whose few types all three keep, that saves four files for each batch.

A catalog in a DuckDB file is attached for each operation, as only one process can have the file open: others read
between two batches. One in SQLite or PostgreSQL stays attached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import duckdb
from psycopg import sql

from etl_core.destination.duckdb_sql.extensions import load_extensions
from etl_core.destination.duckdb_sql.failures import holder, is_held
from etl_core.destination.duckdb_sql.instance import Instance
from etl_core.destination.ducklake.catalog import DATABASE, Catalog, Storage
from etl_core.destination.ducklake.failures import explain
from etl_core.destination.ducklake.server import is_made
from etl_core.destination.ducklake.turn import Try, turn_of
from etl_core.destination.sql.dialect import NAMESPACE
from etl_core.errors import DestinationUnavailable, DestinationUnusable

_DETACH = "DETACH " + DATABASE
_USE = "USE " + DATABASE
_TURNS = """
    SELECT count(*) FROM duckdb_tables()
    WHERE database_name = current_database() AND schema_name = '_etl' AND table_name = 'turns'
"""
_TAKE_TURN = f"UPDATE {DATABASE}._etl.turns SET transactions = transactions + 1"  # noqa: S608
_LIMITS = f"""
    SELECT value, coalesce(scope_entry, '') FROM ducklake_options('{DATABASE}')
    WHERE option_name = 'data_inlining_row_limit'
"""  # noqa: S608
_KEEP_BOOKKEEPING = f"CALL ducklake_set_option('{DATABASE}', 'data_inlining_row_limit', 1000, schema => '{NAMESPACE}')"
_STOP_PATIENCE = 1.0
"""Seconds that a wait goes on after the work was asked to stop."""
_SAY_AFTER = 5.0
_SAY_EVERY = 1.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1


class _Shared:
    """What all who use one lake in this process share: a DuckDB file can be attached once in it."""

    def __init__(self, catalog: Catalog, storage: Storage, scratch: Path) -> None:
        attach = _attach(catalog, storage)
        is_kept = catalog.kind != "duckdb"

        def prepare(connection: duckdb.DuckDBPyConnection) -> None:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            connection.execute(_text("SET temp_directory = {}", str(scratch)))
            load_extensions(connection, *_extensions(catalog, storage))
            if storage.s3:
                connection.execute(_secret(storage))
            if is_kept:
                connection.execute(attach)

        self.instance = Instance(prepare) if is_kept else Instance(prepare, attach=attach, detach=_DETACH)
        self.writing = threading.Lock()


_lakes: WeakValueDictionary[tuple[Catalog, Storage], _Shared] = WeakValueDictionary()
_lakes_guard = threading.Lock()


class Lake:
    """The lake of `catalog` and `storage`, not attached yet. `wait_seconds` bounds the wait for another process.

    `scratch` is a directory for what does not fit into memory.
    """

    def __init__(
        self, catalog: Catalog, storage: Storage, pipeline: str, scratch: Path, *, wait_seconds: float = 60.0
    ) -> None:
        self.catalog = catalog
        self.storage = storage
        self._pipeline = pipeline
        self._wait_seconds = wait_seconds
        self.stop = threading.Event()
        """When it is set, another process is not waited for much longer."""
        self.on_waiting: Callable[[str], None] = lambda _: None
        """Told who is waited for, from the fifth second of a wait on."""
        with _lakes_guard:
            shared = _lakes.get((catalog, storage))
            if shared is None:
                shared = _lakes[catalog, storage] = _Shared(catalog, storage, scratch)
        self._shared = shared

    def exists(self) -> bool:
        """Whether the lake was ever made. Raises DestinationUnavailable."""
        path = self.catalog.path
        if path is not None:
            return path.exists()
        return is_made(self.catalog, self._pipeline)

    @contextmanager
    def open(self, *, wait_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that uses the lake, for the `with` block. Raises DestinationUnavailable, DestinationError."""
        try:
            with ExitStack() as stack:
                yield self._enter(stack, self._waiting(wait_seconds))
        except duckdb.Error as error:
            raise explain(error, self.catalog, self.storage.path) from None

    def _enter(self, stack: ExitStack, waiting: Callable[[str], None]) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                cursor = stack.enter_context(self._shared.instance.cursor())
                break
            except duckdb.Error as error:
                if not is_held(error):
                    raise
                waiting(f"{self.catalog} is held by {holder(error)}")
        cursor.execute(_USE)
        return cursor

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in a transaction that is committed at the end of the block, and rolled back if that fails."""
        with self.turn(), self.open() as connection:
            connection.execute("BEGIN TRANSACTION")
            try:
                if connection.execute(_TURNS).fetchall() != [(0,)]:
                    connection.execute(_TAKE_TURN)
                yield connection
            except BaseException:
                with suppress(duckdb.Error):  # a statement that failed may have ended the transaction
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def keep_rows_in_files(self) -> None:
        """Raises DestinationUnusable if somebody has set the lake so that rows of tables stay in its catalog."""
        with self.open() as connection:
            limits = {scope: value for value, scope in connection.execute(_LIMITS).fetchall()}
        ours = limits.pop(NAMESPACE, None)
        if any(value != "0" for value in limits.values()):
            raise DestinationUnusable(
                f"the lake in {self.catalog} keeps rows of small changes in its catalog, where not all values survive",
                hint="set data_inlining_row_limit to 0 wherever ducklake_options shows it: "
                "CALL lake.set_option('data_inlining_row_limit', 0)",
            )
        if ours is None:
            with self.turn(), self.open() as connection:
                connection.execute(_KEEP_BOOKKEEPING)

    @contextmanager
    def turn(self, *, wait_seconds: float | None = None) -> Iterator[None]:
        """Nobody else writes during the `with` block. Raises DestinationUnavailable."""
        with self._shared.writing, turn_of(self.catalog, self._pipeline) as take:
            self._take(take, self._waiting(wait_seconds))
            yield

    def close(self) -> None:
        """Lets go of the catalog and its connections; they come back when they are needed. Idempotent."""
        self._shared.instance.close()

    def _take(self, take: Try, waiting: Callable[[str], None]) -> None:
        while not take():
            waiting(f"{self.catalog} is being written by another process")

    def _waiting(self, wait_seconds: float | None) -> Callable[[str], None]:
        """Pauses, each time longer. Raises DestinationUnavailable when it was enough."""
        seconds = self._wait_seconds if wait_seconds is None else wait_seconds
        give_up_at = time.monotonic() + seconds
        say_at = time.monotonic() + _SAY_AFTER
        pause = _FIRST_PAUSE

        def wait(why: str) -> None:
            nonlocal give_up_at, say_at, pause
            if time.monotonic() + pause > give_up_at:
                waited = "" if self.stop.is_set() else f" for longer than {seconds:g} s"
                raise DestinationUnavailable(
                    f"{why}{waited}",
                    hint="close that connection; a catalog in SQLite or PostgreSQL can be read while it is written",
                )
            if time.monotonic() >= say_at:
                say_at += _SAY_EVERY
                self.on_waiting(f"{why}: waiting until it is done there")
            if self.stop.wait(pause):
                give_up_at = min(give_up_at, time.monotonic() + _STOP_PATIENCE)
                time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

        return wait


def _extensions(catalog: Catalog, storage: Storage) -> list[str]:
    scanners = {"sqlite": ["sqlite_scanner"], "postgres": ["postgres_scanner"], "duckdb": []}[catalog.kind]
    return [*(["httpfs"] if storage.directory is None else []), *scanners, "ducklake"]


def _attach(catalog: Catalog, storage: Storage) -> str:
    options = [_text("DATA_PATH {}", storage.path), "DATA_INLINING_ROW_LIMIT 0"]
    if catalog.kind == "sqlite":
        options += ["META_JOURNAL_MODE 'WAL'", "META_BUSY_TIMEOUT 30000"]
    return _text("ATTACH {} AS " + DATABASE, catalog.attached) + f" ({', '.join(options)})"


def _secret(storage: Storage) -> str:
    given = ", ".join(_text(name + " {}", value) for name, value in storage.s3)
    return f"CREATE OR REPLACE TEMPORARY SECRET etl_s3 (TYPE s3, {given})"


def _text(statement: str, value: str) -> str:
    return sql.SQL(statement).format(sql.Literal(value)).as_string(None)
