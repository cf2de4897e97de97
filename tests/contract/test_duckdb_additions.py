"""What people add to a replicated table in DuckDB stays, or is refused before it is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.protocol import KeptRows
from etl_core.errors import CopiedAgain, TableError
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_deleted_suite import EARLY, LATER, THEN, at, copy_again, items
from etl_core.testing.destination_multiset_suite import multiset
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    array_of,
    batch,
    changes,
    contents,
    orders,
    partial,
    publish,
    table,
)

_DATA = [(1, "a", "b", 1), (2, "c", "d", 2), (3, "e", "f", 3)]
_NOTES = {1: "one", 2: "two", 3: "three"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "public.duckdb"  # a name of two parts would be ambiguous


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    yield destination
    destination.close()


def _run(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(path) as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


def _add_note(path: Path) -> None:
    _run(
        path,
        "ALTER TABLE public.public.orders ADD COLUMN \"my note\" VARCHAR DEFAULT 'new'",
        "UPDATE public.public.orders SET \"my note\" = ['one', 'two', 'three'][id]",
    )


def _notes(path: Path) -> dict[int, str]:
    return dict(_run(path, 'SELECT id, "my note" FROM public.public.orders'))


def _grown(schema: TableSchema) -> TableSchema:
    return replace(schema, columns=(*schema.columns, Column("extra", INT4, missing_value="5")))


def test_a_column_of_a_person_keeps_its_values(destination: DuckDBDestination, path: Path) -> None:
    _add_note(path)
    part = changes(
        orders(),
        inserts=[(4, "g", "h", 4)],
        upserts=[(1, "A", "B", 11), (5, "i", "j", 5)],
        deletes=[(3,)],
        partials=[partial(orders(), ["note"], {(2,): (20, "C", 22)})],
    )
    destination.write(batch(part, expected=100, new=200))
    assert _notes(path) == {1: "one", 20: "two", 4: "new", 5: "new"}
    destination.write(batch(changes(orders(), inserts=[(3, "e", "f", 3)]), expected=200, new=300))
    assert _notes(path)[3] == "new"
    expected = [(1, "A", "B", 11), (20, "C", "d", 22), (4, "g", "h", 4), (5, "i", "j", 5), (3, "e", "f", 3)]
    assert contents(destination, orders()) == dict.fromkeys(expected, 1)


def test_it_is_kept_by_columns_that_come_and_go_at_the_source(destination: DuckDBDestination, path: Path) -> None:
    _add_note(path)
    _run(path, 'CREATE INDEX by_note ON public.public.orders ("my note", amount)')
    grown = _grown(orders())
    final = replace(grown, columns=tuple(c for c in grown.columns if c.name != "status"))
    destination.write(
        batch(
            changes(orders(), upserts=[(1, "A", "B", 11)]),
            changes(grown, inserts=[(4, "g", "h", 4, 6)]),
            changes(final, upserts=[(2, "D", 22, 7)]),
            expected=100,
            new=200,
        )
    )
    assert _notes(path) == {**_NOTES, 4: "new"}
    assert contents(destination, final) == dict.fromkeys(
        [(1, "B", 11, 5), (2, "D", 22, 7), (3, "f", 3, 5), (4, "h", 4, 6)], 1
    )
    assert _run(path, "SELECT index_name FROM duckdb_indexes()") == [("by_note",)]
    destination.write(batch(changes(orders(), deletes=[(1,)]), expected=200, new=300))
    assert _notes(path) == {2: "two", 3: "three", 4: "new"}


def test_a_copy_again_keeps_all_that_was_added(destination: DuckDBDestination, path: Path) -> None:
    _add_note(path)
    _run(
        path,
        "ALTER TABLE public.public.orders ALTER COLUMN amount SET NOT NULL",
        "ALTER TABLE public.public.orders ALTER COLUMN status SET DEFAULT 'x'",
        'CREATE UNIQUE INDEX "by id" ON public.public.orders (id, lower("my note"), (amount + 1))',
        "COMMENT ON INDEX public.public.\"by id\" IS 'unique'",
        "COMMENT ON TABLE public.public.orders IS 'it''s ours'",
        "COMMENT ON COLUMN public.public.orders.\"my note\" IS 'by hand'",
    )
    described = (
        "SELECT 'i', index_name, sql, comment FROM duckdb_indexes() UNION ALL SELECT 'c', column_name, column_default, "
        "comment FROM duckdb_columns() WHERE table_name = 'orders' UNION ALL SELECT 'n', constraint_text, "
        "constraint_column_names::VARCHAR, NULL FROM duckdb_constraints() WHERE table_name = 'orders' UNION ALL "
        "SELECT 't', comment, NULL, NULL FROM duckdb_tables() WHERE table_name = 'orders' ORDER BY ALL"
    )
    before = _run(path, described)
    assert publish(destination, orders(), [(1, "x", "y", 7), (3, "x", "y", 7), (9, "x", "y", 7)], watermark=300) == 3
    assert _run(path, described) == before
    assert _notes(path) == {1: "one", 3: "three", 9: "new"}
    destination.write(batch(changes(orders(), deletes=[(1,)], inserts=[(1, "a", "b", 1)]), expected=300, new=400))
    assert _notes(path)[1] == "new"


def test_a_view_of_a_person_stays(tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    publish(destination, orders(), _DATA)
    _run(path, "CREATE VIEW public.mine AS SELECT id, note FROM public.orders WHERE id < 3")
    publish(destination, orders(), [(1, "x", "y", 7)], watermark=300)
    assert _run(path, "SELECT * FROM public.mine") == [(1, "y")]
    grown = _grown(orders())
    destination.write(batch(changes(grown, upserts=[(1, "x", "z", 7, 7)]), expected=300, new=400))
    assert _run(path, "SELECT * FROM public.mine") == [(1, "z")]
    destination.close()


def test_keys_that_are_converted_are_found_again(destination: DuckDBDestination, path: Path) -> None:
    from etl_core.schema import pg_types
    from etl_core.schema.table import PgType

    uuid = PgType(pg_types.UUID, "uuid")
    keys = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
    schema = table("u", Column("id", uuid), Column("tags", array_of(1009, TEXT)), key=("id",), table_id=17_000)
    publish(destination, schema, [(keys[0], ["a"]), (keys[1], None)])
    _run(path, "ALTER TABLE public.public.u ADD COLUMN n INTEGER", "UPDATE public.public.u SET n = 7")
    destination.write(batch(changes(schema, upserts=[(keys[0], ["b"]), (keys[2], None)]), expected=100, new=200))
    assert publish(destination, schema, [(keys[0], ["b"]), (keys[2], None)], watermark=300) == 2
    assert _run(path, "SELECT id::VARCHAR, n FROM public.public.u ORDER BY id") == [(keys[0], 7), (keys[2], None)]


def test_deleted_rows_keep_a_persons_values_where_the_tables_name_changes_by_case_alone(
    destination: DuckDBDestination, path: Path
) -> None:
    old, new = (items(name=name) for name in ("Items", "items"))
    publish(destination, old, [(1, "a", 10, None), (2, "b", 20, at(EARLY)), (3, "c", 30, None)], watermark=200)
    _run(path, 'ALTER TABLE public.public."Items" ADD COLUMN mine INTEGER', "UPDATE public.public.items SET mine = id")
    assert copy_again(destination, new, [(1, "a", 10, None)], KeptRows(LATER), watermark=300) == 1
    found = _run(path, "SELECT id, mine, _etl_deleted_at IS NULL FROM public.public.items ORDER BY id")
    assert found == [(1, 1, True), (2, 2, False), (3, 3, False)]


def test_keys_that_somebody_has_doubled_are_told(destination: DuckDBDestination, path: Path) -> None:
    schema = items()
    publish(destination, schema, [(1, "a", 10, None), (2, "b", 20, None)], watermark=100)
    _run(path, "INSERT INTO public.public.items SELECT * FROM public.public.items WHERE id = 1")
    marked = partial(schema, ["note", "amount"], {(1,): (1, at(THEN)), (2,): (2, at(THEN))})
    changed = partial(schema, ["note"], {(1,): (1, 11, None), (2,): (2, 21, None)})
    for rows in (marked, changed):
        with pytest.raises(TableError, match=r"public.items: keys are there more than once: 3 rows have 2 of them"):
            destination.write(batch(changes(schema, partials=[rows]), expected=100, new=200, tables=[schema.table_id]))


def test_values_that_a_copy_would_lose_are_said_before_it(destination: DuckDBDestination, path: Path) -> None:
    log = table("log", Column("line", TEXT), key=(), table_id=17_000)
    publish(destination, log, [("a",)])
    _add_note(path)
    _run(path, "ALTER TABLE public.public.log ADD COLUMN mine INTEGER", "UPDATE public.public.log SET mine = 1")
    other_key = replace(orders(), columns=(Column("no", INT8), *orders().columns[1:]), key=("no",))
    for schema, named in ((log, "mine"), (other_key, "my note")):
        with pytest.raises(TableError, match=named) as caught:
            destination.copy(schema)
        assert "DROP COLUMN" in str(caught.value.hint)
    assert _run(path, "SELECT mine FROM public.public.log") == [(1,)]


def test_without_a_key_values_that_a_removed_row_would_lose_are_told(
    destination: DuckDBDestination, path: Path
) -> None:
    schema = multiset()
    publish(destination, schema, [("a", 1), ("a", 1)])
    _run(path, "ALTER TABLE public.public.lines ADD COLUMN note VARCHAR")
    destination.write(batch(changes(schema, inserts=[("b", 2)]), expected=100, new=200))
    with pytest.raises(TableError, match=r"public\.lines has no key, so .* would lose values of column note"):
        destination.write(batch(changes(schema, removals=[("a", 1)]), expected=200, new=300))
    assert contents(destination, schema) == Counter([("a", 1), ("a", 1), ("b", 2)])


def test_a_column_of_the_same_name_at_the_source_is_refused(destination: DuckDBDestination, path: Path) -> None:
    _run(path, "ALTER TABLE public.public.orders ADD COLUMN Extra INTEGER")
    with pytest.raises(TableError, match="did not create"):
        destination.write(batch(changes(_grown(orders()), inserts=[(4, "g", "h", 4, 6)]), expected=100, new=200))
    with pytest.raises(TableError, match="did not create") as caught:
        destination.copy(_grown(orders()))
    assert "RENAME" in str(caught.value.hint)


@pytest.mark.parametrize("change", ["DROP COLUMN note", "RENAME COLUMN note TO remark"], ids=["dropped", "renamed"])
def test_a_column_of_ours_that_is_gone_is_not_made_anew_empty(
    destination: DuckDBDestination, path: Path, change: str
) -> None:
    _run(path, f"ALTER TABLE public.public.orders {change}")
    with pytest.raises(TableError, match="no column note") as caught:
        destination.write(batch(changes(orders(), inserts=[(4, "g", "h", 4)]), expected=100, new=200))
    assert caught.value.hint == "copy the table again, which makes the column anew: etl resync public.orders"
    assert publish(destination, orders(), _DATA, watermark=300) == 3


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE UNIQUE INDEX one ON public.public.orders (status)",
        "ALTER TABLE public.public.orders ALTER COLUMN note SET NOT NULL",
        "ALTER TABLE public.public.orders ADD PRIMARY KEY (status)",
    ],
)
def test_a_constraint_that_refuses_rows_is_an_error_of_the_table(
    destination: DuckDBDestination, path: Path, statement: str
) -> None:
    _run(path, statement)
    for work in (
        lambda: destination.write(batch(changes(orders(), inserts=[(4, "c", None, 4)]), expected=100, new=200)),
        lambda: publish(destination, orders(), [*_DATA, (4, "c", None, 4)], watermark=300),
    ):
        with pytest.raises(TableError, match=r"public\.orders") as caught:
            work()
        assert "constraint" in str(caught.value)
        assert "etl resync public.orders" in str(caught.value.hint)
    assert contents(destination, orders()) == dict.fromkeys(_DATA, 1)


def test_a_column_renamed_at_the_source_takes_what_was_added_to_it_along(
    destination: DuckDBDestination, path: Path
) -> None:
    before = replace(orders(), columns=tuple(replace(c, attnum=at) for at, c in enumerate(orders().columns, 1)))
    publish(destination, before, _DATA, watermark=150)
    _add_note(path)
    _run(
        path,
        "ALTER TABLE public.public.orders ALTER COLUMN amount SET DEFAULT 7",
        "COMMENT ON COLUMN public.public.orders.amount IS 'in cents'",
        "ALTER TABLE public.public.orders ALTER COLUMN amount SET NOT NULL",
    )
    identity, note, status, amount = before.columns
    after = replace(before, columns=(identity, note, status, replace(amount, name="cents")))
    destination.write(batch(changes(after, upserts=[(1, "A", "B", 11)]), expected=150, new=200))
    assert contents(destination, after) == dict.fromkeys([(1, "A", "B", 11), *_DATA[1:]], 1)
    assert _notes(path) == _NOTES
    added = _run(
        path,
        "SELECT column_default, is_nullable, comment FROM duckdb_columns() WHERE column_name = 'cents'",
    )
    assert added == [("7", False, "in cents")]


def test_a_name_of_a_person_s_column_is_not_taken_by_a_rename(destination: DuckDBDestination, path: Path) -> None:
    before = replace(orders(), columns=tuple(replace(c, attnum=at) for at, c in enumerate(orders().columns, 1)))
    publish(destination, before, _DATA, watermark=150)
    _add_note(path)
    renamed = replace(before, columns=(*before.columns[:3], replace(before.columns[3], name="My Note")))
    with pytest.raises(TableError, match="My Note at the source, and in DuckDB it has a column of that name"):
        destination.write(batch(changes(renamed, inserts=[(4, "g", "h", 4)]), expected=150, new=200))
    assert contents(destination, before) == dict.fromkeys(_DATA, 1)
    assert _notes(path) == _NOTES


def test_a_column_that_a_person_retyped_has_the_table_copied_again(destination: DuckDBDestination, path: Path) -> None:
    _run(path, "ALTER TABLE public.public.orders ALTER COLUMN amount TYPE VARCHAR")
    with pytest.raises(CopiedAgain, match=r"column amount .* is INTEGER at the source and VARCHAR in DuckDB"):
        destination.write(batch(changes(orders(), inserts=[(4, "g", "h", 4)]), expected=100, new=200))


def test_a_table_that_is_spelled_otherwise_now_keeps_what_was_added(destination: DuckDBDestination, path: Path) -> None:
    _add_note(path)
    schema = orders()
    spelled = replace(schema, name=TableName("PUBLIC", "Orders"))
    publish(destination, spelled, _DATA)
    assert _run(path, 'SELECT id, "my note" FROM public.public.orders ORDER BY id') == list(_NOTES.items())
