"""Columns that come and go in BigQuery, which has no ALTER in a transaction; processes that die or stand still."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from google.api_core import exceptions

from etl_core.batch import WriteBatch
from etl_core.destination.bigquery import destination as module
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.errors import CopiedAgain, CopyNeeded, WatermarkConflict
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    batch,
    changes,
    comparable,
    contents,
    orders,
    publish,
    rows,
    table,
)
from tests.contract.stalls import dies, once_before

WITH = replace(orders(), columns=tuple(replace(column, attnum=at) for at, column in enumerate(orders().columns, 1)))
WITHOUT = replace(WITH, columns=tuple(column for column in WITH.columns if column.name != "note"))
AGAIN = replace(WITHOUT, columns=(*WITHOUT.columns, Column("note", TEXT, attnum=5)))


@pytest.fixture
def processes(bigquery_options: dict[str, str]) -> Iterator[tuple[BigQueryDestination, BigQueryDestination]]:
    """Two of one pipeline, as a stalled one and its successor. The table is copied at watermark 100."""
    mark = bigquery_options["dataset"].partition("_")[0]
    first, second = (from_options(bigquery_options, f"shop_{mark}") for _ in range(2))
    first.prepare()
    publish(first, WITH, [(1, "a", "b", 1)])
    yield first, second
    first.close()
    second.close()


def there(destination: BigQueryDestination, schema: TableSchema = WITH) -> set[str]:
    """The columns that a user of BigQuery sees."""
    table = destination._clients.rest().get_table(str(destination.place(schema)))
    return {field.name for field in table.schema}


def test_a_table_of_an_older_version_stops_and_is_copied_again(
    processes: tuple[BigQueryDestination, BigQueryDestination],
) -> None:
    """A version that did not know a type stored its text as bytes."""
    destination, _ = processes
    as_bytes = table("places", Column("id", INT8), Column("at", PgType(70_000, "thing", "public"), attnum=2))
    publish(destination, as_bytes, [(1, b"(1,2)")])
    as_point = replace(as_bytes, columns=(as_bytes.columns[0], Column("at", PgType(pg_types.POINT, "point"), attnum=2)))
    with pytest.raises(CopyNeeded, match=r"public\.places: column at holds a value .* not of type point"):
        contents(destination, as_point)
    with pytest.raises(CopiedAgain, match=r"column at is STRUCT<.*> at the source and BYTES in BigQuery"):
        destination.write(batch(changes(as_point, inserts=[(2, {"x": 1.0, "y": 2.0})]), expected=100, new=200))
    publish(destination, as_point, [(1, {"x": 1.0, "y": 2.0})], watermark=300)
    assert contents(destination, as_point) == Counter(comparable(rows(as_point, [(1, {"x": 1.0, "y": 2.0})])))


def test_one_that_stood_still_does_not_drop_what_its_successor_added(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, successor = processes

    def goes_on() -> None:
        successor.write(batch(changes(AGAIN, inserts=[(3, "c", 3, "new")]), expected=200, new=300))

    once_before(monkeypatch, module, "drop_columns", goes_on)
    stalled.write(batch(changes(WITHOUT, inserts=[(2, "b", 2)]), expected=100, new=200))
    assert contents(successor, AGAIN) == Counter([(1, "a", 1, None), (2, "b", 2, None), (3, "c", 3, "new")])
    assert there(successor) == {"id", "status", "amount", "note"}


@pytest.mark.parametrize("at", ["add_columns", "_run"])
def test_one_that_stood_still_with_its_batch_changes_nothing(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The successor writes the same batch and the next, in which the column goes that came with the first."""
    stalled, successor = processes
    grown = replace(WITH, columns=(*WITH.columns, Column("extra", INT4, attnum=5, missing_value="7")))

    def first() -> WriteBatch:
        return batch(changes(grown, inserts=[(2, "c", "d", 2, 0)]), expected=100, new=200)

    def goes_on() -> None:
        successor.write(first())
        successor.write(batch(changes(WITH, inserts=[(3, "e", "f", 3)]), expected=200, new=300))

    once_before(monkeypatch, module if at == "add_columns" else BigQueryDestination, at, goes_on)
    with pytest.raises(WatermarkConflict):
        stalled.write(first())
    assert contents(successor, WITH) == Counter([(1, "a", "b", 1), (2, "c", "d", 2), (3, "e", "f", 3)])
    assert there(successor) == {"id", "status", "note", "amount"}


def test_a_column_that_a_crash_has_left_goes_with_the_next_batch(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, successor = processes

    once_before(monkeypatch, module, "drop_columns", dies)
    with pytest.raises(LookupError):
        killed.write(batch(changes(WITHOUT, inserts=[(2, "b", 2)]), expected=100, new=200))
    assert "note" in there(successor)
    successor.write(batch(changes(WITHOUT, inserts=[(3, "c", 3)]), expected=200, new=300))
    assert there(successor) == {"id", "status", "amount"}
    assert contents(successor, WITHOUT) == Counter([(1, "a", 1), (2, "b", 2), (3, "c", 3)])


def test_a_column_that_cannot_be_dropped_now_goes_later(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, _ = processes
    with monkeypatch.context() as patched:
        patched.setattr(Clients, "_run", _refusing(Clients._run))
        destination.write(batch(changes(WITHOUT, inserts=[(2, "b", 2)]), expected=100, new=200))
    assert "note" in there(destination)
    destination.write(batch(changes(AGAIN, inserts=[(3, "c", 3, "new")]), expected=200, new=300))
    assert contents(destination, AGAIN) == Counter([(1, "a", 1, None), (2, "b", 2, None), (3, "c", 3, "new")])


def _refusing(real: Any) -> Any:
    def run(self: Clients, sql: str, *rest: Any) -> Any:
        if "DROP COLUMN" in sql:
            raise exceptions.TooManyRequests("no")  # type: ignore[no-untyped-call]
        return real(self, sql, *rest)

    return run


def test_one_that_dies_between_the_column_and_its_batch(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, successor = processes
    grown = replace(WITH, columns=(*WITH.columns, Column("extra", INT4, attnum=5, missing_value="7")))

    def part() -> WriteBatch:
        return batch(changes(grown, inserts=[(2, "c", "d", 2, 0)]), expected=100, new=200)

    once_before(monkeypatch, BigQueryDestination, "_run", dies)
    with pytest.raises(LookupError):
        killed.write(part())
    assert contents(successor, WITH) == Counter([(1, "a", "b", 1)])
    successor.write(part())
    assert contents(successor, grown) == Counter([(1, "a", "b", 1, 7), (2, "c", "d", 2, 0)])


def test_a_column_that_goes_and_comes_in_one_batch_loses_nothing_before_the_batch_counts(
    processes: tuple[BigQueryDestination, BigQueryDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, successor = processes

    def part() -> WriteBatch:
        return batch(changes(AGAIN, inserts=[(2, "b", 2, "new")]), expected=100, new=200)

    once_before(monkeypatch, BigQueryDestination, "_run", dies)
    with pytest.raises(LookupError):
        killed.write(part())
    assert contents(successor, WITH) == Counter([(1, "a", "b", 1)])
    successor.write(part())
    assert contents(successor, AGAIN) == Counter([(1, "a", 1, None), (2, "b", 2, "new")])


def test_a_column_that_somebody_has_added_by_hand(
    processes: tuple[BigQueryDestination, BigQueryDestination],
) -> None:
    destination, _ = processes
    place = destination.place(WITH)
    destination._clients.run(f"ALTER TABLE {place.sql} ADD COLUMN Extra INT64, ADD COLUMN other STRING", "a test")
    destination._clients.run(f"UPDATE {place.sql} SET Extra = 5 WHERE TRUE", "a test")  # noqa: S608 the test's own table
    number, text = Column("extra", INT4, attnum=5), Column("other", INT4, attnum=6)
    grown = replace(WITH, columns=(*WITH.columns, number))
    destination.write(batch(changes(grown, inserts=[(2, "c", "d", 2, 9)]), expected=100, new=200))
    assert contents(destination, grown) == Counter([(1, "a", "b", 1, None), (2, "c", "d", 2, 9)])
    with pytest.raises(CopiedAgain, match=r"public\.orders: column other is INT64 .* STRING in BigQuery"):
        destination.write(batch(changes(replace(grown, columns=(*grown.columns, text))), expected=200, new=300))
