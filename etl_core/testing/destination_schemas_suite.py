"""The part of the destination contract about schemas that move forward, and about names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from decimal import Decimal

import pytest

from etl_core.batch import TableChanges, WriteBatch
from etl_core.destination.protocol import Destination
from etl_core.errors import CopiedAgain, TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema import pg_types
from etl_core.schema.alterations import alterations
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    batch,
    changes,
    contents,
    orders,
    partial,
    publish,
    table,
)

NUMERIC = PgType(pg_types.NUMERIC, "numeric")


def altered(before: TableSchema, part: TableChanges) -> TableChanges:
    """The part with the steps from `before`, as the engine gives them."""
    return replace(part, alterations=alterations(before, part.schema))


def _is_carried(destination: Destination, changes: WriteBatch) -> bool:
    try:
        destination.write(changes)
    except CopiedAgain:
        return False
    return True


def _numbered(schema: TableSchema) -> TableSchema:
    return replace(schema, columns=tuple(replace(column, attnum=at) for at, column in enumerate(schema.columns, 1)))


def _grown(schema: TableSchema, *columns: Column) -> TableSchema:
    return replace(schema, columns=(*schema.columns, *columns))


AddColumn = Callable[[Destination, TableSchema, str], Callable[[], Collection[str]]]
"""Adds a column of text to a table as a person would; returns what gives the names of the table's columns."""


class SchemaSuite:
    """Mixed into DestinationSuite."""

    @pytest.fixture
    def add_column(self) -> AddColumn | None:
        """To be overridden where people can alter tables."""
        return None

    def test_a_column_that_a_person_added_is_left_alone(
        self, destination: Destination, add_column: AddColumn | None
    ) -> None:
        if add_column is None:
            pytest.skip("nobody but the destination can alter these tables")
        publish(destination, orders(), [(1, "a", "b", 1), (2, "c", "d", 2)])
        names = add_column(destination, orders(), "mine")
        grown = _grown(orders(), Column("extra", INT4, missing_value="5"))
        part = changes(grown, inserts=[(3, "e", "f", 3, 3)], upserts=[(1, "A", "B", 11, 1)])
        destination.write(batch(part, expected=100, new=200))
        shrunk = replace(grown, columns=tuple(c for c in grown.columns if c.name != "status"))
        destination.write(batch(changes(shrunk, deletes=[(3,)]), expected=200, new=300))
        assert contents(destination, shrunk) == Counter([(1, "B", 11, 1), (2, "d", 2, 5)])
        assert sorted(names()) == ["amount", "extra", "id", "mine", "note"]
        try:
            publish(destination, shrunk, [(1, "B", 11, 1)], watermark=400)
        except TableError as refused:
            assert "mine" in str(refused)  # noqa: PT017 either is right
        assert "mine" in names()

    def test_added_columns_have_what_older_rows_hold(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1), (2, "a", "b", 1)])
        grown = _grown(
            orders(),
            Column("plain", TEXT),
            Column("filled", INT4, missing_value="7"),
            Column("word", TEXT, missing_value="it's"),
        )
        destination.write(batch(changes(grown, upserts=[(2, "x", "y", 2, "new", None, None)]), expected=100, new=200))
        assert contents(destination, grown) == Counter(
            [(1, "a", "b", 1, None, 7, "it's"), (2, "x", "y", 2, "new", None, None)]
        )

    def test_dropped_columns_go(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1)])
        shrunk = replace(orders(), columns=(orders().columns[0], orders().columns[3]))
        destination.write(batch(changes(shrunk, inserts=[(2, 2)]), expected=100, new=200))
        assert contents(destination, shrunk) == Counter([(1, 1), (2, 2)])
        destination.write(batch(changes(orders(), inserts=[(3, "s", "n", 3)]), expected=200, new=300))
        assert contents(destination, orders()) == Counter([(1, None, None, 1), (2, None, None, 2), (3, "s", "n", 3)])

    def test_the_order_of_columns_means_nothing(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1)])
        turned = replace(orders(), columns=orders().columns[::-1])
        destination.write(batch(changes(turned, inserts=[(2, "note", "status", 20)]), expected=100, new=200))
        assert contents(destination, orders()) == Counter([(1, "a", "b", 1), (20, "status", "note", 2)])

    def test_a_column_dropped_and_added_again_is_another_column(self, destination: Destination) -> None:
        numbered = tuple(replace(column, attnum=at) for at, column in enumerate(orders().columns, 1))
        before = replace(orders(), columns=numbered)
        publish(destination, before, [(1, "a", "b", 1)])
        again = replace(numbered[2], attnum=5, missing_value="fresh")
        after = replace(before, columns=(*numbered[:2], again, numbered[3]))
        destination.write(batch(changes(after, inserts=[(2, "c", "d", 2)]), expected=100, new=200))
        destination.write(batch(changes(after, inserts=[(3, "e", "f", 3)]), expected=200, new=300))
        assert contents(destination, after) == Counter([(1, "a", "fresh", 1), (2, "c", "d", 2), (3, "e", "f", 3)])

    def test_a_schema_change_between_the_parts_of_one_batch(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1), (2, "a", "b", 2)])
        grown = _grown(orders(), Column("extra", INT4, missing_value="5"))
        final = replace(grown, columns=tuple(c for c in grown.columns if c.name != "status"))
        destination.write(
            batch(
                changes(orders(), deletes=[(1,)], inserts=[(3, "c", "d", 3)]),
                changes(grown, upserts=[(3, "cc", "dd", 33, 6)], inserts=[(1, "back", None, 1, 0)]),
                changes(final, partials=[partial(final, ["note"], {(3,): (3, 333, 7)})]),
                changes(final, deletes=[(1,)], inserts=[(4, "n", 4, 4)]),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, final) == Counter([(2, "b", 2, 5), (3, "dd", 333, 7), (4, "n", 4, 4)])

    def test_renamed_columns_keep_their_values(self, destination: Destination) -> None:
        """In place, also two that swap their names; or the table is to be copied again, and nothing was applied."""
        before = _numbered(orders())
        publish(destination, before, [(1, "a", "b", 1), (2, "c", "d", 2)])
        identity, note, status, amount = before.columns
        after = replace(before, columns=(identity, replace(note, name="status"), replace(status, name="word"), amount))
        parts = [
            altered(before, changes(after, upserts=[(2, "x", "y", 22)], inserts=[(3, "e", "f", 3)])),
            changes(after, partials=[partial(after, ["word"], {(1,): (1, "A", 11)})]),
        ]
        if not _is_carried(destination, batch(*parts, expected=100, new=200)):
            assert contents(destination, before) == Counter([(1, "a", "b", 1), (2, "c", "d", 2)])
            return
        assert contents(destination, after) == Counter([(1, "A", "b", 11), (2, "x", "y", 22), (3, "e", "f", 3)])
        swapped = replace(after, columns=(identity, replace(note, name="word"), replace(status, name="status"), amount))
        # After rows of the same transaction, and named once more though it is done: an answer was lost.
        parts = [
            changes(after, deletes=[(3,)], upserts=[(2, "xx", "yy", 222)]),
            altered(after, changes(swapped, inserts=[(4, "g", "h", 4)])),
        ]
        destination.write(batch(*parts, expected=200, new=300))
        again = altered(before, changes(swapped, upserts=[(4, "gg", "hh", 44)]))
        destination.write(batch(again, expected=300, new=400))
        assert contents(destination, swapped) == Counter([(1, "A", "b", 11), (2, "xx", "yy", 222), (4, "gg", "hh", 44)])

    def test_a_key_of_other_columns(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1), (2, "c", "d", 2)])
        other = replace(orders(), key=("amount",))
        parts = [
            changes(orders(), upserts=[(2, "c", "d", 20)]),
            altered(orders(), changes(other, deletes=[(1,)], upserts=[(20, "C", "D", 20)], inserts=[(2, "e", "f", 3)])),
        ]
        if not _is_carried(destination, batch(*parts, expected=100, new=200)):
            assert contents(destination, orders()) == Counter([(1, "a", "b", 1), (2, "c", "d", 2)])
            return
        assert contents(destination, other) == Counter([(20, "C", "D", 20), (2, "e", "f", 3)])

    def test_a_decimal_that_grew(self, destination: Destination) -> None:
        narrow = _grown(orders(), Column("price", NUMERIC, type_modifier=(10 << 16 | 2) + 4))
        wide = _grown(orders(), Column("price", NUMERIC, type_modifier=(20 << 16 | 2) + 4))
        publish(destination, narrow, [(1, "a", "b", 1, Decimal("12345678.90")), (2, "c", "d", 2, None)])
        large = Decimal("123456789012345678.25")
        part = altered(narrow, changes(wide, inserts=[(3, "e", "f", 3, large)], deletes=[(2,)]))
        if not _is_carried(destination, batch(part, expected=100, new=200)):
            assert contents(destination, narrow) == Counter(
                [(1, "a", "b", 1, Decimal("12345678.90")), (2, "c", "d", 2, None)]
            )
            return
        assert contents(destination, wide) == Counter(
            [(1, "a", "b", 1, Decimal("12345678.90")), (3, "e", "f", 3, large)]
        )

    def test_a_column_that_changed_its_type_is_refused(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1)])
        retyped = replace(orders(), columns=(*orders().columns[:3], Column("amount", TEXT)))
        with pytest.raises(TableError, match="amount"):
            destination.write(batch(changes(retyped, inserts=[(2, "a", "b", "two")]), expected=100, new=200))
        assert contents(destination, orders()) == Counter([(1, "a", "b", 1)])

    # Names of tables

    def test_a_renamed_table_keeps_its_rows(self, destination: Destination) -> None:
        """In place, also in the middle of a batch with other alterations, to another namespace; or refused whole."""
        before = orders()
        publish(destination, before, [(1, "a", "b", 1), (2, "c", "d", 2)])
        moved = _grown(replace(before, name=TableName("archive", "sales")), Column("extra", INT4, missing_value="7"))
        parts = [
            changes(before, upserts=[(2, "x", "y", 22)]),
            altered(before, changes(moved, inserts=[(3, "e", "f", 3, 3)])),
            changes(moved, partials=[partial(moved, ["note"], {(1,): (1, "A", 11, 5)})]),
        ]
        if not _is_carried(destination, batch(*parts, expected=100, new=200)):
            assert contents(destination, before) == Counter([(1, "a", "b", 1), (2, "c", "d", 2)])
            return
        rows = [(1, "A", "b", 11, 5), (2, "x", "y", 22, 7), (3, "e", "f", 3, 3)]
        assert contents(destination, moved) == Counter(rows)
        # Named once more though it is done: an answer was lost. Then without a row, as of a table that is not written.
        destination.write(batch(altered(before, changes(moved)), expected=200, new=300))
        last = replace(moved, name=TableName("archive", "Sales"))
        destination.write(batch(altered(moved, changes(last)), expected=300, new=300))
        assert contents(destination, last) == Counter(rows)
        publish(destination, replace(last, name=before.name), [(9, "n", "n", 9, 9)], watermark=400)
        assert contents(destination, replace(last, name=before.name)) == Counter([(9, "n", "n", 9, 9)])
        assert destination.positions().tables == {before.table_id: Lsn(400)}

    def test_tables_that_swap_their_names(self, destination: Destination) -> None:
        """One after the other, and a change between that has the name of before: no row goes to the other one."""
        one, other = orders(16_400, "one"), orders(16_500, "other")
        publish(destination, one, [(1, "one", "", 1)])
        publish(destination, other, [(1, "other", "", 1)])
        swapped = replace(one, name=other.name), replace(other, name=one.name)
        if not _is_carried(destination, batch(changes(swapped[0], inserts=[(2, "one", "", 2)]), expected=100, new=200)):
            return
        assert destination.positions().aside == {other.table_id}
        # A table that is behind does not take the name back.
        destination.write(batch(changes(other, inserts=[(2, "other", "", 2)]), expected=100, new=150))
        assert destination.positions().aside == {other.table_id}
        destination.write(batch(changes(swapped[1], inserts=[(3, "other", "", 3)]), expected=150, new=200))
        assert destination.positions().aside == set()
        assert contents(destination, swapped[0]) == Counter([(1, "one", "", 1), (2, "one", "", 2)])
        assert contents(destination, swapped[1]) == Counter([(n, "other", "", n) for n in (1, 2, 3)])
        # Back, in one batch; and a copy of the one puts the other aside until that is forgotten.
        both = [changes(one, deletes=[(2,)]), changes(other, deletes=[(2,), (3,)])]
        destination.write(batch(*both, expected=200, new=300))
        assert contents(destination, one) == Counter([(1, "one", "", 1)])
        assert contents(destination, other) == Counter([(1, "other", "", 1)])
        publish(destination, swapped[0], [(5, "copied", "", 5)], watermark=400)
        assert destination.positions().aside == {other.table_id}
        assert contents(destination, other) == Counter([(1, "other", "", 1)])
        destination.forget(other.table_id)
        assert destination.positions().tables == {one.table_id: Lsn(400)}
        assert contents(destination, swapped[0]) == Counter([(5, "copied", "", 5)])
        assert destination.positions().aside == set()

    def test_a_copy_does_not_take_a_name_that_is_newer(self, destination: Destination) -> None:
        """A copy's snapshot may be older than a rename that the stream has brought."""
        one, new = orders(16_400, "one"), orders(16_500, "sales")
        publish(destination, one, [(1, "one", "", 1)])
        sales = replace(one, name=new.name)
        if not _is_carried(destination, batch(changes(sales, inserts=[(2, "one", "", 2)]), expected=100, new=200)):
            return
        publish(destination, new, [(1, "new", "", 1)], watermark=150)
        assert contents(destination, sales) == Counter([(1, "one", "", 1), (2, "one", "", 2)])
        archive = replace(new, name=TableName("public", "archive"))
        destination.write(batch(changes(archive, inserts=[(2, "new", "", 2)]), expected=150, new=300))
        assert contents(destination, sales) == Counter([(1, "one", "", 1), (2, "one", "", 2)])
        assert contents(destination, archive) == Counter([(1, "new", "", 1), (2, "new", "", 2)])
        assert destination.positions().aside == set()

    # Names

    @pytest.mark.parametrize(
        "name",
        [
            TableName("public", 'say "hi"'),
            TableName("My Schema", "Orders.2024"),
            TableName("ünï", "tänk$%s {}"),
            TableName("select", "table"),
            TableName("main", "group"),
        ],
        ids=str,
    )
    def test_quoted_names(self, destination: Destination, name: TableName) -> None:
        odd = table(
            name,
            Column('I"d', INT8),
            Column("Mixed.Case", TEXT),
            Column("$1 {} %s", TEXT),
            Column("rowid", INT4),
            Column("t", TEXT),
            key=('I"d',),
        )
        publish(destination, odd, [(1, "a", "b", 1, "t"), (2, "c", "d", 2, "t")])
        grown = _grown(odd, Column('neu "ö"', TEXT, missing_value="x"))
        destination.write(
            batch(
                changes(
                    grown, deletes=[(2,)], partials=[partial(grown, ["Mixed.Case"], {(1,): (3, "B", 3, "T", "y")})]
                ),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, grown) == Counter([(3, "a", "B", 3, "T", "y")])
