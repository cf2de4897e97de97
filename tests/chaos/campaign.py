"""One seed from beginning to end: rounds of faults on `etl run` processes, then the audit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import duckdb
import psycopg
from psycopg import sql

from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.state.table_state import TableState
from etl_core.testing.database import Database, create_database
from etl_core.testing.postgres import PostgresServer
from tests.chaos.auditor import Auditor, Lost
from tests.chaos.backups import Backups
from tests.chaos.history import SLOT, History
from tests.chaos.plan import Fault, Round, plan_rounds
from tests.chaos.workload import KEYED, Workload, change_each, create_tables
from tests.silent_proxy import SilentProxy

_T = TypeVar("_T")

PATIENCE = 300.0
"""Seconds until a condition that must come is taken for one that never will."""
_LAST_TRIES = 6
_ROOM = 1 << 16
"""Bytes that a file may still grow by on a full disk."""
_LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY));"
    " os.execv(sys.argv[2], sys.argv[2:])"
)
"""Runs a command whose files cannot grow beyond a size: the same calls fail as on a full disk."""
PUBLICATION = "chaos_pub"


@dataclass(slots=True)
class Result:
    """What a seed showed. `stopped` are tables that an error had stopped at the end, cured by `etl resync`."""

    seed: int
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    invariant_checks: int = 0
    history_checks: int = 0
    """Tables that were compared with what the source was at their watermark."""
    stopped: list[str] = field(default_factory=list)
    rows: int = 0


class Campaign:
    """A database, a DuckDB file and a state store of their own, on a server that the campaign may crash."""

    def __init__(self, server: PostgresServer, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self.seed = seed
        self._say = say
        self._server = server
        self._directory = directory
        self._file = directory / "chaos.duckdb"
        self._store = directory / "state.db"
        self._backups = Backups(self._file, self._store)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._database: Database = create_database(server)
        self._pipeline = "chaos"
        self._workload = Workload(self._database.dsn, seed)
        state = f"sqlite:///{self._store}"
        self.auditor = Auditor(self._database.dsn, self._file, state, self._pipeline)
        self._history = History(self._database.execute)
        self._trusted: dict[str, Lsn] = {}
        """By table: the LSN since when all its changes are published again."""
        self._proxy = SilentProxy(server.port)
        self._state = state

    def run(self, rounds: int) -> Result:
        """Raises Lost, or TimeoutError if something never comes to an end."""
        result = Result(self.seed)
        began = time.monotonic()
        create_tables(self._database.execute)
        self._history.begin()
        self._database.execute(
            f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES WITH (publish_via_partition_root = true)"
            if not any(step.fault is Fault.PUBLICATION for step in plan_rounds(self.seed, rounds))
            else f"CREATE PUBLICATION {PUBLICATION} FOR TABLE account, entry, plain_a, plain_b, wide, parted"
            " WITH (publish_via_partition_root = true)"
        )
        try:
            with self._proxy:
                self._write_config()
                for number, step in enumerate(plan_rounds(self.seed, rounds), 1):
                    text = f"{step.fault.value}{f' with {step.failpoints}' if step.failpoints else ''}"
                    self._say(f"seed {self.seed}, round {number}: {text}")
                    result.faults.append(text)
                    self._play(step)
                    self._end_processes()
                    self._look(result)
                    if number == 1:
                        self._backups.take()
                self._audit(result)
        finally:
            self._end_processes()
            self._database.drop()
        result.seconds = time.monotonic() - began
        return result

    # --- rounds -----------------------------------------------------------------------------------------------

    def _play(self, step: Round) -> None:
        if step.fault is Fault.OLD_DESTINATION:
            self._backups.restore_destination()
        if step.fault is Fault.OLD_STORE:
            self._backups.restore_store()
        is_full = step.fault is Fault.FULL
        process = self._start("run", failpoints=step.failpoints, is_full=is_full)
        self._until_streaming(process)
        if step.fault is Fault.OLD_STORE and process.poll() == 1:  # refused, with the hint to do this
            self._command("teardown", "--yes")
            process = self._start("run", failpoints=step.failpoints)
            self._until_streaming(process)
        self._workload.write(step.transactions)
        if step.settles and not is_full:
            self._until_confirmed(process)
        with self._fault(step, process):
            self._workload.write(step.transactions)

    @contextlib.contextmanager
    def _fault(self, step: Round, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """What happens before, while and after the writers write once more."""
        match step.fault:
            case Fault.KILL | Fault.SILENCE:
                if step.fault is Fault.SILENCE:
                    self._proxy.fall_silent()
                    yield
                process.kill()
                process.wait()
                if step.fault is Fault.KILL:
                    yield
            case Fault.TERMINATE:
                process.send_signal(signal.SIGTERM)
                yield
                self._wait(process)
            case Fault.STOPPED_PROCESS:
                process.send_signal(signal.SIGSTOP)
                self._cut()
                other = self._start("run")
                yield
                process.send_signal(signal.SIGCONT)
                self._until_streaming(process, other)
            case Fault.SERVER_STOP | Fault.SERVER_KILL:
                self._server.crash(signal.SIGKILL if step.fault is Fault.SERVER_KILL else signal.SIGQUIT)
                yield
            case Fault.CUT:
                self._cut()
                yield
                self._cut()
            case Fault.TWO_CONSUMERS:
                self._start("run", failpoints="batch_decoded:delay:0.3:2")
                yield
                process.kill()
            case Fault.DESTINATION_HELD:
                with self._held_destination():
                    yield
            case Fault.STORE_HELD:
                with self._held_store():
                    yield
            case Fault.RESYNC:
                self._command("resync", f"public.{step.table}")
                yield
            case Fault.PAUSE:
                self._command("pause", f"public.{step.table}")
                yield
                self._command("resume", f"public.{step.table}")
            case Fault.PUBLICATION:
                self._alter_publication("DROP", step.table)
                delete = sql.SQL("DELETE FROM {} WHERE id <= 3").format(sql.Identifier(step.table))
                self._database.execute(delete)
                yield
                self._alter_publication("ADD", step.table)
                self._distrust(step.table)
            case Fault.PUBLISH:
                self._database.execute(f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')")
                yield
                everything = "insert, update, delete, truncate"
                self._database.execute(f"ALTER PUBLICATION {PUBLICATION} SET (publish = '{everything}')")
                self._distrust("account", "entry", *KEYED)
            case Fault.DELAYED:
                with self._proxy.late(0.02, 0.2):
                    yield
                    self._until_confirmed(process)
            case _:
                yield

    def _distrust(self, *tables: str) -> None:
        """Changes of these tables were not published up to now."""
        [(lsn,)] = self._database.execute("SELECT pg_current_wal_insert_lsn()::text")
        self._trusted.update(dict.fromkeys(tables, Lsn.parse(lsn)))

    def _look(self, result: Result) -> None:
        """What a reader of the destination sees now, while no process runs."""
        result.invariant_checks += self.auditor.check_invariant(self._trusted)
        result.history_checks += self.auditor.check_history(self._history, self._trusted)

    def _cut(self) -> None:
        self._database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def _alter_publication(self, verb: str, table: str) -> None:
        command = "ALTER PUBLICATION {} DROP TABLE {}" if verb == "DROP" else "ALTER PUBLICATION {} ADD TABLE {}"
        with contextlib.suppress(psycopg.errors.UndefinedObject, psycopg.errors.DuplicateObject):
            self._database.execute(sql.SQL(command).format(sql.Identifier(PUBLICATION), sql.Identifier(table)))

    @contextlib.contextmanager
    def _held_destination(self) -> Iterator[None]:
        """The file is open in this process, so that no other can open it; if a process lets us have it at all."""
        try:
            held = self._until(lambda: _opened(self._file), "the destination's file is free")
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            if held is not None:
                held.close()

    @contextlib.contextmanager
    def _held_store(self) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(self._store, timeout=PATIENCE)) as store:
            store.isolation_level = None
            store.execute("BEGIN IMMEDIATE")
            yield
            store.execute("ROLLBACK")

    # --- processes --------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        parts = urlsplit(self._database.dsn)
        address = parts.netloc.rpartition("@")[0] + f"@127.0.0.1:{self._proxy.port}"
        config = {
            "pipeline": self._pipeline,
            "source": {"dsn": urlunsplit(parts._replace(netloc=address)), "publication": PUBLICATION},
            "destination": {"type": "duckdb", "path": str(self._file)},
            "state": {"url": self._state},
            "batch": {"max_age": 0.2},
            "copy": {"workers": 2, "connections_per_table": 2},
        }
        (self._directory / "etl.yaml").write_text(json.dumps(config))  # JSON is YAML

    def _start(self, *arguments: str, failpoints: str = "", is_full: bool = False) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("ETL_FAILPOINTS", None)
        if failpoints:
            environment["ETL_FAILPOINTS"] = failpoints
        command = [*self._etl(arguments[0]), *arguments[1:]]
        if is_full:
            largest = max(path.stat().st_size for path in self._directory.iterdir() if path.is_file())
            command = [sys.executable, "-c", _LIMITED, str(largest + _ROOM), *command]
        with (self._directory / "etl.log").open("ab") as log:
            log.write(f"--- etl {' '.join(arguments)} {failpoints}\n".encode())
            log.flush()
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _etl(self, command: str) -> list[str]:
        return [sys.executable, "-m", "etl_core.cli", command, "-c", str(self._directory / "etl.yaml")]

    def _command(self, *arguments: str) -> int:
        """Runs `etl` to its end; its exit status. It may refuse: a table may have been dropped, or be copied now."""
        process = self._start(*arguments)
        self._wait(process)
        return process.returncode

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"etl does not end; see {self._directory / 'etl.log'}") from None

    def _end_processes(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._processes.clear()
        self._database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def _until_streaming(self, *processes: subprocess.Popen[bytes]) -> None:
        """Waits until one of them, or any process, has the main slot; or all of them have ended."""
        query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"

        def is_streaming() -> bool:
            if all(process.poll() is not None for process in processes):
                return True
            return (True,) in self._database.execute(query, [f"etl_{self._pipeline}"])

        self._until(is_streaming, "a process streams")

    def _until_confirmed(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until what is committed now is confirmed to the server, or the process has ended."""
        [(lsn,)] = self._database.execute("SELECT pg_current_wal_insert_lsn()::text")
        query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"

        def is_confirmed() -> bool:
            if process.poll() is not None:
                return True
            return (True,) in self._database.execute(query, [lsn, f"etl_{self._pipeline}"])

        self._until(is_confirmed, f"what was committed before {lsn} is durable")

    def _until(self, look: Callable[[], _T], what: str) -> _T:
        deadline = time.monotonic() + PATIENCE
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"this did not happen: {what}; see {self._directory / 'etl.log'}")
            time.sleep(0.05)

    # --- the audit --------------------------------------------------------------------------------------------

    def _audit(self, result: Result) -> None:
        """Catches up without faults and compares what streams; then cures what was stopped, and compares all."""
        change_each(self._database.execute)
        self._command("run", "--until-caught-up")
        self._look(result)
        tables = self.auditor.tables()
        self._compare([table.name for table in tables if table.state is TableState.READY], "before any cure")
        for _ in range(_LAST_TRIES):
            if all(table.state is TableState.READY for table in tables):
                break
            stopped: list[str] = []
            for table in tables:
                if table.state is TableState.READY:
                    continue
                if table.state is TableState.ERRORED and table.error is None:
                    raise Lost(f"{table.name} was stopped without an error")
                if table.state in (TableState.ERRORED, TableState.PAUSED):
                    result.stopped.append(f"{table.name}: {table.error}")
                    stopped.append(str(table.name))
            if stopped:
                self._command("resync", *stopped)
            self._command("run", "--until-caught-up")
            tables = self.auditor.tables()
        stuck = [
            f"{table.name} {table.state.name}: {table.error}" for table in tables if table.state is not TableState.READY
        ]
        if stuck:
            raise Lost(f"etl resync did not cure {'; '.join(stuck)}")
        self._compare([table.name for table in tables], "after etl resync")
        self._command("run", "--until-caught-up")  # the stream passes where the last copies were made
        self._look(result)
        self._check_all_there(tables=[str(table.name) for table in tables])

    def _compare(self, names: Sequence[TableName], when: str) -> None:
        different = self.auditor.compare(names)
        if different:
            raise Lost(f"{when}: {'; '.join(different)}; see {self._directory / 'etl.log'}")

    def _check_all_there(self, tables: Sequence[str]) -> None:
        published = self._database.execute(
            "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s", [PUBLICATION]
        )
        missing = {name for (name,) in published} - set(tables)
        if missing:
            raise Lost(f"published, but not replicated: {', '.join(sorted(missing))}")
        rows = self._database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
        left = {name for (name,) in rows} - {f"etl_{self._pipeline}", SLOT}
        if left and self._backups.is_store_restored:  # younger slots are not known to it, but they must be named
            told = (self._directory / "etl.log").read_text(errors="replace")
            left = {name for name in left if f"replication slot {name} is not one of" not in told}
        if left:
            raise Lost(f"replication slots are left behind: {left}")


def _opened(path: Path) -> duckdb.DuckDBPyConnection | None:
    try:
        return duckdb.connect(str(path))
    except duckdb.Error:
        return None
