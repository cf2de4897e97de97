"""A DuckDB file that is opened for every operation and closed after it, so that other processes can read between them.

DuckDB admits one writing process, or several reading ones, to a file. Every open here is short; while another process
holds the file we wait with growing pauses, for a bounded time, and then say who holds it.

The settings were measured with a table of 2 M rows and batches of 100 k changes (70 % insert, 20 % update, 10 %
delete), from open to close, on DuckDB 2.0 and 1.5:

- A checkpoint on every close (the default) costs 2.9 and 3.0 µs a change: each batch is written to the WAL, read again
  and compressed, and neighbouring row groups are merged, which writes every row once more.
- No checkpoint is cheap at first, but every open replays the whole WAL (40 ms for each batch in it).
- A checkpoint when a commit brings the WAL beyond a few megabytes, without merging, costs 1.4 and 1.6 µs. DuckDB
  writes such a commit straight into the table, not into the WAL first. Small commits stay in the WAL and an open
  replays at most that much.

Merging row groups is what takes the space of deleted rows back; `merge` does it. DuckDB rewrites only where so many
rows are missing that three row groups become two.

**File and WAL are a pair that DuckDB can check.** It numbers its checkpoints in both, and refuses a WAL beside a file
of another number. That does not help where a transaction has written whole row groups into the file, and only pointers
to them into the WAL: an older file of the same number is accepted beside it, and its blocks are taken for those rows.
So a transaction that has written into the file ends with a checkpoint (6 ms for 200,000 rows). So does one with more
text than the log may have: DuckDB does not count text, and left 12 MB of it in the log at a limit of 4 MB. For the same
reason it wrote batches of long values to the log, synced that, and removed it in the checkpoint: 24 of 76 µs of CPU for
each text of 10 kB, and ten times the bytes that the compressed rows need.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from etl_core.destination.duckdb.compression import Compression
from etl_core.destination.duckdb.failures import explain
from etl_core.destination.duckdb.location import STORAGE_VERSION
from etl_core.destination.duckdb.memory import memory_limit, reading_limit
from etl_core.destination.duckdb.same_file import SameFile, wal_path
from etl_core.destination.duckdb.statements import create_file, note_merge
from etl_core.destination.duckdb_sql.failures import holder, is_held
from etl_core.destination.duckdb_sql.session import database_of
from etl_core.destination.duckdb_sql.statements import text
from etl_core.errors import DestinationError, DestinationUnavailable, EtlError

_log = logging.getLogger(__name__)

_CHECKPOINT = "SET checkpoint_threshold = '4MB'"
_CHECKPOINT_BYTES = 4_000_000
_CHECKPOINT_AT_ONCE = "SET checkpoint_threshold = '0KB'"
_SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET threads = 2",
    "SET preserve_insertion_order = false",
    # Row groups are compressed and written one by one: half the memory and a quarter less CPU than five at a time.
    "SET write_buffer_row_group_count = 1",
    _CHECKPOINT,
    # A commit that ends with a checkpoint is not written to the WAL before, however small DuckDB takes it for.
    "SET auto_checkpoint_skip_wal_threshold = 0",
    "SET max_vacuum_tasks = 0",
    "PRAGMA disable_checkpoint_on_shutdown",
)
_MEMORY_MB = 64
_MEMORY_MB_PER_TABLE = 1
"""What a transaction holds of each table it changes and nothing can evict: two blocks of 256 kB, measured."""
_STOP_PATIENCE = 1.0
"""Seconds that a wait goes on after the work was asked to stop: another process's query may just end."""
_SAY_AFTER = 5.0
"""Seconds of a wait that are usual: a query of another process takes so long."""
_SAY_EVERY = 1.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1


class _Turns:
    """What the threads of this process take turns in, per file."""

    def __init__(self) -> None:
        self.writing = threading.Lock()
        # DuckDB 1.5 fails to open a file that another thread is just closing.
        self.opening = threading.Lock()
        # DuckDB has one memory limit for all connections to a file, so it only ever grows.
        self.most_tables = 0
        self.connections = 0
        self.compression = Compression()


_turns: dict[Path, _Turns] = {}
_turns_guard = threading.Lock()


class DatabaseFile:
    """The file at `path`, not opened yet. `wait_seconds` bounds the wait for another process to let go of it.

    `storage_version` is that of a file that is made here; one that is there keeps its own.

    Settings are made after connecting, not passed to `connect`: DuckDB refuses a second connection of a process to a
    file unless both passed the same, and the user may have one.
    """

    def __init__(self, path: Path, *, storage_version: str = STORAGE_VERSION, wait_seconds: float = 60.0) -> None:
        self.path = path.absolute()
        self._storage_version = storage_version
        self._wait_seconds = wait_seconds
        self._same = SameFile(self.path)
        self.stop = threading.Event()
        """When it is set, another process is not waited for much longer."""
        self.on_waiting: Callable[[str], None] = lambda _: None
        """Told who is waited for, from the fifth second of a wait on."""
        with _turns_guard:
            self._turns = _turns.setdefault(self.path.resolve(), _Turns())

    @property
    def compression(self) -> Compression:
        """Of what a transaction writes. Shared by all who write to the file in this process."""
        return self._turns.compression

    def exists(self) -> bool:
        """Whether there is a file. Raises DestinationError if it was there before, or its WAL is there alone."""
        return self._same.exists()

    @contextmanager
    def open(self, *, wait_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for the `with` block. Raises DestinationUnavailable, DestinationError."""
        connection = self._connect(self._wait_seconds if wait_seconds is None else wait_seconds)
        try:
            for setting in (*_SETTINGS, self._memory_limit()):
                connection.execute(setting)
            yield connection
        except duckdb.Error as error:
            raise explain(error, self.path) from None
        finally:
            with self._turns.opening:
                connection.close()
                self._turns.connections -= 1

    def limit_reading(self, connection: duckdb.DuckDBPyConnection, columns: int) -> None:
        """Gives `connection`, which reads rows of so many columns once, less memory, unless another one is open."""
        limit = reading_limit(self.path, columns)
        with self._turns.opening, suppress(duckdb.Error):  # it has more, then
            if limit is not None and self._turns.connections == 1:
                connection.execute(limit)

    @contextmanager
    def alone(self, *, wait_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `open`, while no other thread of this process writes. Raises as `open`."""
        with self._turns.writing, self.open(wait_seconds=wait_seconds) as connection:
            yield connection

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in a transaction that is committed at the end of the block, and rolled back if that fails.

        `tables` is how many it changes, which decides how much memory DuckDB may take.
        The writers of one file in this process take turns, as DuckDB would otherwise refuse the later commit.
        """
        self._turns.most_tables = max(self._turns.most_tables, tables)
        with self.alone() as connection, self.compression.transaction(connection):
            connection.execute("BEGIN TRANSACTION")
            before = self._same.written()
            try:
                yield connection
                if self._same.written() != before or self.compression.waiting >= _CHECKPOINT_BYTES:
                    connection.execute(_CHECKPOINT_AT_ONCE)
            except BaseException:
                # A statement that failed may have ended the transaction.
                with suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            if not wal_path(self.path).exists():
                self.compression.checkpointed()
            connection.execute(_CHECKPOINT)  # other connections of this process may share the setting

    def _memory_limit(self) -> str:
        return memory_limit(self.path, _MEMORY_MB + _MEMORY_MB_PER_TABLE * self._turns.most_tables)

    def merge(self) -> bool:
        """Takes back the space of deleted rows and empties the WAL. False if it could not be done; nothing is lost."""
        try:
            with self.alone(wait_seconds=0.0) as connection:
                self.compression.checkpoint(connection)
                # A checkpoint of a database without changes does nothing, not even merge.
                connection.execute(text(note_merge(database_of(connection))))
                connection.execute("SET max_vacuum_tasks = 100")
                self.compression.checkpoint(connection, merges=True)
        except DestinationUnavailable:
            return False
        except EtlError as error:
            _log.info("the space of deleted rows was not taken back: %s", error)
            return False
        return True

    def _connect(self, wait_seconds: float) -> duckdb.DuckDBPyConnection:
        if not self.path.parent.is_dir():
            raise DestinationError(
                f"{self.path} cannot be created: its directory does not exist", hint=f"mkdir -p {self.path.parent}"
            )
        give_up_at = time.monotonic() + wait_seconds
        say_at = time.monotonic() + _SAY_AFTER
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._turns.opening:
                    if not self._same.exists():
                        self._create()
                    connection = duckdb.connect(self.path)
                    self._same.opened()
                    self._turns.connections += 1
                    return connection
            except duckdb.Error as error:
                if not is_held(error):
                    raise explain(error, self.path) from None
                if time.monotonic() + pause > give_up_at:
                    waited = "" if self.stop.is_set() else f" for longer than {wait_seconds:g} s"
                    raise DestinationUnavailable(
                        f"{self.path} is held by {holder(error)}{waited}",
                        hint="close that connection; reading processes should open the file only while they query it",
                    ) from None
                if time.monotonic() >= say_at:
                    say_at += _SAY_EVERY
                    self.on_waiting(f"{self.path} is held by {holder(error)}: waiting until it is closed there")
            if self.stop.wait(pause):
                give_up_at = min(give_up_at, time.monotonic() + _STOP_PATIENCE)
                time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _create(self) -> None:
        """Makes the file, unless another process does at this moment."""
        with duckdb.connect() as memory:
            try:
                memory.execute(text(create_file(self.path, self._storage_version)))
            except duckdb.Error:
                if not self.path.exists():
                    raise
