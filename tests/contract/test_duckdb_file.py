"""The DuckDB file between processes: killed in the middle, read between flushes, held by someone else, damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from etl_core.batch import StreamMove, StreamPosition, WriteBatch
from etl_core.destination.duckdb import connection
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.protocol import Positions
from etl_core.errors import DestinationError, DestinationUnavailable
from etl_core.lsn import Lsn
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish, rows, stream_at

_DATA = [(1, "a", "b", 1), (2, "c", "d", 2)]

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    yield destination
    destination.close()


@pytest.fixture
def child(path: Path) -> Iterator[Child]:
    """Starts a Python process with `path`, `destination` and the test tables, and waits for its line `ready`."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        head = (
            "import duckdb, os, sys, time\n"
            "from pathlib import Path\n"
            "from etl_core.destination.duckdb.destination import DuckDBDestination\n"
            "from etl_core.testing.destination_tables import *\n"
            "path = Path(sys.argv[1])\n"
            "destination = DuckDBDestination(path, 'shop')\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", head + code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_file_of_before_positions_had_incarnations_is_still_written(
    destination: DuckDBDestination, path: Path
) -> None:
    destination.write(batch(expected=0, new=0, stream=70))
    with duckdb.connect(path) as connection:
        connection.execute("ALTER TABLE _etl.streams DROP COLUMN incarnation")
    before, after = StreamPosition(Lsn(70)), StreamPosition(Lsn(80), "one")
    assert destination.positions().stream == before
    destination.prepare()
    assert destination.positions().stream == before
    destination.write(WriteBatch((), {}, StreamMove(before, after)))
    assert destination.positions().stream == after


def test_a_process_killed_in_a_write_leaves_the_state_before(destination: DuckDBDestination, child: Child) -> None:
    writing = child(
        "def parts():\n"
        "    data = [(n, 's', 'n' * 50, n) for n in range(10, 200_000)]\n"
        "    yield changes(orders(), truncate=True, inserts=data)\n"
        "    yield changes(orders(), deletes=[(n,) for n in range(10, 20)])\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "b = batch(expected=100, new=200, stream=200, tables=[orders().table_id])\n"
        "destination.write(WriteBatch(parts(), b.watermarks, b.stream))\n"
    )
    _kill(writing)
    assert destination.positions() == Positions({orders().table_id: Lsn(100)}, None)
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)
    destination.write(batch(changes(orders(), deletes=[(1,)]), expected=100, new=200))
    assert contents(destination, orders()) == {_DATA[1]: 1}


def test_a_process_killed_after_a_write_has_written(destination: DuckDBDestination, child: Child) -> None:
    written = child(
        "part = changes(orders(), upserts=[(2, 'new', None, 0)])\n"
        "destination.write(batch(part, expected=100, new=200, stream=200))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    _kill(written)
    assert destination.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))
    assert contents(destination, orders()) == {_DATA[0]: 1, (2, "new", None, 0): 1}


def test_a_process_killed_in_publish_leaves_the_old_table(
    destination: DuckDBDestination, child: Child, path: Path
) -> None:
    publishing = child(
        "from etl_core.destination.sql.staging import Staging\n"
        "read = Staging.read\n"
        "def slowly(self, schema):\n"
        "    yield from read(self, schema)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "Staging.read = slowly\n"
        "publish(destination, orders(), [(n, 's', 'n' * 50, n) for n in range(300_000)], watermark=300)\n"
    )
    staging = path.with_name("shop.duckdb.staging") / "shop" / str(orders().table_id)
    assert staging.is_dir()
    _kill(publishing)
    assert staging.is_dir()
    assert destination.positions().tables == {orders().table_id: Lsn(100)}
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)
    destination.prepare()
    assert not staging.parent.parent.exists()
    assert publish(destination, orders(), [(7, "a", "b", 7)], watermark=300) == 1
    assert contents(destination, orders()) == {(7, "a", "b", 7): 1}


def test_prepare_leaves_a_running_copy_and_other_pipelines_alone(
    destination: DuckDBDestination, child: Child, path: Path
) -> None:
    copying = child(
        "copy = destination.copy(orders())\n"
        "copy.write(rows(orders(), [(5, 'a', 'b', 5)]).to_batches()[0])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(copy.publish(Lsn(300)), flush=True)\n"
    )
    other = DuckDBDestination(path, "other").copy(orders(name="others"))
    other.write(rows(orders(), [(1, "a", "b", 1)]).to_batches()[0])
    destination.prepare()
    with pytest.raises(DestinationUnavailable, match="another copy"):
        destination.copy(orders())
    answer, _ = copying.communicate("go\n")
    assert answer == "1\n"
    assert contents(destination, orders()) == {(5, "a", "b", 5): 1}
    with other:
        assert other.publish(Lsn(1)) == 1


def test_another_process_reads_between_flushes(destination: DuckDBDestination, child: Child) -> None:
    reading = child(
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    with duckdb.connect(path, read_only=True) as connection:\n"
        "        print(connection.execute('SELECT count(*) FROM public.orders').fetchall()[0][0], flush=True)\n"
    )
    assert reading.stdin is not None
    assert reading.stdout is not None
    for at in range(3):
        part = changes(orders(), inserts=[(10 + at, "s", None, at)])
        destination.write(batch(part, expected=100 + at, new=101 + at))
        reading.stdin.write("count\n")
        reading.stdin.flush()
        assert reading.stdout.readline() == f"{3 + at}\n"


def test_a_held_file_is_waited_for(destination: DuckDBDestination, child: Child) -> None:
    holding = child(
        "connection = duckdb.connect(path)\nprint('ready', flush=True)\nsys.stdin.readline()\nconnection.close()\n"
    )
    asked = threading.Event()
    found: list[Positions] = []

    def ask() -> None:
        asked.set()
        found.append(destination.positions())

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(300)
    assert found == []
    holding.communicate("go\n")
    asking.join(300)
    assert found == [Positions({orders().table_id: Lsn(100)}, None)]


def test_a_long_wait_for_a_held_file_says_for_whom_while_it_lasts(
    destination: DuckDBDestination, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SAY_AFTER", 0.0)
    holding = child(
        "connection = duckdb.connect(path)\nprint('ready', flush=True)\nsys.stdin.readline()\nconnection.close()\n"
    )
    said: list[str] = []

    def end_it(sentence: str) -> None:
        said.append(sentence)
        holding.communicate("go\n")

    destination.stop_on(threading.Event(), end_it)
    assert destination.positions().tables == {orders().table_id: Lsn(100)}
    [sentence] = said
    assert f"is held by process {holding.pid} " in sentence


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_held_too_long_says_by_whom(
    destination: DuckDBDestination, child: Child, path: Path, read_only: bool
) -> None:
    holding = child(
        f"connection = duckdb.connect(path, read_only={read_only})\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    impatient = DuckDBDestination(path, "shop", wait_seconds=0.05)
    with pytest.raises(DestinationUnavailable, match=f"process {holding.pid} ") as caught:
        impatient.write(batch(changes(orders(), deletes=[(1,)]), expected=100, new=200))
    assert caught.value.hint
    impatient.close()
    _kill(holding)
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)


def test_another_connection_of_this_process_is_no_obstacle(destination: DuckDBDestination, path: Path) -> None:
    with duckdb.connect(path) as reader:
        destination.write(batch(changes(orders(), deletes=[(1,)]), expected=100, new=200))
        assert reader.execute("SELECT id FROM public.orders").fetchall() == [(2,)]
    with duckdb.connect(path, config={"threads": 1}), pytest.raises(DestinationUnavailable, match="other settings"):
        destination.positions()


def test_closing_leaves_one_file_and_takes_space_back(destination: DuckDBDestination, path: Path) -> None:
    wide = [(n, "s", f"{n * 7919:x}" * 20, n) for n in range(300_000)]
    publish(destination, orders(), wide, watermark=110)
    gone = [(n,) for n in range(300_000) if n % 3]
    destination.write(batch(changes(orders(), deletes=gone), expected=110, new=120))
    before = _used_blocks(path)
    destination.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert _used_blocks(path) < 0.7 * before
    assert sum(contents(destination, orders()).values()) == 100_000


def test_a_batch_of_many_tables_has_the_memory_it_needs(
    destination: DuckDBDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MEMORY_MB", 16)  # to which 50 tables are as many as 600 are to the real limit
    tables = [orders(17_000 + number, f"t{number}") for number in range(50)]
    for schema in tables:
        publish(destination, schema, _DATA)
    parts = [changes(schema, upserts=[(1, "x", "y", 7)], deletes=[(2,)]) for schema in tables]
    destination.write(batch(*parts, expected=100, new=200))
    assert all(contents(destination, schema) == {(1, "x", "y", 7): 1} for schema in tables[::20])


def _used_blocks(path: Path) -> int:
    with duckdb.connect(path) as reader:
        # Not to checkpoint here, which would take the space back.
        reader.execute("PRAGMA disable_checkpoint_on_shutdown")
        used: int = reader.execute("SELECT used_blocks FROM pragma_database_size()").fetchall()[0][0]
        return used


def test_file_troubles_say_what_to_do(tmp_path: Path, destination: DuckDBDestination, path: Path) -> None:
    destination.close()
    cases: dict[str, tuple[Path, str]] = {
        "missing": (tmp_path / "nowhere" / "x.duckdb", "directory"),
        "directory": (tmp_path, "directory"),
        "foreign": (tmp_path / "foreign.duckdb", "not a DuckDB database"),
        "cut": (tmp_path / "cut.duckdb", "cut short"),
        "corrupt": (tmp_path / "corrupt.duckdb", "corrupt"),
    }
    whole = path.read_bytes()
    cases["foreign"][0].write_bytes(b"no database" * 10_000)
    cases["cut"][0].write_bytes(whole[:5000])
    cases["corrupt"][0].write_bytes(whole[:4196] + bytes([whole[4196] ^ 255]) + whole[4197:])
    for broken, message in cases.values():
        with pytest.raises(DestinationError, match=message) as caught:
            DuckDBDestination(broken, "shop").prepare()
        assert caught.value.hint
        assert str(broken) in str(caught.value), broken
