"""The contract of a destination whose tables may keep their deleted rows: `KeepingCopy` and `mark_deleted`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_core.destination.protocol import CountingDestination, Destination, KeepingCopy, KeptRows
from etl_core.errors import TableError
from etl_core.lsn import Lsn
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    Rows,
    batch,
    changes,
    contents,
    partial,
    publish,
    rows,
    table,
)
from etl_core.testing.destination_watermark_suite import DestinationFixtures

EARLY, THEN, LATER = (datetime(2024, month, 1, 12, 30, 0, 123456, tzinfo=UTC) for month in (1, 2, 3))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(moment: datetime) -> int:
    """As rows have it here: microseconds since 1970."""
    found = moment - _EPOCH
    return (found.days * 86_400 + found.seconds) * 1_000_000 + found.microseconds


def items(*columns: Column, key: Sequence[str] = ("id",), name: str = "items") -> TableSchema:
    """id int8 (key), note text, amount int4, or these columns; and DELETED_AT."""
    given = columns or (Column("id", INT8, attnum=1), Column("note", TEXT, attnum=2), Column("amount", INT4, attnum=3))
    return table(name, *given, DELETED_AT, key=key)


def copy_again(destination: Destination, schema: TableSchema, data: Rows, kept: KeptRows, *, watermark: int) -> int:
    """A new copy of the table that keeps its deleted rows."""
    with destination.copy(schema) as copy:
        assert isinstance(copy, KeepingCopy)
        for record_batch in rows(schema, data).to_batches():
            copy.write(record_batch)
        return copy.publish_keeping(Lsn(watermark), len(data), kept)


class DeletedRowsSuite(DestinationFixtures):
    """Rows that are marked, that live again, and that a new copy keeps."""

    def test_a_deleted_row_keeps_its_values(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, None), (2, "b", 20, None), (3, "c", 30, None)])
        gone = partial(schema, ["note", "amount"], {(1,): (1, at(THEN)), (3,): (3, at(THEN))})
        destination.write(batch(changes(schema, partials=[gone]), expected=100, new=200))
        assert contents(destination, schema) == Counter(
            [(1, "a", 10, at(THEN)), (2, "b", 20, None), (3, "c", 30, at(THEN))]
        )

    def test_a_deleted_row_that_is_not_there_is_told(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, None)])
        gone = partial(schema, ["note", "amount"], {(1,): (1, at(THEN)), (2,): (2, at(THEN))})
        with pytest.raises(TableError, match="whose unchanged values are needed"):
            destination.write(batch(changes(schema, partials=[gone]), expected=100, new=200))
        assert contents(destination, schema) == Counter([(1, "a", 10, None)])

    def test_a_row_that_came_and_went_is_there(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, None)])
        part = changes(schema, upserts=[(1, "last", 11, at(THEN)), (2, "b", 20, at(LATER))])
        destination.write(batch(part, expected=100, new=200))
        assert contents(destination, schema) == Counter([(1, "last", 11, at(THEN)), (2, "b", 20, at(LATER))])

    def test_a_deleted_row_lives_again(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, at(EARLY))])
        destination.write(batch(changes(schema, upserts=[(1, "again", 5, None)]), expected=100, new=200))
        assert contents(destination, schema) == Counter([(1, "again", 5, None)])

    def test_a_key_that_was_left_is_deleted_and_the_new_one_lives(self, destination: Destination) -> None:
        """The unchanged value of both is that of the row before."""
        schema = items()
        publish(destination, schema, [(1, "long", 10, None)])
        left = partial(schema, ["note", "amount"], {(1,): (1, at(THEN))})
        came = partial(schema, ["note"], {(1,): (2, 11, None)})
        destination.write(batch(changes(schema, partials=[came, left]), expected=100, new=200))
        assert contents(destination, schema) == Counter([(1, "long", 10, at(THEN)), (2, "long", 11, None)])

    def test_a_row_that_is_marked_is_not_removed_by_a_delete_of_its_key(self, destination: Destination) -> None:
        """Deletes come after the partial rows have read theirs, and before these are inserted."""
        schema = items()
        publish(destination, schema, [(1, "long", 10, None), (2, "b", 20, None)])
        left = partial(schema, ["note", "amount"], {(1,): (1, at(THEN))})
        part = changes(schema, upserts=[(3, "long", 11, None)], deletes=[(1,), (2,)], partials=[left])
        destination.write(batch(part, expected=100, new=200))
        assert contents(destination, schema) == Counter([(1, "long", 10, at(THEN)), (3, "long", 11, None)])

    def test_a_truncation_marks_the_rows_that_live(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, None), (2, "b", 20, at(EARLY))])
        before = changes(schema, upserts=[(3, "c", 30, None)])
        after = changes(schema, upserts=[(3, "again", 31, None), (4, "d", 40, None)])
        destination.write(batch(before, replace(after, mark_deleted=THEN), expected=100, new=200))
        assert contents(destination, schema) == Counter(
            [(1, "a", 10, at(THEN)), (2, "b", 20, at(EARLY)), (3, "again", 31, None), (4, "d", 40, None)]
        )

    def test_only_living_rows_are_counted(self, destination: Destination) -> None:
        schema = items()
        publish(destination, schema, [(1, "a", 10, None), (2, "b", 20, at(EARLY))])
        if isinstance(destination, CountingDestination):
            found = destination.count({schema.table_id: schema.name}, 1.0)
            assert found == {schema.table_id: (Lsn(100), 1)}

    # A new copy

    def test_a_new_copy_keeps_deleted_rows_and_marks_those_that_are_missing(self, destination: Destination) -> None:
        schema = items()
        old = [(1, "a", 10, None), (2, "b", 20, at(EARLY)), (3, "c", 30, None), (4, "d", 40, at(EARLY))]
        publish(destination, schema, old)
        destination.forget(schema.table_id)
        new = [(1, "new", 11, None), (4, "lives", 41, None), (5, "e", 50, None)]
        assert copy_again(destination, schema, new, KeptRows(LATER), watermark=300) == 3
        assert contents(destination, schema) == Counter([*new, (2, "b", 20, at(EARLY)), (3, "c", 30, at(LATER))])
        assert destination.positions().tables == {schema.table_id: Lsn(300)}
        assert copy_again(destination, schema, [], KeptRows(LATER), watermark=400) == 0
        assert len(contents(destination, schema)) == 5

    def test_the_first_copy_has_nothing_to_keep(self, destination: Destination) -> None:
        schema = items()
        assert copy_again(destination, schema, [(1, "a", 10, None)], KeptRows(THEN), watermark=100) == 1
        assert contents(destination, schema) == Counter([(1, "a", 10, None)])

    def test_a_mirror_that_keeps_from_now_on(self, destination: Destination) -> None:
        schema = items()
        mirror = replace(schema, columns=schema.columns[:-1])
        publish(destination, mirror, [(1, "a", 10), (2, "b", 20)])
        assert copy_again(destination, schema, [(2, "b", 21, None)], KeptRows(THEN), watermark=300) == 1
        assert contents(destination, schema) == Counter([(1, "a", 10, at(THEN)), (2, "b", 21, None)])

    def test_kept_rows_keep_the_columns_that_are_still_there(self, destination: Destination) -> None:
        """One is dropped, one renamed, one of a wider type, one of a type with no such value, one hidden, one new."""
        old = items(
            Column("id", INT8, attnum=1),
            Column("gone", TEXT, attnum=2),
            Column("note", TEXT, attnum=3),
            Column("amount", INT4, attnum=4),
            Column("code", TEXT, attnum=5),
            Column("email", TEXT, attnum=6),
        )
        publish(destination, old, [(1, "x", "a", 10, "77", "ada@example.com", None)])
        publish_again = items(
            Column("id", INT8, attnum=1),
            Column("memo", TEXT, attnum=3),
            Column("amount", INT8, attnum=4),
            Column("code", INT4, attnum=5),
            Column("email", TEXT, attnum=6),
            Column("gone", TEXT, attnum=7),
        )
        kept = KeptRows(THEN, frozenset({"email"}))
        assert copy_again(destination, publish_again, [(2, "b", 5, 1, "hashed", "y", None)], kept, watermark=300) == 1
        assert contents(destination, publish_again) == Counter(
            [(2, "b", 5, 1, "hashed", "y", None), (1, "a", 10, 77, None, None, at(THEN))]
        )
        narrow = replace(
            publish_again,
            columns=tuple(Column("code", TEXT, attnum=5) if c.name == "code" else c for c in publish_again.columns),
        )
        assert copy_again(destination, narrow, [], KeptRows(LATER), watermark=400) == 0
        assert contents(destination, narrow) == Counter(
            [(2, "b", 5, "1", "hashed", "y", at(LATER)), (1, "a", 10, "77", None, None, at(THEN))]
        )

    def test_of_rows_with_one_key_the_last_is_kept(self, destination: Destination) -> None:
        """As when other columns have become the key."""
        schema = items()
        old = [(1, "a", 10, at(EARLY)), (2, "b", 10, at(THEN)), (3, "c", 20, None), (4, "d", 30, at(EARLY))]
        publish(destination, schema, old)
        by_amount = items(*schema.columns[:-1], key=["amount"])
        assert copy_again(destination, by_amount, [(4, "e", 30, None)], KeptRows(LATER), watermark=300) == 1
        assert contents(destination, by_amount) == Counter(
            [(2, "b", 10, at(THEN)), (3, "c", 20, at(LATER)), (4, "e", 30, None)]
        )

    def test_without_the_values_of_the_key_deleted_rows_are_kept(self, destination: Destination) -> None:
        """Which of those that lived are in the copy cannot be told; the others never meet a key again."""
        schema = items()
        publish(destination, schema, [(1, "a", 10, at(EARLY)), (2, "b", 20, None), (3, "c", 30, at(THEN))])
        kept = KeptRows(LATER, frozenset({"id"}))
        assert copy_again(destination, schema, [(7, "b", 20, None)], kept, watermark=300) == 1
        expected = [(None, "a", 10, at(EARLY)), (None, "c", 30, at(THEN)), (7, "b", 20, None)]
        assert contents(destination, schema) == Counter(expected)
        assert copy_again(destination, schema, [], KeptRows(LATER), watermark=400) == 0
        assert contents(destination, schema) == Counter([*expected[:2], (7, "b", 20, at(LATER))])

    def test_without_the_value_of_one_key_its_row_is_kept_if_it_was_deleted(self, destination: Destination) -> None:
        """As when the key becomes a number: '007' is 7 in the copy, and not the same value."""
        old, new = (items(Column("id", kind, attnum=1), Column("note", TEXT, attnum=2)) for kind in (TEXT, INT8))
        publish(
            destination,
            old,
            [
                ("007", "a", None),
                ("8", "b", None),
                ("009", "c", at(EARLY)),
                ("0010", "d", at(EARLY)),
                ("11", "e", None),
                ("12", "f", at(EARLY)),
            ],
        )
        assert copy_again(destination, new, [(7, "a", None), (8, "b", None)], KeptRows(LATER), watermark=300) == 2
        assert contents(destination, new) == Counter(
            [
                (7, "a", None),
                (8, "b", None),
                (None, "c", at(EARLY)),
                (None, "d", at(EARLY)),
                (11, "e", at(LATER)),
                (12, "f", at(EARLY)),
            ]
        )
