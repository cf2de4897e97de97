"""From a commit on the source to its visibility in DuckDB, while 50 or 500 transactions a second are made.

Each transaction inserts one row and updates another. Its time begins when COMMIT has returned to the client that made
it, and ends when the stream says that the batch with it is durable: by then the DuckDB file is closed again, and the
next process that opens it sees the row. One client writes, so the n-th row inserted is in the first batch that
brings the rows inserted to n. That the batch is really visible is proven every two seconds by this process, which opens
the file, read-only, and must find every row that had been reported before; a reader keeps the writer out for a few
milliseconds, so reading for every row would measure the readers.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from benchmarks.backlog import make_backlog
from benchmarks.measuring import child_command
from benchmarks.pipelines import PIPELINE, database_file
from benchmarks.server import Kind, Server
from benchmarks.session import Result, Session
from benchmarks.workload import create_workload
from etl_core.identifiers import main_slot_name

_BASE = 100_000
RATES = (50, 500)
"""Transactions a second."""
_SECONDS = 60
_READ_EVERY = 2.0
_PATIENCE = 300.0


def latency(session: Session) -> Result:
    """At each rate over TCP and TLS; the keys of 50 a second over TCP name neither."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for kind in session.kinds:
        if kind == "unix":
            continue  # waits as TCP does
        for rate in RATES:
            measured = _follow(session, kind, rate)
            key = f"latency{load_name(kind, rate)}"
            figures |= {f"{key}_p{p}_ms": value for p, value in measured.pop("percentiles").items()}
            details[key] = measured
    return Result(figures, details)


def load_name(kind: Kind, rate: int) -> str:
    """What a figure's key says of the load: nothing of TCP, and nothing of 50 a second over it."""
    return {("tcp", 50): "", ("tcp", 500): "_500"}.get((kind, rate), f"_{rate}_{kind}")


def _follow(session: Session, kind: Kind, rate: int) -> dict[str, Any]:
    """What was measured at one rate over one kind of connection; `percentiles` in milliseconds, by 50 and 99."""
    base = min(_BASE, session.rows)
    server, database = session.server_for([kind]), f"latency_{rate}_{kind}"
    create_workload(server, database, base=base)
    backlog = make_backlog(server, database, session.directory, lambda: 0)
    server.copy_slot(database, backlog.master, main_slot_name(PIPELINE))
    spec = {"dsn": server.dsn(database, kind), "directory": str(backlog.directory)}
    command = child_command("follow", spec)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdin is not None
        flushes = _Flushes(stream)
        load = _Load(server, database, base, rate, int(rate * (session.seconds or _SECONDS)))
        committed = _commit_steadily(load, database_file(backlog.directory), flushes)
        flushes.wait_for(len(committed))
        stream.stdin.close()
        flushes.thread.join()
    server.drop_slot(database, main_slot_name(PIPELINE))
    server.drop_slot(database, backlog.master)
    milliseconds = (flushes.visible_at(len(committed)) - np.array(committed)) * 1000
    return {
        "percentiles": {p: float(np.percentile(milliseconds, p)) for p in (50, 99)},
        "transactions": len(committed),
        "seconds": committed[-1] - committed[0],
        "max_ms": float(milliseconds.max()),
        "flushes": len(flushes.times),
        "flush_ms_median": float(np.median(flushes.seconds)) * 1000,
        "reads_that_proved_it": flushes.proofs,
    }


@dataclass(frozen=True, slots=True)
class _Load:
    """`transactions`, `rate` a second, on a table that had `base` rows."""

    server: Server
    database: str
    base: int
    rate: int
    transactions: int


class _Flushes:
    """What the streaming process says, read by a thread of its own."""

    def __init__(self, stream: subprocess.Popen[str]) -> None:
        self.times: list[float] = []
        self.inserted: list[int] = []
        self.seconds: list[float] = []
        self.proofs = 0
        self._stream = stream
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        if not self._ready.wait(_PATIENCE) or stream.poll() is not None:
            raise RuntimeError("the stream did not start")

    @property
    def rows(self) -> int:
        """How many inserted rows are visible."""
        return self.inserted[-1] if self.inserted else 0

    def wait_for(self, rows: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.rows >= rows, _PATIENCE):
                raise RuntimeError(f"{self.rows} of {rows} rows became visible")

    def visible_at(self, rows: int) -> Any:
        """For each of the first `rows` rows when it became visible."""
        return np.array(self.times)[np.searchsorted(self.inserted, np.arange(1, rows + 1))]

    def _listen(self) -> None:
        assert self._stream.stdout is not None
        for line in self._stream.stdout:
            said = json.loads(line)
            with self._changed:
                if "at" in said:
                    self.inserted.append(self.rows + said["inserted"])
                    self.times.append(said["at"])
                    self.seconds.append(said["seconds"])
                    self._changed.notify_all()
            self._ready.set()


def _commit_steadily(load: _Load, file: Path, flushes: _Flushes) -> list[float]:
    """When the COMMIT of each transaction returned."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(1)
    proving = pool.submit(_prove, load.base, file, flushes, stop)
    committed = []
    with load.server.connect(load.database) as connection:
        started = time.monotonic()
        for number in range(load.transactions):
            time.sleep(max(0.0, started + number / load.rate - time.monotonic()))
            with connection.transaction():
                new, old = load.base + number + 1, number * 7919 % load.base + 1
                connection.execute("INSERT INTO orders SELECT * FROM make_orders(%(id)s, %(id)s)", {"id": new})
                connection.execute("UPDATE orders SET amount = amount + 1 WHERE id = %s", (old,))
            committed.append(time.monotonic())
            if proving.done():
                break  # it failed
    stop.set()
    proving.result()
    pool.shutdown()
    return committed


def _prove(base: int, file: Path, flushes: _Flushes, stop: threading.Event) -> None:
    while not stop.wait(_READ_EVERY):
        before = flushes.rows
        seen: int | None = None
        while seen is None:
            with suppress(duckdb.IOException), duckdb.connect(file, read_only=True) as connection:
                seen = connection.execute("SELECT count(*) FROM public.orders").fetchall()[0][0] - base
            time.sleep(0.002)
        if seen < before:
            raise RuntimeError(f"{before} rows were reported visible, a reader found {seen}")
        flushes.proofs += 1
