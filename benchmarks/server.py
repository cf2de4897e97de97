"""The PostgreSQL that is measured against, and its own client `pg_recvlogical` as the reference.

Settings are those of a small production server, equal for both sides: nothing that runs by itself (checkpoints,
autovacuum) falls into a run, and the WAL is kept. It is on the disk, but does not wait for it (fsync off).
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import psutil
from psycopg import sql

from benchmarks.measuring import Run
from etl_core.lsn import Lsn
from etl_core.silence import WatchedConnection
from etl_core.source.slot import drop_slot
from etl_core.testing.postgres import (
    Database,
    PostgresServer,
    create_database,
    find_binaries,
    find_tls_binaries,
    temporary_postgres,
)

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "jit": "off",
}
PUBLICATION = "bench"
_PATIENCE = 3600.0
"""Seconds that a backlog may take to be made."""
Kind: TypeAlias = Literal["tcp", "tls", "unix"]
KINDS: tuple[Kind, ...] = ("tcp", "tls", "unix")


@dataclass(frozen=True, slots=True)
class Server:
    """The running server. Every call opens the connection it needs."""

    postgres: PostgresServer

    def database(self, name: str) -> Database:
        return create_database(self.postgres, name)

    def dsn(self, database: str, kind: Kind = "tcp") -> str:
        """Over TCP to 127.0.0.1, the same with TLS, or over the unix socket."""
        ways = {"tcp": self.postgres.dsn, "tls": self.postgres.tls_dsn, "unix": self.postgres.local_dsn}
        return ways[kind](database)

    def connect(self, database: str) -> WatchedConnection:
        connection = WatchedConnection.connect(self.postgres.local_dsn(database), autocommit=True)
        connection.silence = connection.statement_silence = _PATIENCE
        return connection

    def current_lsn(self) -> Lsn:
        with self.connect("postgres") as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return Lsn.parse(row[0])

    def copy_slot(self, database: str, master: str, slot: str) -> None:
        """Makes `slot` stand where `master` stands, so that the same backlog can be read again."""
        with self.connect(database) as connection:
            drop_slot(connection, slot)
            connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (master, slot))

    def drop_slot(self, database: str, slot: str) -> None:
        with self.connect(database) as connection:
            drop_slot(connection, slot)

    def backend_cpu(self) -> float:
        """CPU seconds of all backends that have ended: those of one run, when read before and after it."""
        pid = int((self.postgres.data_dir / "postmaster.pid").read_text().splitlines()[0])
        times = psutil.Process(pid).cpu_times()
        return float(times.children_user + times.children_system)

    def wait_for_backends(self, database: str) -> None:
        """Waits until no client is left in `database`, so that `backend_cpu` has all of them."""
        count = sql.SQL("SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()")
        with self.connect("postgres") as connection:
            while True:
                row = connection.execute(count.format(sql.Literal(database))).fetchone()
                if row is None or row[0] == 0:
                    return
                time.sleep(0.01)

    def receive(self, database: str, master: str, until: Lsn, rows: int, kind: Kind = "tcp") -> Run:
        """`pg_recvlogical -f /dev/null` over the backlog from `master` to `until`."""
        self.copy_slot(database, master, "reference")
        command = [
            str(self.postgres.binaries.path("pg_recvlogical")),
            f"--dbname={self.dsn(database, kind)}",
            "--slot=reference",
            "--start",
            "--no-loop",
            "--option=proto_version=1",
            f"--option=publication_names={PUBLICATION}",
            f"--endpos={until}",
            "--file=/dev/null",
            "--fsync-interval=0",
            "--status-interval=10",
        ]
        server_before, cpu_before, started = self.backend_cpu(), _children_cpu(), time.monotonic()
        subprocess.run(command, check=True)
        seconds, cpu = time.monotonic() - started, _children_cpu() - cpu_before
        self.wait_for_backends(database)
        server_cpu = self.backend_cpu() - server_before
        self.drop_slot(database, "reference")
        return Run(rows, seconds, cpu, server_cpu)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def running_server() -> Iterator[Server]:
    # What libpq reads from the environment would reach pg_recvlogical too.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    with temporary_postgres(find_binaries(), settings=SETTINGS, trust=True) as postgres:
        yield Server(postgres)


@contextmanager
def running_tls_server() -> Iterator[Server]:
    """One that takes TLS as well, from a PostgreSQL that was built with it: another version than the first, perhaps."""
    binaries = find_tls_binaries(programs=["pg_recvlogical"])
    with temporary_postgres(binaries, settings=SETTINGS, trust=True, tls="offered") as postgres:
        yield Server(postgres)
