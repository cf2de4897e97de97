"""The contract of a destination that removes rows of tables without a key (`TableChanges.removals`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from pyarrow import MonthDayNano

from etl_core.destination.protocol import Destination, why_no_removals
from etl_core.errors import CopiedAgain
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    TEXT,
    Row,
    Rows,
    array_of,
    batch,
    changes,
    comparable,
    contents,
    publish,
    rows,
    stream_at,
)
from etl_core.testing.destination_values_suite import Case, ValueCases
from etl_core.testing.destination_watermark_suite import DestinationFixtures

_FLOAT8 = PgType(pg_types.FLOAT8, "float8")
_INTERVAL = PgType(pg_types.INTERVAL, "interval")


def _interval(months: int, days: int, nanoseconds: int) -> Any:
    build: Any = MonthDayNano
    return build((months, days, nanoseconds))


_ALIKE: tuple[tuple[str, PgType, list[Any]], ...] = (
    ("float8", _FLOAT8, [0.0, float("nan"), -0.0]),
    ("float8", array_of(1022, _FLOAT8), [[0.0], [None], [], [-0.0]]),
    ("point", PgType(pg_types.POINT, "point"), [{"x": 0.0, "y": 1.0}, {"x": -0.0, "y": 1.0}]),
    ("interval", _INTERVAL, [_interval(1, 0, 0), _interval(0, 29, 86_400_000_000_000), _interval(0, 30, 0)]),
    ("interval", array_of(1187, _INTERVAL), [[_interval(1, 0, 0)], [_interval(0, 30, 0)]]),
    ("timetz", PgType(pg_types.TIMETZ, "timetz"), ["12:00:00+02", "10:00:00+00"]),
    ("numeric", PgType(pg_types.NUMERIC, "numeric"), ["1.1", "NaN", "1.10"]),
    ("json", PgType(pg_types.JSON, "json"), ['{"a": 1}', '{"a":1}', '{"a": 1.0}']),
    ("text", TEXT, ["a ", "A", "", "\u00e9", "e\u0301", "a"]),
)
"""Values that may be taken for each other, with the name that their like has among the cases of all types."""


def multiset(*columns: Column) -> TableSchema:
    """A table without a key, of which the source sends whole old rows; by default of line text and n int4."""
    columns = columns or (Column("line", TEXT, attnum=1), Column("n", INT4, attnum=2))
    return TableSchema(TableId(16_700), TableName("public", "lines"), columns, (), ReplicaIdentity.FULL)


class MultisetSuite(ValueCases, DestinationFixtures):
    """Mixed into the suite of a destination that is a RemovingDestination."""

    def test_of_equal_rows_as_many_as_are_to_go_are_removed(self, destination: Destination) -> None:
        schema = multiset()
        assert why_no_removals(destination, schema) is None
        before: list[Row] = [*[("one of them", 1)] * 3, *[("all", 1)] * 2, ("again", 1), ("changed", 1), ("stays", 1)]
        before += [("n", None), ("n", None), (None, None), (None, 1), ("n", 1)]
        publish(destination, schema, before)
        removals: list[Row] = [("one of them", 1), ("all", 1), ("all", 1), ("again", 1), ("changed", 1)]
        removals += [("n", None), (None, None), (None, 1)]
        inserts: list[Row] = [("again", 1), ("changed", 2), ("changed", 2), ("new", None)]
        destination.write(batch(changes(schema, removals=removals, inserts=inserts), expected=100, new=200))
        after = Counter(before)
        after.subtract(removals)
        assert contents(destination, schema) == +after + Counter(inserts)

    def test_parts_of_one_batch_follow_each_other(self, destination: Destination) -> None:
        schema = multiset()
        wide = multiset(*schema.columns, Column("more", TEXT, attnum=3))
        publish(destination, schema, [("a", 1)] * 2)
        parts = [
            changes(schema, inserts=[("a", 1), ("b", 2)]),
            changes(schema, removals=[("a", 1), ("b", 2), ("a", 1)], inserts=[("c", 3)]),
            changes(wide, removals=[("c", 3, None)], inserts=[("c", 3, "x")] * 2),
            changes(wide, removals=[("c", 3, "x")]),
        ]
        destination.write(batch(*parts, expected=100, new=200))
        assert contents(destination, wide) == Counter([("a", 1, None), ("c", 3, "x")])
        last = changes(wide, truncate=True, inserts=[("a", 1, None)])
        destination.write(batch(last, changes(wide, removals=[("a", 1, None)]), expected=200, new=300))
        assert contents(destination, wide) == Counter()

    @pytest.mark.parametrize("before", [[("a", 1)], [("b", 1), ("a", None)]], ids=["too few", "none"])
    def test_a_row_that_is_not_there_is_told(self, destination: Destination, before: Rows) -> None:
        schema = multiset()
        publish(destination, schema, before)
        part = changes(schema, removals=[("a", 1)] * 2, inserts=[("new", 1)])
        with pytest.raises(CopiedAgain, match="to remove are not there") as caught:
            destination.write(batch(part, expected=100, new=200, stream=200))
        assert caught.value.table == "public.lines"
        assert contents(destination, schema) == Counter(map(tuple, before))
        assert destination.positions().stream == stream_at(None)

    def test_rows_of_all_types_are_found(self, destination: Destination, cases: Sequence[Case]) -> None:
        held = [(column, [value for value in values if self.holds(column, value)]) for column, values in cases]
        schema = multiset(*(column for column, _ in held))
        data = [
            [[*values, None][at % (len(values) + 1)] for _, values in held]
            for at in range(1 + max(len(values) for _, values in held))
        ]
        publish(destination, schema, data + data)
        destination.write(batch(changes(schema, removals=data, inserts=data[:2]), expected=100, new=200))
        assert contents(destination, schema) == Counter(comparable(rows(schema, data + data[:2])))
        destination.write(batch(changes(schema, removals=data + data[:2]), expected=200, new=300))
        assert contents(destination, schema) == Counter()

    def test_values_that_differ_in_their_text_alone(self, destination: Destination, cases: Sequence[Case]) -> None:
        """Each row has one of them and NULL beside it. The last ones go first: the first is what may be found."""
        tested = {column.name for column, _ in cases}
        columns = [
            (Column(f"{name}_{at}", kind), values) for at, (name, kind, values) in enumerate(_ALIKE) if name in tested
        ]
        alike = [(column, [value for value in values if self.holds(column, value)]) for column, values in columns]
        schema = multiset(*(column for column, _ in alike))

        def row(at: int, value: Any) -> list[Any]:
            return [*[None] * at, value, *[None] * (len(alike) - at - 1)]

        stay = [row(at, value) for at, (_, values) in enumerate(alike) for value in values[:-1]]
        gone = [row(at, values[-1]) for at, (_, values) in enumerate(alike)]
        publish(destination, schema, stay + gone)
        destination.write(batch(changes(schema, removals=gone), expected=100, new=200))
        assert contents(destination, schema) == Counter(comparable(rows(schema, stay)))
        destination.write(batch(changes(schema, removals=stay), expected=200, new=300))
        assert contents(destination, schema) == Counter()
