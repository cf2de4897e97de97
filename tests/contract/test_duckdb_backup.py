"""A copy of the DuckDB file, made while it is written; put back, it is a state that once was."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb import backup
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.protocol import BackupDestination
from etl_core.errors import DestinationError, EtlError
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> DuckDBDestination:
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), [(1, "a", "b", 1)])
    return destination


def _write(destination: DuckDBDestination, at: int) -> None:
    part = changes(orders(), inserts=[(at, "s", None, at)])
    destination.write(batch(part, expected=at, new=at + 1))


def _write_some(destination: DuckDBDestination) -> None:
    for at in range(100, 120):
        _write(destination, at)


@pytest.mark.parametrize("by_reference", [True, False])
def test_a_copy_made_while_batches_are_written(
    destination: DuckDBDestination, path: Path, monkeypatch: pytest.MonkeyPatch, by_reference: bool
) -> None:
    if not by_reference:
        monkeypatch.setattr(backup, "_copied_by_the_system", lambda *_: False)
    assert isinstance(destination, BackupDestination)
    copies = [path.with_name(f"copy{number}.duckdb") for number in range(4)]
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(_write_some, destination)
        sizes = [destination.backup(copy) for copy in copies]
        writing.result()
    for copy, size in zip(copies, sizes, strict=True):
        assert size == copy.stat().st_size
        copied = DuckDBDestination(copy, "shop")
        mark = copied.positions().tables[orders().table_id]
        assert sum(contents(copied, orders()).values()) == mark - 99
    assert {entry.suffix for entry in path.parent.iterdir()} == {".duckdb", ".wal"}


def test_a_copy_that_is_put_back_is_gone_on_with(destination: DuckDBDestination, path: Path) -> None:
    _write(destination, 100)
    copy = path.with_name("copy.duckdb")
    destination.backup(copy)
    _write(destination, 101)
    path.with_name(path.name + ".wal").unlink()
    shutil.copy(copy, path)
    again = DuckDBDestination(path, "shop")
    again.prepare()
    _write(again, 101)
    _write(again, 102)
    assert sorted(contents(again, orders())) == [(1, "a", "b", 1), *((at, "s", None, at) for at in (100, 101, 102))]
    again.close()


def test_what_cannot_be_copied_is_said(destination: DuckDBDestination, path: Path) -> None:
    there = path.with_name("there.duckdb")
    there.write_bytes(b"mine")
    for target, message in ((there, "exists already"), (path, "exists already"), (path.parent / "no" / "x", "No such")):
        with pytest.raises(DestinationError, match=message) as caught:
            destination.backup(target)
        assert caught.value.hint
    assert there.read_bytes() == b"mine"
    with pytest.raises(DestinationError, match="nothing to back up"):
        DuckDBDestination(path.with_name("none.duckdb"), "shop").backup(path.with_name("copy.duckdb"))
    with duckdb.connect(path) as other:
        other.execute("BEGIN")
        other.execute("CREATE TABLE main.mine (i INTEGER)")
        with pytest.raises(EtlError, match=r"shop\.duckdb"):
            destination.backup(path.with_name("copy.duckdb"))
    assert not list(path.parent.glob("copy*"))
