"""A lab for the engine: one database, one DuckDB file and one state store, and the proof that they are equal.

Tests wait for what an `Observer` is told, never for time to pass. Equality is shown twice: by the engine's own `verify`
and by plain SELECTs on both sides that share no code with it.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from psycopg import sql

from etl_core.config import BatchConfig, CopyConfig, DestinationConfig, PipelineConfig, SourceConfig, StateConfig
from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.pipeline import Pipeline
from etl_core.replication import failpoints
from etl_core.replication.observer import Flush, Observer
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database
from etl_core.testing.scripted_destination import Fault, ScriptedDestination

PATIENCE = 300.0
"""Seconds until a test that waits for something gives up; nothing that works comes near it."""


class Watch(Observer):
    """Remembers everything the engine told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.told = threading.Condition()
        self.states: list[tuple[str, TableState]] = []
        self.applied: list[tuple[str, Lsn | None]] = []
        """From which watermark on, None: passed over."""
        self.flushes: list[Flush] = []
        self.errors: dict[str, EtlError] = {}
        self.retries: list[EtlError] = []
        self.waiting: list[str] = []
        self.notices: list[str] = []
        self.stored: Callable[[], Lsn] = lambda: ZERO

    def on_state(self, table: TableName, state: TableState) -> None:
        with self.told:
            self.states.append((table.name, state))
            self.told.notify_all()

    def on_activated(self, table: TableName, watermark: Lsn) -> None:
        with self.told:
            self.applied.append((table.name, watermark))

    def on_deactivated(self, table: TableName) -> None:
        with self.told:
            self.applied.append((table.name, None))

    def on_flush(self, flush: Flush) -> None:
        with self.told:
            self.flushes.append(flush)
            self.told.notify_all()

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        with self.told:
            self.errors[table.name] = error
            self.told.notify_all()

    def on_retry(self, error: EtlError, wait: float) -> None:  # noqa: ARG002
        with self.told:
            self.retries.append(error)
            self.told.notify_all()

    def on_notice(self, sentence: str) -> None:
        with self.told:
            self.notices.append(sentence)
            self.told.notify_all()

    def on_waiting(self, reason: str) -> None:
        with self.told:
            self.waiting.append(reason)
            self.told.notify_all()

    def until(self, happened: Callable[[], bool], what: str) -> None:
        """Waits until `happened`, which looks at what was told."""
        with self.told:
            if not self.told.wait_for(happened, PATIENCE):
                raise AssertionError(f"{what} did not happen; told: {self.states[-9:]}, {self.errors}, {self.retries}")

    def until_state(self, table: str, state: TableState, *, times: int = 1) -> None:
        self.until(lambda: self.states.count((table, state)) >= times, f"{table} {state.name}")

    def until_ready(self, *tables: str) -> None:
        for table in tables:
            self.until_state(table, TableState.READY)

    def until_flushed(self, lsn: Lsn) -> None:
        """Waits until all that was committed before `lsn` is durable.

        The server may write WAL of its own between our commit and `lsn`: no flush comes to that, only what is stored.
        """
        for _ in range(int(PATIENCE)):
            with self.told:
                if self.told.wait_for(lambda: any(flush.end_lsn >= lsn for flush in self.flushes), 1.0):
                    return
            if self.stored() >= lsn:
                return
        raise AssertionError(
            f"the flush of {lsn} did not happen; told: {self.states[-9:]}, {self.errors}, {self.retries}"
        )


class Watched(Pipeline):
    """A pipeline whose observer is a Watch."""

    observer: Watch


class Running:
    """A call in a thread of its own. `join` gives its result or raises what it raised."""

    def __init__(self, pipeline: Pipeline, call: Callable[[], Any]) -> None:
        self.pipeline = pipeline
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="test-run", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the engine did not come to an end"
        if self.error is not None:
            raise self.error
        return self.result

    def stop(self) -> Any:
        self.pipeline.stop.set()
        return self.join()


class Lab:
    """One pipeline over `database`, its files in `directory`.

    While this process alone works on the DuckDB file, the lab has it open as well: it takes DuckDB 30 ms of CPU time to
    open a file that nobody has open, a third of such a test. The proof is read from a file that was closed.
    """

    name = "lab"

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self._file = directory / "lab.duckdb"
        self._held = contextlib.ExitStack()
        self._alone = True
        self.config = PipelineConfig(
            f"{self.name}_{database.name[-6:]}",
            SourceConfig("lab_pub", dsn=database.dsn),
            DestinationConfig("duckdb", {"path": str(self._file)}),
            StateConfig(f"sqlite:///{directory / 'state.db'}"),
            BatchConfig(max_age=0.2),
            CopyConfig(workers=2, connections_per_table=2),
        )
        self._open = contextlib.ExitStack()

    @property
    def path(self) -> Path:
        """The DuckDB file, which the lab does not have open when it is asked for."""
        self._held.close()
        return self._file

    def _hold(self) -> None:
        if self._alone and self._file.exists():
            self._held.close()
            self._held.enter_context(DatabaseFile(self._file).open())

    # --- the source -------------------------------------------------------------------------------------------

    def execute(self, query: str, params: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        return self.database.execute(query, params)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection for transactions; closed with the lab."""
        return self._open.enter_context(contextlib.closing(psycopg.connect(self.database.dsn)))

    def publish(self, tables: str = "ALL TABLES") -> None:
        self.execute(f"CREATE PUBLICATION lab_pub FOR {tables} WITH (publish_via_partition_root = true)")

    def slots(self) -> set[str]:
        rows = self.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
        return {name for (name,) in rows}

    # --- the engine -------------------------------------------------------------------------------------------

    def pipeline(self, *, destination: Destination | None = None, store: Any = None, **changes: Any) -> Watched:
        """A new process's view of the pipeline; closed with the lab."""
        watch = Watch()
        pipeline = Watched(replace(self.config, **changes), observer=watch, destination=destination, store=store)

        def stored() -> Lsn:
            progress = pipeline.store.progress()
            return ZERO if progress is None else progress.flushed_lsn

        watch.stored = stored
        self._open.callback(pipeline.close)
        pipeline.prepare()
        self._hold()
        return pipeline

    @contextlib.contextmanager
    def unprepared(self) -> Iterator[Pipeline]:
        """A process that decides something and replicates nothing."""
        with Pipeline(self.config) as pipeline:
            pipeline.store.migrate()
            yield pipeline

    @contextlib.contextmanager
    def running(self, pipeline: Pipeline, call: Callable[[], Any] | None = None) -> Iterator[Running]:
        """`pipeline.run()`, or `call`, beside the block; stopped at its end, and what it raised is raised."""
        running = Running(pipeline, call or pipeline.run)
        try:
            yield running
        except BaseException as error:
            if running.error is not None:
                error.add_note(f"meanwhile the engine ended with {running.error!r}")
            raise
        finally:
            pipeline.stop.set()
            running._thread.join(PATIENCE)
        running.join()

    def synced(self, **changes: Any) -> Watched:
        """A prepared pipeline all of whose tables are copied and streaming."""
        pipeline = self.pipeline(**changes)
        for outcome in pipeline.sync():
            assert not isinstance(outcome, EtlError), outcome
        pipeline.stream(until=pipeline.current_lsn())
        return pipeline

    def caught_up(self, pipeline: Pipeline) -> Pipeline:
        self._until_released(pipeline)
        pipeline.stop.clear()
        pipeline.stream(until=pipeline.current_lsn())
        return pipeline

    def _until_released(self, pipeline: Pipeline) -> None:
        """The server may take a moment to see that a process was killed."""
        query = "SELECT pg_sleep(0.1) FROM pg_replication_slots WHERE slot_name = %s AND active"
        for _ in range(int(PATIENCE * 10)):
            if not self.execute(query, [pipeline.source.main_slot]):
                return
        raise AssertionError("somebody still streams")

    def until_stored(self, pipeline: Pipeline, lsn: Lsn) -> None:
        """Waits until a stream in this process has stored progress of at least `lsn`."""
        confirmed = threading.Event()
        with failpoints.activated(failpoints.CONFIRMED, confirmed.set):
            while (progress := pipeline.store.progress()) is None or progress.flushed_lsn < lsn:
                assert confirmed.wait(PATIENCE), f"the stream did not come to {lsn}"
                confirmed.clear()

    def until_confirmed(self, pipeline: Pipeline, lsn: Lsn) -> None:
        """Waits until the server may recycle the WAL before `lsn`, looking with the server's own clock."""
        query = (
            "SELECT pg_sleep(0.1), (SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
            " WHERE slot_name = %s)"
        )
        for _ in range(int(PATIENCE * 10)):
            if self.execute(query, [str(lsn), pipeline.source.main_slot])[0][1]:
                return
        raise AssertionError(f"the server was not told that {lsn} is durable")

    def write_config(self) -> Path:
        """This pipeline as a file, for other processes."""
        self._alone = False
        file = self.path.with_name("etl.yaml")
        file.write_text(
            json.dumps(  # JSON is YAML
                {
                    "pipeline": self.config.pipeline,
                    "source": {"dsn": self.database.dsn, "publication": "lab_pub"},
                    "destination": {"type": self.config.destination.type, **self.config.destination.options},
                    "state": {"url": self.config.state.url},
                    "batch": {"max_age": self.config.batch.max_age, "max_rows": self.config.batch.max_rows},
                    "copy": {"workers": 2, "connections_per_table": 2},
                    "write_mode": self.config.write_mode,
                    "schema_changes": self.config.policy.schema_changes,
                    "recopy": self.config.policy.recopy,
                }
            )
        )
        return file

    def process(
        self, *arguments: str, failpoint: str | None = None, module: str = "etl_core.cli"
    ) -> subprocess.Popen[bytes]:
        """The `etl` command on this pipeline, in a process of its own."""
        file = self.write_config()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if failpoint is not None:
            environment["ETL_FAILPOINTS"] = failpoint
        with self.path.with_name("etl.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, arguments[0], "-c", str(file), *arguments[1:]],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self._open.callback(_end, process)
        return process

    def callback(self, close: Callable[[], object]) -> None:
        """Called when the lab is closed."""
        self._open.callback(close)

    def close(self) -> None:
        self._open.close()
        self._held.close()

    # --- the proof --------------------------------------------------------------------------------------------

    def assert_equal(self, pipeline: Pipeline | None = None, *, errored: Sequence[str] = ()) -> None:
        """Brings the destination to the source's end and proves them equal, with nothing left behind.

        Every table but those in `errored` must be READY. Nobody may write or stream meanwhile.
        """
        pipeline = pipeline or self.pipeline()
        self.caught_up(pipeline)
        statuses = pipeline.store.tables()
        others = {s.name.name: (s.state.name, s.error) for s in statuses if s.state is not TableState.READY}
        assert others.keys() == set(errored), others
        ready = [status.name for status in statuses if status.state is TableState.READY]
        different = [comparison for comparison in pipeline.verify(ready) if not comparison.is_equal]
        assert not different
        with duckdb.connect(self.path):
            for name in ready:
                self.assert_same_rows(name)
        kept = {status.sync_slot for status in pipeline.store.tables() if status.sync_slot is not None}
        assert self.slots() == {f"etl_{self.config.pipeline}"} | kept  # of tables in `errored`
        staging = self.path.with_name(self.path.name + ".staging")
        assert [file for file in staging.rglob("*") if file.is_file()] == []

    def assert_same_rows(self, name: TableName) -> None:
        """The same columns and the same rows on both sides, by SELECT alone."""
        identifier = sql.Identifier(name.namespace, name.name)
        select = sql.SQL("SELECT * FROM {}").format(identifier)
        with psycopg.connect(self.database.dsn) as source:
            ours = source.execute(select)
            columns = [column.name for column in ours.description or ()]
            expected = Counter(tuple(map(_plain, row)) for row in ours)
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        select = sql.SQL("SELECT {} FROM {}").format(names, identifier)
        with duckdb.connect(self._file) as destination:
            described = destination.execute(sql.SQL("DESCRIBE {}").format(identifier).as_string(None)).fetchall()
            rows = destination.execute(select.as_string(None)).fetchall()
        assert {row[0] for row in described} == set(columns)
        found = Counter(tuple(map(_plain, row)) for row in rows)
        missing, extra = (expected - found).most_common(3), (found - expected).most_common(3)
        assert found == expected, f"{name}: missing {missing}, extra {extra}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a reader of the DuckDB file sees, who waits while the engine opens or closes it in this process."""
        while True:
            try:
                with duckdb.connect(self._file) as destination:
                    return destination.execute(query).fetchall()
            except duckdb.Error as error:
                if "Unique file handle conflict" not in str(error):
                    raise


def _plain(value: object) -> str:
    """One spelling for what psycopg and DuckDB return for the same value."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return repr(json.loads(value))
    if isinstance(value, Decimal):  # numerics of one column have as many zeros as others in it have digits
        digits = format(value, "f")
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, datetime) and value.tzinfo is not None:
        return repr(value.astimezone(UTC))
    return repr(value)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


class Churn:
    """Writes to tables made by `create` until stopped, in a thread of its own; the same seed, the same statements.

    Inserts, updates (also of a TOASTed value, or of the key), deletes, re-inserts of deleted keys, several of them on
    one key in one transaction, and changes that are rolled back, to a savepoint or altogether.
    """

    COLUMNS = "id bigint PRIMARY KEY, n integer NOT NULL, note text, big text"

    def __init__(self, dsn: str, tables: Sequence[str], *, seed: int = 1, keys: int = 300) -> None:
        self._dsn = dsn
        self._tables = tables
        self._random = random.Random(seed)
        self._keys = keys
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"churn-{seed}", daemon=True)
        self.transactions = 0
        self.error: BaseException | None = None

    @classmethod
    def create(cls, lab: Lab, *tables: str, rows: int = 200) -> None:
        for table in tables:
            lab.execute(
                f"CREATE TABLE {table} ({cls.COLUMNS});"
                f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;"
                f"INSERT INTO {table} SELECT i, i, 'note ' || i, repeat('x' || i, 1200)"
                f" FROM generate_series(1, {rows}) i"
            )

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as connection:
                while not self._stop.is_set():
                    self._transaction(connection)
                    self.transactions += 1
                    self._stop.wait(0.003)  # leaves the machine, of two cores, to what is tested
        except BaseException as error:
            self.error = error

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction(force_rollback=self._random.random() < 0.05):
            for _ in range(self._random.randint(1, 6)):
                with connection.transaction(force_rollback=self._random.random() < 0.1):
                    self._change(connection, self._random.choice(self._tables))

    def _change(self, connection: psycopg.Connection[Any], table: str) -> None:
        draw = self._random
        key, other, number = draw.randint(1, self._keys), draw.randint(1, self._keys), draw.randint(1, 10**6)
        big = f"repeat('y{number}', 500)" if draw.random() < 0.2 else "big"
        statement = draw.choice(
            [
                f"INSERT INTO {table} VALUES ({key}, {number}, NULL, repeat('z{number}', {draw.choice([1, 500])}))"
                " ON CONFLICT DO NOTHING",
                f"UPDATE {table} SET n = {number}, big = {big} WHERE id = {key}",
                f"UPDATE {table} SET n = {number} WHERE id BETWEEN {key} AND {key} + 5",
                f"DELETE FROM {table} WHERE id = {key}",
                f"UPDATE {table} SET id = {other}, big = {big} WHERE id = {key}"
                f" AND NOT EXISTS (SELECT FROM {table} WHERE id = {other})",
                f"WITH gone AS (DELETE FROM {table} WHERE id = {key} RETURNING *)"
                f" INSERT INTO {table} SELECT id + {self._keys}, n, note, big FROM gone ON CONFLICT DO NOTHING",
            ]
        )
        connection.execute(statement.encode())


def poll(happened: Callable[[], bool], what: str) -> None:
    """Waits for something that can only be looked at, in the store or on the server."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def scripted(lab: Lab, *faults: Fault) -> ScriptedDestination:
    """The lab's DuckDB file, with faults."""
    return ScriptedDestination(DuckDBDestination(lab.path, lab.config.pipeline), faults)


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(database, tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def churn(lab: Lab) -> Callable[..., Churn]:
    """Starts a writer with `with churn("a", "b"): …`; creates no table."""
    return lambda *tables, **options: Churn(lab.database.dsn, tables, **options)


@pytest.fixture
def churned(lab: Lab) -> Callable[..., None]:
    """Creates tables for `churn`, with rows."""
    return lambda *tables, **options: Churn.create(lab, *tables, **options)
