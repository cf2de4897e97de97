"""`make demo` and `make ui`: a live PostgreSQL replicated into demo/shop.duckdb by Dagster, before your eyes.

Starts an embedded PostgreSQL 18, fills a small shop, starts `dagster dev` on workspace.yaml and does what you would do
in its pages: materialises the assets, turns the sensor on. A workload changes the source meanwhile. In the end both
sides are compared at one LSN. Writes only into demo/; the server lives in a temporary directory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etl_core.errors import EtlError
from etl_core.lsn import Lsn
from etl_core.state.store import StateStore
from etl_core.testing.postgres import PostgresServer, temporary_postgres
from etl_dagster import names
from etl_dagster.testing import DagsterDev, dagster_dev
from examples.shop import TABLES, Workload, create_shop

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
COPY_SECONDS = 600
CATCH_UP_SECONDS = 300
END_SECONDS = 300


def main() -> int:
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # a shell's background job would ignore Ctrl-C
    _clear()
    _say("Starting an embedded PostgreSQL 18 …")
    try:
        with temporary_postgres(trust=True) as server:
            return _demonstrate(server, options)
    except (EtlError, RuntimeError, TimeoutError) as error:
        sys.stderr.write(f"demo: {error}\n")
        if isinstance(error, EtlError) and error.hint:
            sys.stderr.write(f"  → {error.hint}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: stopped; nothing is left running\n")
        return 0 if options.ui else 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="how long to stream under load (default 20)")
    parser.add_argument("--scale", type=float, default=1, help="size of the shop: 1 is about 700,000 rows")
    parser.add_argument("--ui", action="store_true", help="keep all of it running, to be looked at, until Ctrl-C")
    parser.add_argument(
        "--port", type=int, default=None, help="of Dagster's pages (default: a free one; make ui: 3000)"
    )
    return parser.parse_args()


def _clear() -> None:
    """What an earlier demo wrote."""
    DEMO.mkdir(exist_ok=True)
    for path in DEMO.iterdir():
        if path.name != "README.md":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _demonstrate(server: PostgresServer, options: argparse.Namespace) -> int:
    started = time.monotonic()
    rows = create_shop(server.dsn(), options.scale)
    _say(f"A shop of {len(TABLES)} tables, {rows:,} rows, made in {time.monotonic() - started:.1f} s.")
    os.environ["SHOP_DSN"] = server.dsn()  # the only thing the code location is told
    _say("$ dagster dev -w workspace.yaml")
    port = options.port or (3000 if options.ui else None)
    with dagster_dev(ROOT / "workspace.yaml", DEMO / "dagster_home", port=port) as dev:
        _say(f"Dagster's pages: {dev.url}")
        copied = _copy(dev)
        with _working(server.dsn()) as workload, _streaming(dev):
            _stream(dev, workload, options)
            if options.ui:
                _look_at(dev, server)
            workload.stop()
            if workload.error is not None:
                raise workload.error
            streamed = _catch_up()
            _say("Proof: both sides are read at one LSN, while the stream is held there.")
            different = _compare()
        reported = sum(len(dev.materializations("duckdb", "public", table)) for table in TABLES)
    _summarise(rows, copied, streamed, reported, workload, time.monotonic() - started, different)
    return 1 if different else 0


def _copy(dev: DagsterDev) -> float:
    """Materialises every table's asset; the seconds it took."""
    _say(f"Materialising {len(TABLES)} assets: the initial sync of the tables, several at a time in one step …")
    began = time.monotonic()
    run_id = dev.launch(names.sync_job_name("shop"))
    status = dev.wait_run(run_id, COPY_SECONDS)
    if status != "SUCCESS":
        raise RuntimeError(f"the initial sync ended with {status}: {dev.url}/runs/{run_id} says why; {dev.log} too")
    return time.monotonic() - began


@contextmanager
def _working(dsn: str) -> Iterator[Workload]:
    workload = Workload(dsn)
    workload.start()
    try:
        yield workload
    finally:
        workload.stop()


@contextmanager
def _streaming(dev: DagsterDev) -> Iterator[None]:
    """The sensor is on: it starts the stream. Afterwards it is off, and the stream's run is ended."""
    sensor, job = names.stream_sensor_name("shop"), names.stream_job_name("shop")
    dev.start_sensor(sensor)
    try:
        yield
    finally:
        dev.stop_sensor(sensor)
        dev.end_runs(job, END_SECONDS)


def _stream(dev: DagsterDev, workload: Workload, options: argparse.Namespace) -> None:
    _say("The sensor is on: it starts the stream. A workload inserts, updates, deletes and truncates …")
    deadline = time.monotonic() + COPY_SECONDS
    while not (progress := _progress()) or not progress[1]:
        if time.monotonic() > deadline:
            ticks = dev.ticks(names.stream_sensor_name("shop"))
            raise TimeoutError(f"the stream did not begin; the sensor's last tick: {ticks[:1]}")
        time.sleep(0.2)
    ends = time.monotonic() + options.seconds
    while time.monotonic() < ends:
        time.sleep(min(5.0, max(0.1, ends - time.monotonic())))
        _, changes, lag = _progress() or (None, 0, 0.0)
        _say(f"  {workload.worked.transactions:,} transactions made; {changes:,} changes streamed, lag {lag:.1f} s")


def _progress() -> tuple[Lsn, int, float] | None:
    """Up to where everything is durable, row changes so far, lag in seconds."""
    with _store() as store:
        progress = store.progress()
    return None if progress is None else (progress.flushed_lsn, progress.rows, progress.lag_seconds or 0.0)


@contextmanager
def _store() -> Iterator[StateStore]:
    from examples.shop_replication import shop

    store = shop.state.open(shop.name)
    try:
        yield store
    finally:
        store.close()


def _catch_up() -> tuple[int, float]:
    """Waits until the stream has everything; the row changes streamed in all, and the last lag under load."""
    from examples.shop_replication import shop

    before = _progress()
    with shop.pipeline() as pipeline:
        target = pipeline.current_lsn()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while True:
        progress = _progress()
        if progress is not None and progress[0] >= target:
            return progress[1], before[2] if before else 0.0
        if time.monotonic() > deadline:
            raise TimeoutError(f"the stream did not come to {target} within {CATCH_UP_SECONDS} s")
        time.sleep(0.1)


def _compare() -> int:
    """The number of tables that differ. `etl verify` does the same, and so does the check equals_source."""
    from examples.shop_replication import shop

    different = 0
    with shop.pipeline() as pipeline:
        for comparison in pipeline.verify():
            different += not comparison.is_equal
            verdict = "equal" if comparison.is_equal else comparison.problem or "DIFFERENT"
            rows = comparison.destination_rows
            _say(f"  {comparison.table!s:<20} {rows:>9,} rows  {comparison.content}  {verdict}")
    return different


def _look_at(dev: DagsterDev, server: PostgresServer) -> None:
    _say("")
    _say(f"Everything keeps running until Ctrl-C. Look at {dev.url}")
    _say("  /asset-groups            the lineage: each source table and its copy")
    _say("  /assets/duckdb/public/orders   rows, lag and LSN as plots")
    _say("  /automation              the sensor; each tick says what is going on")
    _say(f"  psql '{server.dsn()}'")
    while server.is_running and dev.process.poll() is None:
        time.sleep(0.5)


def _summarise(
    rows: int,
    copied: float,
    streamed: tuple[int, float],
    reported: int,
    workload: Workload,
    seconds: float,
    different: int,
) -> None:
    size = sum(path.stat().st_size for path in DEMO.glob("shop.duckdb*")) / 1e6
    worked = workload.worked
    _say("")
    _say("Source and destination DIFFER: that is a bug." if different else "Source and destination are equal.")
    _say(f"  {rows:,} rows copied in {copied:.1f} s, with the start of the run")
    _say(f"  {worked.transactions:,} transactions and {worked.truncates} TRUNCATE made; {streamed[0]:,} row changes")
    _say(
        f"  streamed, lag under load {streamed[1]:.1f} s; {reported} materialisations reported; {seconds:.0f} s in all"
    )
    _say(f"  demo/shop.duckdb       the copy, {size:.0f} MB: python -c 'import duckdb; …', or the duckdb command")
    _say("  demo/shop.state.db     the pipeline's state: table states, positions, history")
    _say("  demo/dagster_home      the Dagster instance, with its log")
    _say("")
    _say("What to try next")
    _say("  make ui                            the same, kept alive: look at it in the browser")
    _say("  examples/shop_replication.py       the code location; make it yours")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
