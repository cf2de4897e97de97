"""A batch of more tables than a transaction of BigQuery may have, and what a batch's jobs are told about."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.batch import StreamMove, StreamPosition, WatermarkMove, WriteBatch
from etl_core.destination.bigquery import staging, staging_tables, transactions
from etl_core.destination.bigquery.bookkeeping import Bookkeeping
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.destination.protocol import Positions
from etl_core.errors import TableError, WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_tables import INCARNATION, INT8, changes, contents, publish, stream_at, table

TABLES = [table(TableName("public", f"t{number}"), Column("id", INT8), table_id=20 + number) for number in range(5)]


@pytest.fixture
def destination(bigquery_options: dict[str, str]) -> Iterator[BigQueryDestination]:
    mark = bigquery_options["dataset"].partition("_")[0]
    destination = from_options(bigquery_options, f"shop_{mark}")
    destination.prepare()
    for schema in TABLES:
        publish(destination, schema, [(1,)])
    yield destination
    destination.close()


def everything(*, expected: dict[TableId, Lsn] | None = None) -> WriteBatch:
    """A row more for every table that has not got it yet."""
    marks = expected or {schema.table_id: Lsn(100) for schema in TABLES}
    parts = [changes(schema, inserts=[(2,)]) for schema in TABLES if marks[schema.table_id] < Lsn(200)]
    moves = {table_id: WatermarkMove(mark, Lsn(200)) for table_id, mark in marks.items()}
    return WriteBatch(parts, moves, StreamMove(None, StreamPosition(Lsn(200), INCARNATION)))


@pytest.mark.parametrize(("most", "longest", "jobs"), [(99, 900_000, 1), (2, 900_000, 3), (99, 1, 5)])
def test_a_batch_is_cut_where_bigquery_has_an_end(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch, most: int, longest: int, jobs: int
) -> None:
    monkeypatch.setattr(transactions, "MOST_TABLES", most)
    monkeypatch.setattr(transactions, "_LONGEST", longest)
    written = destination.write(everything())
    assert len(written) == len({job.id for job in written}) == jobs
    assert all(job.url is not None and job.id in job.url for job in written)
    assert all(contents(destination, schema) == Counter([(1,), (2,)]) for schema in TABLES)
    assert destination.positions() == Positions({schema.table_id: Lsn(200) for schema in TABLES}, stream_at(200))


def test_what_was_written_before_a_crash_is_not_written_again(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "MOST_TABLES", 2)
    real, calls = Clients.run, 0

    def run(self: Clients, sql: str, *rest: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += sql.startswith("BEGIN")
        if calls == 2:
            raise LookupError("killed")
        return real(self, sql, *rest, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Clients, "run", run)
        with pytest.raises(LookupError):
            destination.write(everything())
    positions = destination.positions()
    assert sorted(positions.tables.values()) == [Lsn(100)] * 3 + [Lsn(200)] * 2
    assert positions.stream is None
    with pytest.raises(WatermarkConflict):
        destination.write(everything())
    destination.write(everything(expected=dict(positions.tables)))
    assert all(contents(destination, schema) == Counter([(1,), (2,)]) for schema in TABLES)


def test_each_of_several_transactions_compares_the_position_of_the_stream(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that stood still after it had looked."""
    monkeypatch.setattr(transactions, "MOST_TABLES", 2)
    monkeypatch.setattr(Bookkeeping, "fenced_tables", lambda self, _: self.tables())
    there = StreamPosition(Lsn(150), INCARNATION)
    destination.write(WriteBatch((), {}, StreamMove(None, there)))
    with pytest.raises(WatermarkConflict):
        destination.write(everything())
    positions = destination.positions()
    assert set(positions.tables.values()) == {Lsn(100)}
    assert positions.stream == there


def test_the_tables_of_a_batch_are_staged_at_once(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(len(TABLES), timeout=300)
    real = Bookkeeping.create_staging

    def create(*arguments: Any) -> None:
        together.wait()
        real(*arguments)

    monkeypatch.setattr(Bookkeeping, "create_staging", create)
    destination.write(everything())
    assert all(contents(destination, schema) == Counter([(1,), (2,)]) for schema in TABLES)
    assert destination._book.staged("part") == []


def test_rows_on_their_way_are_limited(destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging_tables, "_BYTES_ON_THEIR_WAY", 1)
    alone = threading.Lock()
    real = Bookkeeping.create_staging

    def create(*arguments: Any) -> None:
        assert alone.acquire(blocking=False)
        real(*arguments)
        alone.release()

    monkeypatch.setattr(Bookkeeping, "create_staging", create)
    destination.write(everything())
    assert all(contents(destination, schema) == Counter([(1,), (2,)]) for schema in TABLES)


def test_one_that_cannot_be_staged_fails_the_batch(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staging.append_all
    refused = TABLES[2].name

    def append_all(clients: Clients, place: Any, rows: Any, name: TableName) -> None:
        if name == refused:
            raise TableError(f"{name} is refused", table=str(name))
        real(clients, place, rows, name)

    monkeypatch.setattr(staging_tables, "append_all", append_all)
    with pytest.raises(TableError, match="refused"):
        destination.write(everything())
    assert all(contents(destination, schema) == Counter([(1,)]) for schema in TABLES)
    assert destination._book.staged("part") == []
