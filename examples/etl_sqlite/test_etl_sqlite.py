"""The package keeps the contract of a destination, also where its process is killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from etl_core.destination.protocol import Destination
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_log_suite import LogSuite, RotatedLogs
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import ChangesSuite, DestinationSuite
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.hostile import HostileDestination
from etl_sqlite.destination import SqliteDestination

KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path

from etl_core.testing.destination_tables import batch, changes, orders, publish
from etl_sqlite.destination import SqliteDestination

connect = sqlite3.connect

def connect_to_die(*given, **named):
    connection = connect(*given, **named)
    connection.set_trace_callback(lambda query: query == "COMMIT" and os.kill(os.getpid(), signal.SIGKILL))
    return connection

sqlite3.connect = connect_to_die
destination = SqliteDestination(Path(sys.argv[1]), "shop")
if sys.argv[2] == "write":
    destination.write(batch(changes(orders(), inserts=[(2, "a", "b", 2)]), expected=100, new=200, stream=200))
else:
    publish(destination, orders(), [(3, "a", "b", 3)], watermark=200)
"""


class TestSqlite(RotatedLogs, LogSuite, DeletedRowsSuite, SharingSuite, MultisetSuite, CountingSuite, DestinationSuite):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: SqliteDestination(tmp_path / "shop.db", pipeline)

    def holds(self, column: Column, value: Any) -> bool:
        return column.name != "unknowns" or b"\xff" not in value  # which is no UTF-8

    @pytest.fixture
    def add_column(self, tmp_path: Path) -> AddColumn:
        def add(_: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            def run(query: str) -> list[tuple[Any, ...]]:
                with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
                    return connection.execute(query).fetchall()

            table = f"{schema.name.namespace}.{schema.name.name}"
            run(f'ALTER TABLE "{table}" ADD COLUMN "{name}" TEXT')
            return lambda: [row[1] for row in run(f'PRAGMA table_info("{table}")')]

        return add


class TestSqliteHostile(LogSuite, DeletedRowsSuite, ChangesSuite):
    """Answers are lost, requests arrive twice and late."""

    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: HostileDestination(SqliteDestination(tmp_path / "shop.db", pipeline))


@pytest.mark.parametrize("work", ["write", "publish"])
def test_a_process_that_is_killed_at_its_commit_leaves_the_state_of_before(tmp_path: Path, work: str) -> None:
    destination = SqliteDestination(tmp_path / "shop.db", "shop")
    destination.prepare()
    publish(destination, orders(), [(1, "a", "b", 1)])
    before = destination.positions()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "shop.db"), work], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert destination.positions() == before
    assert contents(destination, orders()) == Counter([(1, "a", "b", 1)])
    destination.prepare()
    destination.write(batch(changes(orders(), inserts=[(2, "a", "b", 2)]), expected=100, new=200))
    assert contents(destination, orders()) == Counter([(1, "a", "b", 1), (2, "a", "b", 2)])
