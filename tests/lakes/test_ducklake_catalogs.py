"""Lakes by where their catalog is: who may write and read at once, what is left of a process that was killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_core.batch import TableChanges
from etl_core.config import DestinationConfig
from etl_core.destination.duckdb_sql.extensions import load_extensions
from etl_core.destination.ducklake.catalog import read_catalog
from etl_core.destination.ducklake.compaction import Cadence
from etl_core.destination.ducklake.destination import DuckLakeDestination
from etl_core.destination.registry import build_destination
from etl_core.errors import ConfigError, DestinationUnusable, EtlError, WatermarkConflict
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import DestinationSuite
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish
from etl_core.testing.destination_values_suite import ValueCases
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.postgres import Database
from etl_core.testing.servers.seaweedfs import BUCKET, KEY, SECRET, SeaweedFS
from tests.lakes.lake import lake
from tests.lakes.writing import TABLE_ID

PATIENCE = 300.0
A, B = orders(16_400, "a"), orders(TABLE_ID, "of_other")


class OnCatalog(SharingSuite, ValueCases):
    """What the catalog's database has a part in: values that come and go, and who has the turn."""

    test_values = DestinationSuite.test_values_come_out_as_they_went_in
    test_rows = MultisetSuite.test_rows_of_all_types_are_found

    def holds(self, column: Column, value: Any) -> bool:
        return column.type.name == "json" or not re.search(r"-0\.0\b", repr(value))


class TestOnSQLite(OnCatalog):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: lake(tmp_path, pipeline, f"sqlite:{tmp_path / 'catalog.sqlite'}")


class TestOnPostgres(OnCatalog):
    @pytest.fixture
    def make_destination(self, database: Database, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: lake(tmp_path, pipeline, f"postgres:{database.dsn}")


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return f"postgres:{request.getfixturevalue('database').dsn}"
    return {"duckdb": "", "sqlite": "sqlite:"}[request.param] + str(tmp_path / "catalog")


@pytest.fixture
def destination(tmp_path: Path, catalog: str) -> Iterator[DuckLakeDestination]:
    """With table A of one row, at 100."""
    made = lake(tmp_path, "ours", catalog)
    made.prepare()
    publish(made, A, [(1, "a", "b", 1)])
    yield made
    made.close()


def other_process(folder: Path, catalog: str, batches: int, *killed: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "tests.lakes.writing", str(folder), catalog, "other", str(batches), *killed]
    return subprocess.Popen(command, env=environment)


def test_of_two_writers_that_meet_one_is_refused(destination: DuckLakeDestination) -> None:
    """Also where both only add a row: the first position of a stream. They do not take turns here."""
    first = "INSERT INTO _etl.streams SELECT 'twice', 1, now(), NULL WHERE NOT EXISTS (FROM _etl.streams)"
    own = "UPDATE _etl.turns SET transactions = transactions + 1"
    with destination._lake.open() as one, destination._lake.open() as two:
        for connection in (one, two):
            for statement in ("BEGIN", own, first):
                connection.execute(statement)
        one.execute("COMMIT")
        with pytest.raises(duckdb.TransactionException):
            two.execute("COMMIT")
        assert one.execute("SELECT count(*) FROM _etl.streams").fetchall() == [(1,)]
    with pytest.raises(WatermarkConflict):
        destination.write(batch(changes(A, inserts=[(2, "a", "b", 2)]), expected=99, new=200))
    assert contents(destination, A) == Counter([(1, "a", "b", 1)])


def test_two_processes_write_in_turn(tmp_path: Path, catalog: str, destination: DuckLakeDestination) -> None:
    other = other_process(tmp_path, catalog, 10)
    for at in range(10):
        destination.write(batch(changes(A, inserts=[(2 + at, "c", "d", at)]), expected=100 + at, new=101 + at))
    assert other.wait(PATIENCE) == 0
    assert sum(contents(destination, A).values()) == 11
    assert sum(contents(destination, B).values()) == 11
    assert lake(tmp_path, "other", catalog).positions().tables == {B.table_id: Lsn(110)}


def test_a_process_killed_before_its_commit_leaves_nothing(
    tmp_path: Path, catalog: str, destination: DuckLakeDestination
) -> None:
    assert other_process(tmp_path, catalog, 3, "killed").wait(PATIENCE) == -signal.SIGKILL
    other = lake(tmp_path, "other", catalog)
    other.prepare()
    assert other.positions().tables == {B.table_id: Lsn(102)}
    assert sum(contents(other, B).values()) == 3
    other.write(batch(changes(B, inserts=[(3, "e", "f", 3)]), expected=102, new=103))
    assert sum(contents(other, B).values()) == 4


def test_readers_of_another_process_see_whole_batches_at_any_time(tmp_path: Path, database: Database) -> None:
    """Also in the middle of one, where the catalog is no DuckDB file."""
    code = (
        "import duckdb, sys\n"
        "from etl_core.destination.duckdb_sql.extensions import load_extensions\n"
        "connection = duckdb.connect()\n"
        "load_extensions(connection, 'sqlite_scanner', 'postgres_scanner', 'ducklake')\n"
        "connection.execute(f\"ATTACH 'ducklake:{sys.argv[1]}' AS shop (READ_ONLY)\")\n"
        "print(connection.execute('SELECT count(*), sum(amount) FROM shop.public.a').fetchall()[0])\n"
    )

    def seen(attached: str) -> str:
        command = [sys.executable, "-c", code, attached]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    for text in (f"sqlite:{tmp_path / 'catalog.sqlite'}", f"postgres:{database.dsn}"):
        destination = lake(tmp_path / text[:3], "ours", text)
        destination.prepare()
        publish(destination, A, [(1, "a", "b", 1)])
        meanwhile: list[str] = []

        def parts(text: str = text, meanwhile: list[str] = meanwhile) -> Iterator[TableChanges]:
            yield changes(A, upserts=[(1, "a", "b", 10)], inserts=[(2, "a", "b", 20)])
            meanwhile.append(seen(text))

        destination.write(replace(batch(expected=100, new=200, tables=[A.table_id]), parts=parts()))
        assert meanwhile == ["(1, 1)"]
        assert seen(text) == "(2, 30)"
        destination.close()


def test_a_batch_of_many_tables_is_one_snapshot(tmp_path: Path) -> None:
    destination = lake(tmp_path, "ours", cadence=Cadence(0.0, 0.0))
    destination.prepare()
    tables = [orders(16_400 + at, f"t{at}") for at in range(50)]
    for table in tables:
        publish(destination, table, [(1, "a", "b", 1)])
    before = _fetch(destination, "SELECT count(*) FROM ducklake_snapshots('lake')")
    every = [changes(table, upserts=[(1, "a", "b", 2)], inserts=[(2, "a", "b", 2)]) for table in tables]
    destination.write(batch(*every, expected=100, new=200))
    [(after,)] = _fetch(destination, "SELECT count(*) FROM ducklake_snapshots('lake')")
    assert after == before[0][0] + 1
    assert all(contents(destination, table) == Counter([(1, "a", "b", 2), (2, "a", "b", 2)]) for table in tables)


def test_small_files_become_large_ones_between_batches(tmp_path: Path) -> None:
    never, hourly = Cadence(0.0, 0.0), Cadence(3600.0, 0.000_001)
    destination = lake(tmp_path, "ours", cadence=never)
    destination.prepare()
    publish(destination, A, [(key, "a", "b", 0) for key in range(1000)])
    for at in range(10):
        part = changes(A, upserts=[(key, "a", "c", at) for key in range(at * 40, at * 40 + 40)], deletes=[(999 - at,)])
        destination.write(batch(part, expected=100 + at, new=101 + at))
    expected = contents(destination, A)
    publish(destination, B, [(1, "a", "b", 1)])
    destination.write(batch(changes(B, inserts=[(2, "a", "b", 1)]), expected=100, new=110))
    files = "SELECT count(*) FROM ducklake_list_files('lake', 'a', schema => 'public')"
    assert _fetch(destination, files) == [(11,)]
    told = {each.table: each.error for each in destination.compact([B.name, TableName("public", "no")])}
    assert (told["public.of_other"], "public.no" in str(told["public.no"])) == (None, True)
    assert _fetch(destination, files.replace("'a'", "'of_other'")) == [(1,)]
    destination.close()
    compacting = lake(tmp_path, "ours", cadence=hourly)
    for at in range(110, 120):  # each goes on with one table at least
        compacting.write(batch(expected=at, new=at + 1, tables=[A.table_id]))
    assert _fetch(compacting, files) == [(1,)]
    assert contents(compacting, A) == expected
    assert _fetch(compacting, "SELECT count(*) < 15 FROM ducklake_snapshots('lake')") == [(True,)]
    assert _fetch(compacting, "SELECT compacted_at IS NOT NULL FROM _etl.turns") == [(True,)]
    assert compacting.positions().tables[A.table_id] == Lsn(120)
    compacting.close()


def test_data_in_s3(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    options = {
        "catalog": f"sqlite:{tmp_path / 'catalog.sqlite'}",
        "data": f"s3://{BUCKET}/{tmp_path.name}",
        "s3_key_id": KEY,
        "s3_secret": SECRET,
        "s3_region": "us-east-1",
        "s3_endpoint": seaweedfs.s3_endpoint,
        "staging": str(tmp_path / "staging"),
    }

    def made(**changed: str) -> DuckLakeDestination:
        built = build_destination(DestinationConfig("ducklake", {**options, **changed}), "ours")
        assert isinstance(built, DuckLakeDestination)
        return built

    destination = made()
    destination.prepare()
    publish(destination, A, [(key, "a", "b", 0) for key in range(100)])
    for at in range(100, 103):
        destination.write(batch(changes(A, upserts=[(1, "a", "c", at)], deletes=[(at - 50,)]), expected=at, new=at + 1))
    assert [each.error for each in destination.compact([A.name])] == [None]
    expected = contents(destination, A)
    assert len(expected) == 97
    found = _fetch(destination, "SELECT data_file FROM ducklake_list_files('lake', 'a', schema => 'public')")
    assert all(path.startswith(f"s3://{BUCKET}/{tmp_path.name}/") for (path,) in found)
    destination.close()
    again = made()
    assert contents(again, A) == expected
    publish(again, A, [(1, "new", "copy", 0)], watermark=200)
    assert contents(again, A) == Counter([(1, "new", "copy", 0)])
    again.close()
    with pytest.raises(EtlError) as refused:
        contents(made(s3_secret="wrong"), A)
    assert "wrong" not in str(refused.value)


def test_what_is_younger_than_it_is_kept_stays_in_sqlite_too(tmp_path: Path) -> None:
    """There DuckLake compares moments as texts, in two spellings."""
    destination = lake(tmp_path, "ours", f"sqlite:{tmp_path / 'catalog.sqlite'}", Cadence(0.001, 3600.0))
    destination.prepare()
    publish(destination, A, [(1, "a", "b", 1)])
    for at in range(100, 106):
        destination.write(batch(changes(A, upserts=[(1, "a", "b", at)]), expected=at, new=at + 1))
    assert _fetch(destination, "SELECT min(snapshot_id) FROM ducklake_snapshots('lake')") == [(0,)]
    assert _fetch(destination, "SELECT compacted_at IS NOT NULL FROM _etl.turns") == [(True,)]
    destination.close()


def test_what_a_person_set_or_wrote_wrong_is_said(tmp_path: Path) -> None:
    destination = lake(tmp_path, "ours")
    destination.prepare()
    _fetch(destination, "CALL lake.set_option('data_inlining_row_limit', 10)")
    with pytest.raises(DestinationUnusable, match="keeps rows of small changes in its catalog"):
        destination.prepare()
    with pytest.raises(ConfigError, match="holds a password") as refused:
        read_catalog("postgres://etl:hunter2@host/lake")
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in str(read_catalog("postgres:host=h dbname=lake", "hunter2"))
    (tmp_path / "other").mkdir()
    elsewhere = lake(tmp_path / "other", "ours", str(tmp_path / "catalog.ducklake"))
    with pytest.raises(DestinationUnusable, match="the data files of the lake"):
        elsewhere.positions()


def test_extensions_come_from_packages() -> None:
    with duckdb.connect() as connection:
        load_extensions(connection, "ducklake")
        loaded = "SELECT install_mode FROM duckdb_extensions() WHERE extension_name = 'ducklake' AND loaded"
        assert connection.execute(loaded).fetchall() != []
        assert connection.execute("SELECT current_setting('autoinstall_known_extensions')").fetchall() == [(False,)]


def _fetch(destination: DuckLakeDestination, query: str) -> list[tuple[Any, ...]]:
    with destination._lake.open() as connection:
        return connection.execute(query).fetchall()
