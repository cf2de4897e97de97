"""In which order a SQL destination runs the statements of a batch: what is recorded are those of a real DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from etl_core.destination.duckdb import session
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.duckdb.session import DuckDBSession
from etl_core.destination.sql.dialect import Query
from etl_core.errors import WatermarkConflict
from etl_core.testing.destination_tables import batch, changes, contents, orders, partial, publish

A, B = orders(16_400, "a"), orders(16_401, "b")
ROW, NEW = (1, "a", "b", 1), (2, "c", "d", 2)
FENCE = ["UPDATE _etl.streams", "UPDATE _etl.watermarks", "SELECT _etl.watermarks"]
_RELATIONS = ("_etl.streams", "_etl.watermarks", "public.a", "public.b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> DuckDBDestination:
    """With tables A and B at 100, and the stream at 100."""
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, A, [ROW])
    publish(destination, B, [ROW])
    destination.write(batch(expected=100, new=100, stream=100))
    return destination


@pytest.fixture
def ran(destination: DuckDBDestination, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of each statement since `destination` was made its first word and the first of our relations that it names."""
    statements: list[str] = []

    def note(query: Query) -> None:
        text = query.as_string(None).replace('"', "")
        named = sorted((text.index(name), name) for name in _RELATIONS if name in text)
        statements.append(" ".join([text.split()[0], *(name for _, name in named[:1])]))

    class Recorded(DuckDBSession):
        def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
            note(query)
            return super().fetch(query, values)

        def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
            note(query)
            return super().execute_with(query, rows)

        def rollback(self) -> None:
            statements.append("ROLLBACK")
            super().rollback()

    monkeypatch.setattr(session, "DuckDBSession", Recorded)
    return statements


def test_positions_are_moved_before_anything_is_read_or_written(destination: DuckDBDestination, ran: list[str]) -> None:
    a = changes(A, inserts=[NEW], deletes=[(1,)])
    b = changes(B, partials=[partial(B, ["note"], {(1,): (1, "z", 9)})])
    destination.write(batch(a, b, expected=100, new=200, stream=200, stream_from=100))
    assert ran == [
        *FENCE,
        *("DESCRIBE public.a", "DELETE public.a", "INSERT public.a"),
        *("DESCRIBE public.b", "CREATE public.b", "SELECT", "DELETE public.b", "INSERT public.b", "DROP"),
    ]
    assert contents(destination, A) == {NEW: 1}
    assert contents(destination, B) == {(1, "z", "b", 9): 1}


def test_a_batch_that_moves_nothing_runs_no_fence(destination: DuckDBDestination, ran: list[str]) -> None:
    destination.write(batch(expected=100, new=100))
    assert "UPDATE _etl.streams" not in ran
    assert "UPDATE _etl.watermarks" not in ran


@pytest.mark.parametrize(
    ("stream_from", "expected", "ends"),
    [(90, 100, ["UPDATE _etl.streams", "ROLLBACK"]), (100, 90, [*FENCE[:2], "ROLLBACK"])],
    ids=["the stream's", "the tables'"],
)
def test_of_a_batch_with_another_position_no_table_is_touched(
    destination: DuckDBDestination, ran: list[str], stream_from: int, expected: int, ends: list[str]
) -> None:
    before = destination.positions()
    ran.clear()
    part = changes(A, inserts=[NEW])
    with pytest.raises(WatermarkConflict, match=r"is at|has the watermark"):
        destination.write(batch(part, expected=expected, new=200, stream=200, stream_from=stream_from))
    assert ran[: len(ends)] == ends
    assert all(statement.startswith("SELECT _etl") for statement in ran[len(ends) :]), "what was found is only told"
    assert destination.positions() == before
    assert contents(destination, A) == {ROW: 1}


def test_one_table_of_two_is_elsewhere(destination: DuckDBDestination) -> None:
    destination.write(batch(changes(B, upserts=[NEW]), expected=100, new=150))
    before = destination.positions()
    both = batch(changes(A, inserts=[NEW]), changes(B, upserts=[NEW]), expected=100, new=200)
    with pytest.raises(WatermarkConflict, match=r"public.b has the watermark 0/96, not the expected 0/64"):
        destination.write(both)
    assert destination.positions() == before


@pytest.mark.parametrize(("table", "name"), [("streams", "pipeline"), ("watermarks", "table_id")])
def test_a_position_that_is_there_twice_is_no_position(
    destination: DuckDBDestination, path: Path, table: str, name: str
) -> None:
    """To read the one row and trust it would not show the other; the rows that an update has touched do."""
    with duckdb.connect(path) as connection:
        connection.execute(f"INSERT INTO _etl.{table} SELECT DISTINCT ON ({name}) * FROM _etl.{table}")  # noqa: S608
    with pytest.raises(WatermarkConflict, match="a position is there twice"):
        destination.write(batch(changes(A, inserts=[NEW]), expected=100, new=200, stream=200, stream_from=100))
    assert contents(destination, A) == {ROW: 1}


def test_bookkeeping_of_before_is_another_position(destination: DuckDBDestination, path: Path) -> None:
    """A file of an older version that was put back while the pipeline runs."""
    with duckdb.connect(path) as connection:
        connection.execute("ALTER TABLE _etl.streams DROP COLUMN incarnation")
    with pytest.raises(WatermarkConflict):
        destination.write(batch(changes(A, inserts=[NEW]), expected=100, new=200, stream=200, stream_from=100))
    assert contents(destination, A) == {ROW: 1}


def test_a_column_that_a_person_added_to_the_bookkeeping_is_passed_over(
    destination: DuckDBDestination, path: Path
) -> None:
    before = destination.positions()
    with duckdb.connect(path) as connection:
        connection.execute("ALTER TABLE _etl.streams ADD COLUMN remark VARCHAR DEFAULT 'ours'")
    assert destination.positions() == before
