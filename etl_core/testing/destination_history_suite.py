"""The contract of a destination that shows the versions of a log's rows: `HistoryDestination`.

The oracle is a model that goes through the changes one by one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from etl_core.destination.protocol import Destination, HistoryDestination, LoggedCopy
from etl_core.errors import TableError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.change_log import rows_of, versions_of
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_deleted_suite import at
from etl_core.testing.destination_log_suite import THEN, append_copy, log
from etl_core.testing.destination_tables import INT4, INT8, TEXT, Row, batch, changes, comparable, publish, table
from etl_core.testing.destination_watermark_suite import DestinationFixtures
from etl_core.values.arrow import arrow_schema

_ID, _NOTE, _BIG = Column("id", INT8, attnum=1), Column("note", TEXT, attnum=2), Column("big", TEXT, attnum=3)


def history(*columns: Column, old: Sequence[Column] = (_ID,), name: str = "items") -> TableSchema:
    """id int8, note text, big text, or these columns, as a log with a history."""
    return replace(log(*(columns or (_ID, _NOTE, _BIG)), old=old, name=name), history=True)


@dataclass
class Model:
    """A table of id, note and big: `versions` as the view has them, `log` the rows that were not written yet."""

    lsn: int = 100
    moment: datetime = THEN
    rows: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    versions: list[list[Any]] = field(default_factory=list)
    log: list[Row] = field(default_factory=list)
    seq: int = 0

    def begin(self) -> None:
        """A transaction."""
        self.lsn, self.seq, self.moment = self.lsn + 10, 0, self.moment + timedelta(seconds=1)

    def _note(self, key: int | None, values: tuple[Any, ...], old: int | None, op: str, unchanged: Any = None) -> None:
        self.seq += 1
        self.log.append((key, *values, old, op, self.lsn, self.seq, at(self.moment), unchanged))

    def _end(self, key: int) -> None:
        self.versions[self.open.pop(key)][4] = at(self.moment)
        del self.rows[key]

    def _start(self, key: int, values: tuple[str | None, str | None]) -> None:
        self.rows[key], self.open[key] = values, len(self.versions)
        self.versions.append([key, *values, at(self.moment), None, self.lsn, self.seq])

    def insert(self, key: int, *values: Any) -> None:
        self._note(key, values, None, "insert")
        self._start(key, values)

    def delete(self, key: int) -> None:
        self._note(key, (None, None), None, "delete")
        self._end(key)

    def update(self, key: int, now: int, note: str | None, big: str | None, *unchanged: str) -> None:
        """To the key `now`, but for the columns that are `unchanged`."""
        before = self.rows[key]
        values = (before[0] if "note" in unchanged else note, before[1] if "big" in unchanged else big)
        sent = tuple(None if name in unchanged else v for name, v in zip(("note", "big"), values, strict=True))
        self._note(now, sent, key if now != key else None, "update", list(unchanged) or None)
        self._end(key)
        self._start(now, values)

    def truncate(self) -> None:
        self._note(None, (None, None), None, "truncate")
        for key in list(self.rows):
            self._end(key)

    def copy(self, rows: dict[int, tuple[str | None, str | None]]) -> None:
        """Of rows that are there now: those that are others, or are not there, were changed meanwhile."""
        self.begin()
        for key, before in list(self.rows.items()):
            if rows.get(key) != before:
                self._end(key)
        for key, values in rows.items():
            if key not in self.rows:
                self._start(key, values)


def _read(rows: Iterator[pa.RecordBatch], schema: TableSchema) -> Counter[Row]:
    found = pa.Table.from_batches(list(rows), schema=arrow_schema(schema))
    return Counter(comparable(found))


def assert_shown(destination: Destination, schema: TableSchema, model: Model) -> None:
    """The views have the model's versions and rows."""
    assert isinstance(destination, HistoryDestination)
    versions = _read(destination.read_versions(schema), versions_of(schema))
    assert versions == Counter(tuple(version) for version in model.versions)
    now = _read(destination.read_current(schema), rows_of(schema))
    assert now == Counter((key, *values) for key, values in model.rows.items())


class HistorySuite(DestinationFixtures):
    """The views follow from the log, whatever is in it."""

    @pytest.mark.parametrize("seed", range(2))
    def test_random_changes(self, destination: Destination, seed: int) -> None:
        """Rows that come again, move through keys without their TOASTed values, truncations, copies that lack rows."""
        schema, model, chance = history(), Model(), random.Random(seed)  # noqa: S311
        model.copy({key: (f"n{key}", None if key % 3 else f"b{key}") for key in range(6)})
        append_copy(
            destination,
            schema,
            [(key, *values) for key, values in model.rows.items()],
            model.lsn,
            LoggedCopy(model.moment),
        )
        position = model.lsn
        for number in range(120):
            model.begin()
            for _ in range(chance.randrange(1, 6)):
                _change(model, chance, f"v{number}")
            if chance.random() < 0.2:
                destination.write(batch(changes(schema, inserts=model.log), expected=position, new=model.lsn))
                model.log, position = [], model.lsn
                if chance.random() < 0.3:
                    copied = dict(model.rows)
                    for key in range(12):  # while the table was not streamed
                        if chance.random() < 0.2:
                            copied[key] = (chance.choice([None, "c"]), "copied")
                        elif chance.random() < 0.2:
                            copied.pop(key, None)
                    model.copy(copied)
                    if chance.random() < 0.5:
                        destination.forget(schema.table_id)
                    append_copy(
                        destination,
                        schema,
                        [(key, *values) for key, values in copied.items()],
                        model.lsn,
                        LoggedCopy(model.moment),
                    )
                    position = model.lsn
        destination.write(batch(changes(schema, inserts=model.log), expected=position, new=model.lsn))
        assert_shown(destination, schema, model)
        assert any(version[3] == version[4] for version in model.versions), "several in one transaction"

    def test_columns_change(self, destination: Destination) -> None:
        """A value that is unchanged is that of the column of now, whatever it was called."""
        schema, model = history(), Model()
        model.copy({1: ("a", "toast"), 2: ("b", "other")})
        append_copy(destination, schema, [(1, "a", "toast"), (2, "b", "other")], model.lsn, LoggedCopy(model.moment))
        position = model.lsn
        model.begin()
        model.update(1, 1, "c", None, "big")
        model.update(2, 3, None, "new", "note")
        destination.write(batch(changes(schema, inserts=model.log), expected=position, new=model.lsn))
        # The two swap their names, one with a number of its own would be another column.
        swapped = history(_ID, replace(_NOTE, name="big"), replace(_BIG, name="note"))
        position, model.log = model.lsn, []
        model.begin()
        model.update(1, 1, "d", None, "big")
        last = model.log[0]
        destination.write(batch(changes(swapped, inserts=[(*last[:-1], ["note"])]), expected=position, new=model.lsn))
        assert_shown(destination, swapped, model)
        # What was called big is dropped, and another column is called so; a new copy has all others.
        more = Column("big", INT4, attnum=4)
        model.versions = [[*version[:1], version[2], None, *version[3:]] for version in model.versions]
        model.rows = {key: (big, None) for key, (_, big) in model.rows.items()}
        model.copy(dict(model.rows))
        changed = history(_ID, replace(_BIG, name="note"), more)
        rows = [(key, *values) for key, values in model.rows.items()]
        append_copy(destination, changed, rows, model.lsn, LoggedCopy(model.moment))
        assert_shown(destination, changed, model)

    def test_another_key_begins_another_history(self, destination: Destination) -> None:
        schema, model = history(), Model()
        append_copy(destination, schema, [(1, "a", "x"), (2, "b", "x")], 50)
        by_note = history(old=(_NOTE,))
        model.copy({1: ("a", "x"), 2: ("b", "x")})
        for _ in range(2):
            append_copy(destination, by_note, [(1, "a", "x"), (2, "b", "x")], model.lsn, LoggedCopy(model.moment))
            assert_shown(destination, by_note, model)
        assert len(list(destination.read(by_note))) == 1
        assert sum(one.num_rows for one in destination.read(by_note)) == 4, "the log stays"

    def test_a_log_becomes_a_history_and_a_log_again(self, destination: Destination) -> None:
        assert isinstance(destination, HistoryDestination)
        schema, model = history(), Model(lsn=40)
        model.copy({1: ("a", "x")})
        append_copy(destination, replace(schema, history=False), [(1, "a", "x")], model.lsn, LoggedCopy(model.moment))
        model.begin()
        append_copy(destination, schema, [(1, "a", "x")], model.lsn, LoggedCopy(model.moment))
        assert_shown(destination, schema, model)
        append_copy(destination, replace(schema, history=False), [(1, "a", "x")], 400)
        with pytest.raises(TableError):
            list(destination.read_current(schema))
        append_copy(destination, schema, [(1, "a", "x")], 500)
        assert_shown(destination, schema, model)
        publish(destination, table("items", _ID), [(1,)], watermark=600)
        with pytest.raises(TableError):
            list(destination.read_versions(schema))

    def test_the_views_follow_the_table(self, destination: Destination) -> None:
        """It is renamed while it streams; another table takes its name, and its view's."""
        assert isinstance(destination, HistoryDestination)
        schema, model = history(), Model()
        model.copy({1: ("a", "x")})
        append_copy(destination, schema, [(1, "a", "x")], model.lsn, LoggedCopy(model.moment))
        renamed, position = replace(schema, name=TableName("public", "things")), model.lsn
        model.begin()
        model.insert(2, "b", "y")
        destination.write(batch(changes(renamed, inserts=model.log), expected=position, new=model.lsn))
        assert_shown(destination, renamed, model)
        other = replace(table("items_history", _ID), table_id=TableId(77))
        publish(destination, other, [(1,)], watermark=model.lsn)
        taken = replace(other, name=TableName("public", "things_current"), table_id=TableId(78))
        with pytest.raises(TableError, match="things_current is the name of a view"):
            publish(destination, taken, [(1,)], watermark=model.lsn)
        with pytest.raises(
            TableError, match=r"needs a view called public\.items_history, which is a table of pipeline"
        ):
            destination.copy(replace(schema, table_id=TableId(79)))
        assert_shown(destination, renamed, model)
        # One that is created anew at the source under the same name has a history of its own.
        anew = replace(renamed, table_id=TableId(80))
        destination.forget(renamed.table_id)
        model = Model(lsn=5000)
        model.copy({7: ("n", "z")})
        append_copy(destination, anew, [(7, "n", "z")], model.lsn, LoggedCopy(model.moment))
        assert_shown(destination, anew, model)

    def test_positions_of_another_source_are_not_put_in_order(self, destination: Destination) -> None:
        schema = history()
        append_copy(destination, schema, [(1, "a", "x")], 500)
        destination.forget(schema.table_id)
        with pytest.raises(TableError, match="positions beyond the source's"):
            append_copy(destination, schema, [(1, "a", "x")], 300)
        without = replace(schema, history=False)
        assert append_copy(destination, without, [(1, "a", "x")], 300) == 1
        destination.forget(schema.table_id)
        with pytest.raises(TableError, match="positions beyond the source's"):
            append_copy(destination, schema, [(1, "a", "x")], 900)


def _change(model: Model, chance: random.Random, text: str) -> None:
    key, what = chance.randrange(12), chance.random()
    if key not in model.rows:
        model.insert(key, chance.choice([None, text]), text)
        return
    if what < 0.02:
        model.truncate()
    elif what < 0.2:
        model.delete(key)
    else:
        free = [other for other in range(12) if other not in model.rows]
        now = chance.choice(free) if free and what < 0.55 else key
        unchanged = [name for name in ("note", "big") if chance.random() < 0.5]
        model.update(key, now, chance.choice([None, text]), text, *unchanged)
