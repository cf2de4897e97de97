"""Rows larger than the memory that DuckDB usually gets: copied, changed and read all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from etl_core.destination.duckdb import compression, connection, memory
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.duckdb.memory import MemoryRaised
from etl_core.destination.protocol import read_whole
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.testing.destination_tables import Row, batch, changes, partial, publish
from etl_core.testing.destination_tables import rows as arrow_rows

MEGABYTE = 1 << 20
ROWS = 32


@pytest.fixture
def destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DuckDBDestination:
    monkeypatch.setattr(connection, "_MEMORY_MB", 31)  # 32 MB with the one table
    destination = DuckDBDestination(tmp_path / "shop.duckdb", "shop")
    destination.prepare()
    return destination


def column(name: str, oid: int, attnum: int) -> Column:
    kind = builtin(oid)
    assert kind is not None
    return Column(name, kind, attnum=attnum)


SCHEMA = TableSchema(
    TableId(7),
    TableName("public", "documents"),
    (column("id", pg_types.INT4, 1), column("n", pg_types.INT4, 2), column("body", pg_types.TEXT, 3)),
    ("id",),
    ReplicaIdentity.DEFAULT,
)


def body(number: int) -> str:
    return f"{number:08}" * (MEGABYTE // 8)


def test_they_are_copied_changed_and_read(destination: DuckDBDestination) -> None:
    assert publish(destination, SCHEMA, [(number, 0, body(number)) for number in range(ROWS)]) == ROWS
    # The values that an update leaves unchanged are read by DuckDB, whatever the size of the batch.
    moved: dict[Row, Sequence[Any]] = {(number,): (number + ROWS, 1) for number in range(ROWS)}
    destination.write(batch(changes(SCHEMA, partials=[partial(SCHEMA, ["body"], moved)]), expected=100, new=200))
    read = [row for rows in destination.read(SCHEMA) for row in rows.to_pylist()]
    expected = arrow_rows(SCHEMA, [(number + ROWS, 1, body(number)) for number in range(ROWS)]).to_pylist()
    assert sorted(read, key=lambda row: row["id"]) == expected
    destination.close()


def test_a_batch_that_runs_out_of_memory_may_be_written_again(destination: DuckDBDestination) -> None:
    publish(destination, SCHEMA, [(number, 0, "") for number in range(ROWS)])
    upserts = [(number, 1, body(number)) for number in range(ROWS)]
    with pytest.raises(MemoryRaised):
        destination.write(batch(changes(SCHEMA, upserts=upserts), expected=100, new=200))
    read_whole(lambda: destination.write(batch(changes(SCHEMA, upserts=upserts), expected=100, new=200)))
    assert destination.positions().tables == {SCHEMA.table_id: 200}
    destination.close()


def test_large_rows_after_small_ones_are_read_by_as_many_attempts_as_they_need(
    destination: DuckDBDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mostly two: whether DuckDB runs out of memory in the middle of the first one is up to its threads."""
    monkeypatch.setattr(compression, "_LONG", 1 << 30)  # by ZSTD these rows are small enough at once
    small, large = 60_000, 48
    rows = [(number, 0, "x" * 50) for number in range(small)]
    publish(destination, SCHEMA, rows)
    upserts = [(small + number, 1, body(number)) for number in range(large)]
    read_whole(lambda: destination.write(batch(changes(SCHEMA, upserts=upserts), expected=100, new=200)))
    destination.close()
    again = DuckDBDestination(destination._file.path, "shop")
    memory._raised.clear()  # as in another process
    memory._in_force.clear()

    def read() -> list[Any]:
        return [number for part in again.read(SCHEMA) for number in part.column("id").to_pylist()]

    assert sorted(read_whole(read)) == list(range(small + large))
