"""A disk without room, made by a limit of the process (RLIMIT_FSIZE): the same calls fail, at the same places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.lsn import Lsn
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")

_DATA = [(1, "a", "b", 1), (2, "c", "d", 2)]
_CHILD = """
import duckdb, json, resource, sys, threading
from pathlib import Path
from etl_core.destination.duckdb import connection
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import EtlError
from etl_core.testing.destination_tables import *

# To checkpoint after every commit is to come to the limit in a checkpoint soon; the commit goes into the WAL before it.
_SKIP = "auto_checkpoint_skip_wal_threshold"
has_skip = duckdb.sql(f"FROM duckdb_settings() WHERE name = '{_SKIP}'").fetchall()
connection._SETTINGS = (
    *(setting.replace("4MB", "0KB") for setting in connection._SETTINGS),
    *([f"SET {_SKIP} = 1000000000"] if has_skip else []),
)
path, megabytes = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20, resource.RLIM_INFINITY))
destination = DuckDBDestination(path, "shop")
done, first = 0, 100

def fill(count):
    global first
    data = [(n, "s", f"{n * 7919:x}" * 4, n) for n in range(first, first + count)]
    first += count
    return data

def attempt(work):
    global done
    try:
        while True:
            work()
            done += 1
    except EtlError as error:
        said = {"kind": type(error).__name__, "text": str(error), "hint": error.hint, "done": done}
        return said

def write():
    at = 100 + done
    destination.write(batch(changes(orders(), inserts=fill(ROWS)), expected=at, new=at + 1))

def copy():
    with destination.copy(orders(17_000, "big")) as copying:
        for _ in range(ROWS):
            copying.write(rows(orders(), fill(20_000)).to_batches()[0])
        copying.publish(Lsn(900))

def copy_by_threads():
    with destination.copy(orders(17_000, "big")) as copying:
        together = threading.Barrier(ROWS)  # a thread that has ended may leave its number, and its file, to the next

        def write_part(part):
            together.wait()
            copying.write(part)

        writers = [
            threading.Thread(target=write_part, args=(rows(orders(), fill(40_000)).to_batches()[0],))
            for _ in range(ROWS)
        ]
        for writing in writers:
            writing.start()
        for writing in writers:
            writing.join()
        copying.publish(Lsn(900))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shop.duckdb"
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    destination.close()
    return path


def _fail(path: Path, work: str, rows: int, megabytes: int) -> dict[str, Any]:
    code = f"{_CHILD}\nROWS = {rows}\nprint(json.dumps(attempt({work})))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path), str(megabytes)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert ended.returncode == 0
    said: dict[str, Any] = json.loads(ended.stdout)
    assert "bug" not in said["hint"]
    return said


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [(100, "the batch was applied"), (200_000, "nothing of the batch was applied")],
    ids=["checkpoint fails", "commit fails"],
)
def test_a_stream_says_what_became_of_the_batch(path: Path, rows: int, outcome: str) -> None:
    said = _fail(path, "write", rows, 2)
    assert said["kind"] == "DiskFull"
    assert said["text"].rpartition("; ")[2] == outcome
    assert "free disk space" in said["hint"]
    applied = said["done"] + (outcome == "the batch was applied")
    destination = DuckDBDestination(path, "shop")
    assert destination.positions().tables == {orders().table_id: Lsn(100 + applied)}
    assert sum(contents(destination, orders()).values()) == 2 + applied * rows
    destination.write(batch(changes(orders(), deletes=[(1,)]), expected=100 + applied, new=900))
    destination.close()


@pytest.mark.skipif(duckdb.__version__.startswith("1."), reason="DuckDB 1 stores long values as they are")
def test_long_values_go_into_the_file_alone(path: Path) -> None:
    """Compressed, without being written to the log before: 16 MB of text where no file may have more than 4 MB."""
    code = """
import resource, sys
from pathlib import Path
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.testing.destination_tables import *

resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
long = [(n, "s", f"{n:010}" * 10_000, n) for n in range(100, 260)]
DuckDBDestination(Path(sys.argv[1]), "shop").write(batch(changes(orders(), inserts=long), expected=100, new=200))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
    destination = DuckDBDestination(path, "shop")
    assert destination.positions().tables == {orders().table_id: Lsn(200)}
    assert sum(contents(destination, orders()).values()) == 162


def test_a_copy_that_cannot_be_staged_leaves_nothing(path: Path) -> None:
    said = _fail(path, "copy", 40, 1)
    assert said["kind"] == "DestinationError"
    assert "cannot stage" in said["text"]
    assert "File too large" in said["text"]
    assert said["hint"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]
    destination = DuckDBDestination(path, "shop")
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)


def test_a_copy_that_cannot_be_loaded_leaves_the_table(path: Path) -> None:
    """Staging has room, as each thread has a file of its own there; the database has not."""
    said = _fail(path, "copy_by_threads", 8, 5)
    assert said["kind"] == "DiskFull", said
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]
    destination = DuckDBDestination(path, "shop")
    assert destination.positions().tables == {orders().table_id: Lsn(100)}
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)
