"""The contract of a destination whose tables may be logs of changes: `AppendingCopy`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from etl_core.destination.protocol import (
    AppendingCopy,
    CountingDestination,
    Destination,
    KeepingCopy,
    KeptRows,
    LoggedCopy,
)
from etl_core.errors import TableError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.change_log import EACH_ROW, old_value
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_deleted_suite import at
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    Row,
    Rows,
    batch,
    changes,
    contents,
    publish,
    rows,
    table,
)
from etl_core.testing.destination_watermark_suite import DestinationFixtures

THEN, LATER = (datetime(2024, month, 1, 12, 30, 0, 123456, tzinfo=UTC) for month in (1, 2))
_ID, _NOTE, _AMOUNT = Column("id", INT8, attnum=1), Column("note", TEXT, attnum=2), Column("amount", INT4, attnum=3)
_NONE = (None,) * len(EACH_ROW)


def log(*columns: Column, old: Sequence[Column] = (_ID,), name: str = "items") -> TableSchema:
    """id int8, note text, amount int4, or these columns; the old values of `old`; and the columns of a log."""
    return table(name, *(columns or (_ID, _NOTE, _AMOUNT)), *map(old_value, old), *EACH_ROW, key=())


def copied(watermark: int, moment: datetime) -> Row:
    """What a copied row has in the log's columns."""
    return ("copy", watermark, 0, at(moment), None)


def append_copy(
    destination: Destination, schema: TableSchema, data: Rows, watermark: int, logged: LoggedCopy | None = None
) -> int:
    """Publishes a copy of rows without the columns of the log, whose old values there are none of."""
    others = len(schema.columns) - len(EACH_ROW)
    whole = [(*row, *(None,) * (others - len(row)), *_NONE) for row in data]
    with destination.copy(schema) as copy:
        assert isinstance(copy, AppendingCopy)
        for record_batch in rows(schema, whole).to_batches():
            copy.write(record_batch)
        return copy.publish_appending(Lsn(watermark), len(data), logged or LoggedCopy(THEN))


class RotatedLogs(DestinationFixtures):
    """Mixed into the suite of a destination that lasts: a log is nowhere else."""

    def test_a_log_outlives_a_table_that_takes_its_name(self, destination: Destination) -> None:
        """As when `items` becomes `items_2024` and is dropped later, and a new `items` is copied first."""
        schema = log()
        append_copy(destination, schema, [(1, "a", 10)], 100)
        other = replace(schema, table_id=TableId(int(schema.table_id) + 1))
        with suppress(TableError):  # where the first one has to go before
            append_copy(destination, other, [(9, "z", 9)], 200)
        destination.forget(schema.table_id)
        renamed = replace(schema, name=TableName("public", "items_2024"))
        append_copy(destination, renamed, [(1, "a", 11)], 300, LoggedCopy(LATER))
        older = (1, "a", 10, None, *copied(100, THEN))
        assert contents(destination, renamed) == Counter([older, (1, "a", 11, None, *copied(300, LATER))])


class LogSuite(DestinationFixtures):
    """Rows that are only ever added, by the stream and by copies."""

    def test_every_change_is_a_row(self, destination: Destination) -> None:
        schema = log()
        assert append_copy(destination, schema, [(1, "a", 10), (2, "b", 20)], 100) == 2
        updated = (3, None, 11, 1, "update", 150, 1, at(LATER), ["note"])
        deleted = (2, None, None, None, "delete", 150, 2, at(LATER), None)
        truncated = (None, None, None, None, "truncate", 180, 1, at(LATER), None)
        destination.write(batch(changes(schema, inserts=[updated, deleted]), expected=100, new=170))
        destination.write(batch(changes(schema, inserts=[truncated, truncated]), expected=170, new=200))
        found = contents(destination, schema)
        assert found == Counter(
            [
                (1, "a", 10, None, *copied(100, THEN)),
                (2, "b", 20, None, *copied(100, THEN)),
                (*updated[:-1], ("note",)),
                deleted,
                truncated,
                truncated,
            ]
        )
        if isinstance(destination, CountingDestination):
            assert destination.count({schema.table_id: schema.name}, 1.0) == {schema.table_id: (Lsn(200), 6)}

    def test_a_new_copy_is_appended(self, destination: Destination) -> None:
        schema = log()
        append_copy(destination, schema, [(1, "a", 10), (2, "b", 20)], 100)
        inserted = (3, "c", 30, None, "insert", 150, 1, at(LATER), None)
        destination.write(batch(changes(schema, inserts=[inserted]), expected=100, new=200))
        destination.forget(schema.table_id)
        before = [(1, "a", 10, None, *copied(100, THEN)), (2, "b", 20, None, *copied(100, THEN)), inserted]
        for _ in range(2):  # the answer to the first may have been lost
            assert append_copy(destination, schema, [(1, "a", 11), (3, "c", 30)], 300, LoggedCopy(LATER)) == 2
            again = [(1, "a", 11, None, *copied(300, LATER)), (3, "c", 30, None, *copied(300, LATER))]
            assert contents(destination, schema) == Counter([*before, *again])
            assert destination.positions().tables == {schema.table_id: Lsn(300)}

    def test_what_the_stream_has_written_beyond_a_copy_comes_again(self, destination: Destination) -> None:
        schema = log()
        append_copy(destination, schema, [(1, "a", 10)], 100)
        inserted = (2, "b", 20, None, "insert", 150, 1, at(LATER), None)
        beyond = (3, "c", 30, None, "insert", 250, 1, at(LATER), None)
        destination.write(batch(changes(schema, inserts=[inserted, beyond]), expected=100, new=300))
        append_copy(destination, schema, [(1, "a", 10), (2, "b", 20)], 200, LoggedCopy(LATER))
        again = [(1, "a", 10, None, *copied(200, LATER)), (2, "b", 20, None, *copied(200, LATER))]
        expected = Counter([(1, "a", 10, None, *copied(100, THEN)), inserted, *again])
        assert contents(destination, schema) == expected
        destination.write(batch(changes(schema, inserts=[beyond]), expected=200, new=300))
        assert contents(destination, schema) == expected + Counter([beyond])

    def test_a_copy_without_rows_says_that_the_table_was_empty(self, destination: Destination) -> None:
        schema = log()
        empty = ("truncate", 100, 0, at(THEN), None)
        for _ in range(2):
            assert append_copy(destination, schema, [], 100) == 0
            assert contents(destination, schema) == Counter([(None, None, None, None, *empty)])

    def test_older_rows_keep_the_columns_that_are_still_there(self, destination: Destination) -> None:
        """One is dropped, one renamed, one of a wider type, one of a type with no such value, one hidden, one new."""
        code, email = Column("code", TEXT, attnum=4), Column("email", TEXT, attnum=5)
        schema = log(_ID, _NOTE, _AMOUNT, code, email)
        append_copy(destination, schema, [(1, "a", 10, "x", "ada@example.com")], 100)
        columns = (
            _ID,
            Column("amount", INT8, attnum=3),
            Column("code", INT4, attnum=4),
            replace(email, name="mail"),
            Column("note", TEXT, attnum=6),
        )
        changed = log(*columns)
        logged = LoggedCopy(LATER, frozenset({"mail"}))
        append_copy(destination, changed, [(1, 10, 7, "hashed", "new")], 300, logged)
        assert contents(destination, changed) == Counter(
            [
                (1, 10, None, None, None, None, *copied(100, THEN)),
                (1, 10, 7, "hashed", "new", None, *copied(300, LATER)),
            ]
        )

    def test_columns_come_and_go_in_place(self, destination: Destination) -> None:
        schema = log()
        append_copy(destination, schema, [(1, "a", 10)], 100)
        more = replace(Column("more", INT4, attnum=4), missing_value="7")
        changed = log(_ID, _NOTE, more)
        inserted = (2, "b", 5, None, "insert", 150, 1, at(LATER), None)
        destination.write(batch(changes(changed, inserts=[inserted]), expected=100, new=200))
        assert contents(destination, changed) == Counter([(1, "a", 7, None, *copied(100, THEN)), inserted])

    def test_another_write_mode_has_other_rows(self, destination: Destination) -> None:
        """What a mirror has is no log, and a log's rows are no deleted ones."""
        mirror = table("items", _ID, _NOTE, _AMOUNT)
        publish(destination, mirror, [(1, "a", 10), (2, "b", 20)])
        schema = log()
        append_copy(destination, schema, [(1, "a", 10)], 200)
        assert contents(destination, schema) == Counter([(1, "a", 10, None, *copied(200, THEN))])
        keeping = table("items", _ID, _NOTE, _AMOUNT, DELETED_AT)
        with destination.copy(keeping) as copy:
            assert isinstance(copy, KeepingCopy)
            copy.write(rows(keeping, [(2, "b", 20, None)]).to_batches()[0])
            assert copy.publish_keeping(Lsn(300), 1, KeptRows(LATER)) == 1
        assert contents(destination, keeping) == Counter([(2, "b", 20, None)])
        append_copy(destination, schema, [(2, "b", 20)], 400)
        assert contents(destination, schema) == Counter([(2, "b", 20, None, *copied(400, THEN))])
