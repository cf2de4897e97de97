"""The DuckDB file is put back, removed or replaced by a person, with or without its write-ahead log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from etl_core.config import DestinationConfig
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.registry import build_destination
from etl_core.errors import ConfigError, DestinationError, WatermarkConflict
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_tables import INT4, batch, changes, contents, orders, partial, publish, table

_DATA = [(1, "a", "b", 1), (2, "c", "d", 2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    destination.close()
    yield destination
    destination.close()


def test_a_table_that_a_person_removed_is_left_out_and_the_others_are_counted(
    destination: DuckDBDestination, path: Path
) -> None:
    names = {schema.table_id: schema.name for schema in (orders(), orders(16_401, "Gone"), orders(16_402, "viewed"))}
    for table_id, name in list(names.items())[1:]:
        publish(destination, orders(int(table_id), name.name), _DATA)
    destination.close()
    with duckdb.connect(path) as connection:
        connection.execute('DROP TABLE public."Gone"; DROP TABLE public.viewed')
        connection.execute("CREATE VIEW public.viewed AS SELECT * FROM public.orders")
    assert destination.count(names, 1.0) == {orders().table_id: (Lsn(100), 2)}


def _put_back(data: bytes, path: Path) -> None:
    """As `mv` does: another file under the name."""
    restored = path.with_name("restored")
    restored.write_bytes(data)
    restored.replace(path)


def _write(destination: DuckDBDestination, first: int, count: int, *, expected: int, new: int) -> None:
    rows = [(n, "s", f"{n * 7919:x}", n) for n in range(first, first + count)]
    destination.write(batch(changes(orders(), inserts=rows), expected=expected, new=new))


def _remove(path: Path) -> None:
    path.unlink()
    _wal(path).unlink(missing_ok=True)


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


@pytest.mark.parametrize("many", [10, 200_000])
def test_an_older_file_beside_a_newer_wal_is_refused(destination: DuckDBDestination, path: Path, many: int) -> None:
    """200,000 rows are written into the file; the WAL has but pointers to them unless a checkpoint follows."""
    before = path.read_bytes()
    _write(destination, 1_000, many, expected=100, new=200)
    _write(destination, 900_000, 1, expected=200, new=300)
    assert _wal(path).exists()
    _put_back(before, path)
    restarted = DuckDBDestination(path, "shop")
    if many == 10:  # every row is in the WAL: the pair is whole
        restarted.prepare()
        assert sum(contents(restarted, orders()).values()) == 13
        return
    with pytest.raises(DestinationError, match=r"the \.wal") as caught:
        restarted.prepare()
    assert "etl resync" in str(caught.value.hint)


def test_a_wal_of_another_file_is_refused(destination: DuckDBDestination, path: Path, tmp_path: Path) -> None:
    _write(destination, 10, 1, expected=100, new=200)
    other = DuckDBDestination(tmp_path / "other.duckdb", "shop")
    other.prepare()
    other.close()
    (tmp_path / "other.duckdb").replace(path)
    with pytest.raises(DestinationError, match=r"the \.wal"):
        DuckDBDestination(path, "shop").positions()


def test_a_wal_that_is_left_alone_is_kept(destination: DuckDBDestination, path: Path) -> None:
    """DuckDB would make a new file and remove the log."""
    _write(destination, 10, 1, expected=100, new=200)
    path.unlink()
    for use in (DuckDBDestination(path, "shop").prepare, DuckDBDestination(path, "shop").positions):
        with pytest.raises(DestinationError, match=r"shop\.duckdb\.wal"):
            use()
    assert _wal(path).exists()
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, "was removed"),
        (lambda path: _put_back(path.read_bytes(), path), "was replaced"),
    ],
    ids=["removed", "replaced"],
)
def test_a_file_that_changes_under_a_process_stops_it(
    destination: DuckDBDestination, path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(path)
    there = path.exists()
    for use in (
        lambda: _write(destination, 10, 1, expected=100, new=200),
        lambda: publish(destination, orders(17_000, "others")),
        destination.positions,
        destination.prepare,
        lambda: next(destination.read(orders())),
        lambda: destination.forget(orders().table_id),
    ):
        with pytest.raises(DestinationError, match=message) as caught:
            use()
        assert "etl resync" in str(caught.value.hint)
    destination.close()
    assert path.exists() is there  # no new file in its place


def test_a_file_that_is_removed_during_a_write_takes_nothing(destination: DuckDBDestination, path: Path) -> None:
    def parts() -> Iterator[object]:
        yield changes(orders(), inserts=[(10, "a", "b", 1)])
        _remove(path)

    good = batch(expected=100, new=200, tables=[orders().table_id])
    with pytest.raises(DestinationError, match="was removed"):
        destination.write(type(good)(parts(), good.watermarks, None))  # type: ignore[arg-type]
    assert list(path.parent.iterdir()) == []


def test_a_restart_takes_the_file_that_is_there(destination: DuckDBDestination, path: Path) -> None:
    before = path.read_bytes()
    _write(destination, 10, 1, expected=100, new=200)
    destination.close()
    _put_back(before, path)
    again = DuckDBDestination(path, "shop")
    again.prepare()
    assert again.positions().tables == {orders().table_id: 100}
    again.close()


def test_bookkeeping_that_was_dropped_is_another_watermark(destination: DuckDBDestination) -> None:
    """The stream then finds that the destination has no position of it, and stops the tables."""
    with destination._file.open() as connection:
        connection.execute("DROP SCHEMA _etl CASCADE")
    with pytest.raises(WatermarkConflict):
        _write(destination, 10, 1, expected=100, new=200)
    assert (destination.positions().tables, destination.positions().stream) == ({}, None)


@pytest.mark.parametrize(
    "name",
    [
        "_etl.duckdb",
        "public.duckdb",
        "temp.duckdb",
        "main.duckdb",
        "memory",
        "system.db",
        "pg_catalog.duckdb",
        "information_schema.duckdb",
        "watermarks.duckdb",
        "orders.x.duckdb",
        'it\'s a "file" é{}.duckdb',
        ".duckdb",
    ],
)
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    destination = DuckDBDestination(tmp_path / name, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    grown = table("orders", *orders().columns, Column("extra", INT4, missing_value="5"))
    part = changes(grown, inserts=[(3, "e", "f", 3, 3)], partials=[partial(grown, ["note"], {(2,): (2, "C", 2, 2)})])
    destination.write(batch(part, expected=100, new=200))
    assert contents(destination, grown) == {(1, "a", "b", 1, 5): 1, (2, "C", "d", 2, 2): 1, (3, "e", "f", 3, 3): 1}
    assert destination.positions().tables == {orders().table_id: 200}
    destination.forget(orders().table_id)
    assert destination.positions().tables == {}
    destination.close()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "path", [":memory:", ":memory:shop", "md:", "md:shop", "motherduck:shop", "s3://b/x.duckdb", "ducklake:x.ducklake"]
)
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        build_destination(DestinationConfig("duckdb", {"path": path}), "shop")
    assert caught.value.field == "destination.path"
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destination = build_destination(DestinationConfig("duckdb", {"path": "./md:shop"}), "shop")
    destination.prepare()
    destination.close()
    assert (tmp_path / "md:shop").is_file()
