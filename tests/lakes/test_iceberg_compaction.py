"""Many small files become few in one commit, whoever else commits, and whatever becomes of the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from etl_core.batch import TableChanges
from etl_core.destination.iceberg.compaction import NEVER, Cadence, _insert, _replace
from etl_core.destination.iceberg.destination import IcebergDestination
from etl_core.destination.iceberg.files import choose
from etl_core.errors import DestinationUnavailable, TryAgain
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_tables import INT8, TEXT, batch, changes, contents, orders, publish, table
from etl_core.testing.servers.seaweedfs import SeaweedFS
from tests.lakes.test_iceberg_commits import Fault, Gateway, gateway

__all__ = ["gateway"]

A = orders(16_400, "a")
NAMED = table("named", Column("id", INT8), Column("filename", TEXT), table_id=16_401)
"""Its column is called as DuckDB calls the file of a row."""


@pytest.fixture
def make(seaweedfs: SeaweedFS, tmp_path: Path) -> Callable[..., IcebergDestination]:
    """A destination of one warehouse, whose catalog is asked at an address."""
    access = seaweedfs.access()
    tokens = f"{seaweedfs.uri}/v1/oauth/tokens"
    return lambda uri=seaweedfs.uri, cadence=NEVER: IcebergDestination(
        replace(access, uri=uri, oauth2_server_uri=tokens), "shop", tmp_path, cadence
    )


def stored(destination: IcebergDestination, namespace: str, name: str) -> Table:
    return destination._compaction._opened().load_table((namespace, name))


def files(found: Table) -> Counter[int]:
    """How many there are of data (0) and of deletes (1)."""
    contents: list[Any] = found.inspect.files()["content"].to_pylist()
    return Counter(contents)


def write(destination: IcebergDestination, at: int) -> None:
    both = [
        changes(A, upserts=[(at, "new", "row", at), (at - 1, "again", "", at)], deletes=[(at - 2,)]),
        changes(NAMED, inserts=[(at, "row")], deletes=[(at - 1,)]),
    ]
    destination.write(batch(*both, expected=at, new=at + 1))


def by_pyiceberg(found: Table) -> Counter[int]:
    ids: list[Any] = found.scan(selected_fields=("id",)).to_arrow()["id"].to_pylist()
    return Counter(ids)


def keys(destination: IcebergDestination) -> list[Any]:
    rows: list[Any] = list(contents(destination, A).elements())
    return sorted(row[0] for row in rows)


def test_files_become_few_and_snapshots_expire(make: Callable[..., IcebergDestination]) -> None:
    destination = make(cadence=Cadence(0.0, 0.000_001))
    destination.prepare()
    publish(destination, A, [(key, "a", "b", 1) for key in range(100, 200)])
    publish(destination, NAMED, [(1, "x")])
    for at in range(100, 106):
        write(destination, at)
    found = stored(destination, "public", "a")
    newest: Any = found.current_snapshot()
    summary = newest.summary.additional_properties
    assert (summary["etl.pipeline"], summary["etl.lsn"]) == ("shop", str(Lsn(106)))
    many = sum(files(found).values())
    assert many > 15
    expected = {each.name.name: contents(destination, each) for each in (A, NAMED)}
    old = {entry["file_path"] for entry in found.inspect.files().to_pylist()}

    told = {each.table: (each.files, each.error) for each in destination.compact(None)}

    assert told["public.a"] == (many, None)
    assert set(told) == {"public.a", "public.named", "etl_bookkeeping.watermarks", "etl_bookkeeping.streams"}
    for each in (A, NAMED):
        found = stored(destination, "public", each.name.name)
        assert (files(found), len(found.snapshots())) == ({0: 1}, 1)
        assert contents(destination, each) == expected[each.name.name]
        assert sum(by_pyiceberg(found).values()) == sum(expected[each.name.name].values())
    storage = stored(destination, "public", "a").io
    assert not [path for path in old if storage.new_input(path).exists()]
    assert [each.files for each in destination.compact([A.name])] == [0]
    write(destination, 106)
    assert destination.positions().tables == {A.table_id: Lsn(107), NAMED.table_id: Lsn(107)}
    destination.write(batch(changes(A, deletes=[(key,) for key in range(201)]), expected=107, new=108, tables=[]))
    assert [each.error for each in destination.compact([A.name])] == [None]  # no row is left to be written
    assert not contents(destination, A)
    destination.close()


def test_of_a_batch_and_a_compaction_that_meet_one_is_done_again(
    make: Callable[..., IcebergDestination], gateway: Gateway
) -> None:
    writer, other = make(), make(gateway.uri)  # two addresses: they do not take turns
    writer.prepare()
    publish(writer, A, [(key, "a", "b", 1) for key in range(10)])
    writer.write(batch(changes(A, deletes=[(1,)]), expected=100, new=101))

    def parts() -> Iterator[TableChanges]:
        assert [each.error for each in other.compact([A.name])] == [None]
        yield changes(A, deletes=[(2,)])

    with pytest.raises(DestinationUnavailable, match="another writer has changed"):
        writer.write(replace(batch(tables=[A.table_id], expected=101, new=102), parts=parts()))
    writer.write(batch(changes(A, deletes=[(2,)]), expected=101, new=102))
    before = stored(other, "public", "a")
    chosen = choose(before, 1)
    assert chosen is not None
    writer.write(batch(changes(A, deletes=[(3,)]), expected=102, new=103))
    with pytest.raises(TryAgain), other._catalog.replacing(partial(_replace, before, chosen)) as session:
        session.execute(_insert(session.identifier("public", "a"), chosen))
    expected = [0, 4, 5, 6, 7, 8, 9]
    assert keys(other) == expected
    for fault in Fault:
        gateway.fault = fault
        assert [each.error for each in other.compact([A.name])] == [None]
        assert keys(writer) == expected
        lsn = int(writer.positions().tables[A.table_id])
        writer.write(batch(changes(A, deletes=[(expected.pop(),)]), expected=lsn, new=lsn + 1))
    writer.close()
    other.close()


def test_a_cadence_keeps_files_few(make: Callable[..., IcebergDestination]) -> None:
    destination = make(cadence=Cadence(0.000_001, 0.0))
    destination.prepare()
    publish(destination, A, [(key, "a", "b", 1) for key in range(100, 200)])
    publish(destination, NAMED, [(1, "x")])
    for at in range(100, 107):
        write(destination, at)
    for name in ("a", "named"):
        assert sum(files(stored(destination, "public", name)).values()) < 10
    assert sum(files(stored(destination, "etl_bookkeeping", "watermarks")).values()) < 10
    assert sum(contents(destination, NAMED).values()) == 2
    destination.close()
