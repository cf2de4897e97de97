"""What runs in a process of its own, so that CPU and memory are its own: `python -m benchmarks.child TASK JSON`.

The last line on standard output is a JSON object. Times leave out the start of the interpreter and of the libraries.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.pipelines import CONNECTIONS, PIPELINE, TABLE, build_pipeline, null_destination
from benchmarks.server import PUBLICATION
from etl_core.decode.decoder import decode_frames
from etl_core.identifiers import TableId, main_slot_name
from etl_core.lsn import Lsn
from etl_core.replication.assembler import Assembled, Assembler
from etl_core.replication.describe import Describer
from etl_core.replication.observer import Flush, Observer
from etl_core.source.catalog import published_tables
from etl_core.source.connection import Connection, connect
from etl_core.source.copy_ranges import all_into
from etl_core.source.replication_stream import Pause, ReplicationStream
from etl_core.source.snapshot import copy_statement, import_snapshot, plan_ranges
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import copy_table

_DECODE_ROUNDS = 5
_CAPTURED_BYTES = 64 << 20


class Meter:
    """Seconds and CPU seconds of this process, from its making to `read`."""

    def __init__(self) -> None:
        self._cpu = _cpu()
        self._started = time.monotonic()

    def read(self, rows: int) -> dict[str, float]:
        return {
            "rows": rows,
            "seconds": time.monotonic() - self._started,
            "cpu": _cpu() - self._cpu,
            "peak_rss_mb": _peak_rss_mb(),
        }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_rss_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a new process begins with its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class _Counter(Observer):
    def __init__(self) -> None:
        self.rows = 0

    def on_flush(self, flush: Flush) -> None:
        self.rows += flush.rows


def stream(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline as it is, from opening the stream until everything up to `until` is durable and confirmed."""
    directory = Path(spec["directory"])
    counter = _Counter()
    destination = null_destination(directory, spec["watermarks"]) if spec["into"] == "null" else None
    with build_pipeline(spec["dsn"], directory, destination=destination, observer=counter) as pipeline:
        pipeline.prepare()
        meter = Meter()
        pipeline.stream(until=Lsn(spec["until"]))
        measured = meter.read(counter.rows)
        compared = pipeline.verify() if spec["verify"] else []
        return {**measured, "different": [str(one.table) for one in compared if not one.is_equal]}


def verify(spec: dict[str, Any]) -> dict[str, float]:
    """A comparison of all tables with DuckDB; no stream runs meanwhile."""
    with build_pipeline(spec["dsn"], Path(spec["directory"])) as pipeline:
        pipeline.prepare()
        meter = Meter()
        compared = pipeline.verify()
        assert all(one.is_equal for one in compared)
        return meter.read(sum(one.source_rows for one in compared))


def halves(spec: dict[str, Any]) -> dict[str, float]:
    """Reads the backlog without decoding it, keeping the first 64 MB; then decodes these several times over."""
    assembled, read = _read_only(spec)
    watermarks = {TableId(int(table_id)): Lsn(0) for table_id in spec["watermarks"]}
    decode_cpu = []
    for _ in range(_DECODE_ROUNDS):
        before = _cpu()
        for piece in assembled.pieces:
            for _changes in decode_frames(piece.load(), piece.schemas, watermarks):
                pass
        decode_cpu.append((_cpu() - before) / assembled.rows * 1e6)
    return {"read_us_per_row": read, "decode_us_per_row": sorted(decode_cpu)[_DECODE_ROUNDS // 2]}


def _read_only(spec: dict[str, Any]) -> tuple[Assembled, float]:
    until = Lsn(spec["until"])
    describer = Describer(
        lambda: _connect(spec, "describe"), PUBLICATION, lambda _: None, lambda _: None, lambda _: None
    )
    replication = connect(spec["dsn"], pipeline=PIPELINE, role="stream", replication=True)
    kept: Assembled | None = None
    rows = 0
    cpu = _cpu()
    with ReplicationStream(replication, main_slot_name(PIPELINE), PUBLICATION, Lsn(0)) as replicated:
        assembler = Assembler(describer, memory_limit=1 << 40, start_lsn=Lsn(0))
        while max(assembler.end_lsn, replicated.server_lsn) < until:
            message = replicated.receive(assembler.segment, 0.2)
            assembler.scan()
            if not isinstance(message, Pause):
                assembler.on_message(message)
            if assembler.size >= _CAPTURED_BYTES:
                batch = assembler.take()
                rows += batch.rows
                kept = kept or batch
        rows += assembler.rows
        cpu = _cpu() - cpu
        kept = kept or assembler.take()
    describer.close()
    return kept, cpu / rows * 1e6


def _connect(spec: dict[str, Any], role: str) -> Connection:
    return connect(spec["dsn"], pipeline=PIPELINE, role=role)


def copy_to_arrow(spec: dict[str, Any]) -> dict[str, float]:
    """The table to record batches, which are counted and let go."""
    with _connect(spec, "catalog") as holder:
        [table] = published_tables(holder, PUBLICATION)
        snapshot = _exported_snapshot(holder)
        rows: list[int] = []

        def count(batch: pa.RecordBatch) -> None:
            rows.append(batch.num_rows)

        meter = Meter()
        copy_table(
            SnapshotConnections(lambda: _connect(spec, "copy"), snapshot),
            table,
            CONNECTIONS,
            all_into(count),
            lambda *_: None,
            threading.Event(),
        )
        return meter.read(sum(rows))


def drain(spec: dict[str, Any]) -> dict[str, float]:
    """The reference of the copy: psycopg draining COPY of the same ranges on as many connections, in threads."""
    with _connect(spec, "catalog") as holder:
        [table] = published_tables(holder, PUBLICATION)
        snapshot = _exported_snapshot(holder)
        ranges = plan_ranges(holder, table)
        rows: list[int] = []

        def work() -> None:
            with _connect(spec, "drain") as connection, connection.cursor() as cursor:
                import_snapshot(connection, snapshot)
                while ranges:
                    count = 0
                    with cursor.copy(copy_statement(table, ranges.pop())) as copy:
                        for _row in copy:
                            count += 1
                    rows.append(count)

        meter = Meter()
        threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return meter.read(sum(rows))


def _exported_snapshot(connection: Connection) -> str:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    assert row is not None
    return str(row[0])


def sync(spec: dict[str, Any]) -> dict[str, float]:
    """The initial copy as the pipeline does it: slot, snapshot, copy, staging and publishing, in DuckDB or BigQuery."""
    destination = None
    if "bigquery" in spec:
        from etl_core.destination.bigquery.destination import from_options

        destination = from_options(spec["bigquery"], PIPELINE)
    with build_pipeline(spec["dsn"], Path(spec["directory"]), destination=destination) as pipeline:
        pipeline.prepare()
        meter = Meter()
        [copied] = pipeline.sync()
        measured = meter.read(pipeline.find(TABLE).rows_copied or 0)
        if isinstance(copied, Exception):
            raise copied
        pipeline.teardown()
        return measured


class _Reporter(Observer):
    """Says on standard output, one line each, when a batch has become visible and how many rows it inserted."""

    def on_flush(self, flush: Flush) -> None:
        inserted = sum(counts.inserted for counts in flush.tables.values())
        print(json.dumps({"at": time.monotonic(), "inserted": inserted, "seconds": flush.seconds}), flush=True)


def follow(spec: dict[str, Any]) -> dict[str, float]:
    """Streams until standard input ends."""
    with build_pipeline(spec["dsn"], Path(spec["directory"]), observer=_Reporter()) as pipeline:
        pipeline.prepare()

        def stop_at_end_of_input() -> None:
            sys.stdin.read()
            pipeline.stop.set()

        threading.Thread(target=stop_at_end_of_input, daemon=True).start()
        meter = Meter()
        print(json.dumps({"ready": True}), flush=True)
        pipeline.stream()
        return meter.read(0)


def load(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy into a destination and a batch of changes of it, by us or by hand, from Arrow in memory: no source."""
    from benchmarks.loading import make_load, opened

    made, directory = make_load(spec["rows"]), Path(spec["directory"])
    with opened(spec["destination"], spec["where"], directory, made, by_hand=spec["by_hand"]) as (copy, change):
        meter = Meter()
        copy()
        copied = meter.read(made.copied.num_rows)
        meter = Meter()
        change()
        return {"copied": copied, "changed": meter.read(made.changed_rows)}


TASKS = {
    "load": load,
    "stream": stream,
    "verify": verify,
    "halves": halves,
    "copy": copy_to_arrow,
    "drain": drain,
    "sync": sync,
    "follow": follow,
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
