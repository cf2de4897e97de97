"""`make demo`: a live PostgreSQL replicated into demo/shop.duckdb before your eyes, with the commands you would use.

Starts an embedded PostgreSQL 18, fills a small shop, replicates it with `etl` while a workload changes it, proves that
both sides are equal, and says what to try next. Writes only into demo/; the server lives in a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shop import TABLES, Workload, create_shop

from etl_core.errors import EtlError
from etl_core.state.sql_store import open_store
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import PostgresServer, temporary_postgres

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
CONFIG = DEMO / "etl.yaml"

YAML = """\
# Written by examples/demo.py.
pipeline: shop
source:
  dsn: {dsn}
  publication: shop_pub
  tables:
{tables}
destination: {{type: duckdb, path: shop.duckdb}}
state: {{url: "sqlite:///shop.state.db"}}
"""


def main() -> int:
    options = _options()
    _clear()
    _say("Starting an embedded PostgreSQL 18 …")
    try:
        with temporary_postgres(trust=True) as server:
            return _demonstrate(server, options)
    except EtlError as error:
        sys.stderr.write(f"demo: {error}\n" + (f"  → {error.hint}\n" if error.hint else ""))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: stopped; nothing is left running\n")
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="how long to stream under load (default 20)")
    parser.add_argument("--scale", type=int, default=1, help="size of the shop: 1 is about 700,000 rows")
    parser.add_argument("--keep", action="store_true", help="leave PostgreSQL running at the end, until Ctrl-C")
    return parser.parse_args()


def _clear() -> None:
    """What an earlier demo wrote."""
    DEMO.mkdir(exist_ok=True)
    for path in DEMO.iterdir():
        if path.name != "README.md":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _demonstrate(server: PostgresServer, options: argparse.Namespace) -> int:
    dsn = server.dsn()
    started = time.monotonic()
    rows = create_shop(dsn, options.scale)
    _say(f"A shop of {len(TABLES)} tables, {rows:,} rows, made in {time.monotonic() - started:.1f} s.")
    CONFIG.write_text(YAML.format(dsn=dsn, tables="\n".join(f"    - public.{table}" for table in TABLES)))

    if _etl("doctor"):
        return 1
    _say("Copying every table, and streaming, while a workload inserts, updates, deletes and truncates …")
    workload = Workload(dsn)
    workload.start()
    copy_seconds = 6 * options.scale
    try:
        failed = _etl("run", "--for", f"{copy_seconds + options.seconds}s")
    finally:
        workload.stop()
    if workload.error is not None:
        raise workload.error
    if failed:
        return 1
    figures = _figures()
    worked = workload.worked
    _say(f"The workload made {worked.transactions:,} transactions and {worked.truncates} TRUNCATE.")
    if _etl("stream", "--until-caught-up"):
        return 1
    _say("Proof: both sides are read at one LSN, and compared.")
    different = _etl("verify")
    _summarise(figures, time.monotonic() - started, different)
    if options.keep and not different:
        _keep(server)
    return 1 if different else 0


def _etl(*arguments: str) -> int:
    """Runs the command as a person would, on this terminal; returns its exit code."""
    shown = ["etl", *arguments, "-c", str(CONFIG.relative_to(ROOT))]
    _say(f"$ {shlex.join(shown)}")
    process = subprocess.Popen([sys.executable, "-m", "etl_core.cli", *shown[1:]], cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal sent Ctrl-C to it as well: it ends at a transaction boundary.
        process.wait()
        raise


def _figures() -> str:
    """How fast the copy was and how far the stream was behind when it ended, from the pipeline's own state."""
    store = open_store(f"sqlite:///{DEMO / 'shop.state.db'}", "shop")
    tables, progress = store.tables(), store.progress()
    moves = [move for table in tables for move in store.history(table.table_id)]
    store.close()
    began = min(move.at for move in moves if move.to_state is TableState.DATA_SYNC)
    copied = max(move.at for move in moves if move.to_state is TableState.FINISHED_COPY)
    rows, seconds = sum(table.rows_copied or 0 for table in tables), (copied - began).total_seconds()
    lag = progress.lag_seconds or 0.0 if progress else 0.0
    return f"{rows:,} rows copied in {seconds:.1f} s ({rows / seconds:,.0f} rows/s); lag under load {lag:.1f} s"


def _summarise(figures: str, seconds: float, different: int) -> None:
    command = [sys.executable, "-m", "etl_core.cli", "status", "--json", "-c", str(CONFIG)]
    status = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    size = sum(path.stat().st_size for path in DEMO.glob("shop.duckdb*")) / 1e6
    _say("")
    _say("Source and destination DIFFER: that is a bug." if different else "Source and destination are equal.")
    _say(f"  {figures}")
    changes, tables = status["stream"]["rows"], len(status["tables"])
    _say(f"  {changes:,} row changes streamed into {tables} tables; {seconds:.0f} s in all")
    _say(f"  demo/shop.duckdb       the copy, {size:.0f} MB: python -c 'import duckdb; …', or the duckdb command")
    _say("  demo/etl.yaml          the pipeline's configuration")
    _say("  demo/shop.state.db     its state: table states, positions, history")
    _say("")
    _say("What to try next")
    _say("  make demo DEMO_ARGS=--keep       leaves PostgreSQL running: change something, then")
    _say("    .venv/bin/etl status -c demo/etl.yaml")
    _say("    .venv/bin/etl stream -c demo/etl.yaml --until-caught-up")
    _say("  docs/configuration.md            your own database")


def _keep(server: PostgresServer) -> None:
    _say("")
    _say(f"PostgreSQL keeps running: psql '{server.dsn()}'  (Ctrl-C ends it)")
    while server.is_running:
        time.sleep(0.5)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
