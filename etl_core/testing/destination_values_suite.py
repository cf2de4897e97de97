"""The part of the destination contract about values: every type comes out as it went in, as data and as key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pyarrow import MonthDayNano

from etl_core.destination.protocol import Destination
from etl_core.errors import ValueOutOfRange
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.shape.retyping import retyped
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    Row,
    Rows,
    array_of,
    batch,
    changes,
    comparable,
    contents,
    numeric_modifier,
    partial,
    publish,
    rows,
    table,
)
from etl_core.type_options import RANGE, STRUCT, OutOfRange

_UUID = PgType(pg_types.UUID, "uuid")
_JSON = PgType(pg_types.JSON, "json")
_JSONB = PgType(pg_types.JSONB, "jsonb")
_NUMERIC = PgType(pg_types.NUMERIC, "numeric")
_SMALL = numeric_modifier(5, 2)
_TIMESTAMPTZ = PgType(pg_types.TIMESTAMPTZ, "timestamptz")
_DATE = PgType(pg_types.DATE, "date")
_MOOD = PgType(70_000, "mood", "public", TypeKind.ENUM)
_FEELING = PgType(70_011, "feeling", "public", TypeKind.ENUM, form=0, labels=("sad", 'it\'s "ok"', "", "a[]"))
_DOMAIN = PgType(70_001, "id", "public", TypeKind.DOMAIN, _UUID)
_UNKNOWN = PgType(70_002, "thing", "public")
_MONEY = PgType(pg_types.MONEY, "money", form=2)
_YEN = PgType(pg_types.MONEY, "money", form=0)
_POINT = PgType(pg_types.POINT, "point")
_BIT = PgType(pg_types.BIT, "bit")
_HSTORE = PgType(70_003, "hstore", "public")
_VECTOR = PgType(70_004, "vector", "public")
_PAIR = PgType(
    70_005,
    "pair",
    "public",
    TypeKind.COMPOSITE,
    attributes=(
        Column("a", INT4),
        Column("B c", _NUMERIC, numeric_modifier(10, 2)),
        Column("order", array_of(1009, TEXT)),
    ),
)
_NEST = PgType(70_009, "nest", "public", TypeKind.COMPOSITE, attributes=(Column("kind", TEXT), Column("pair", _PAIR)))
_INFINITE = 2**63 - 1


def _as_structs(name: str, oid: int) -> Column:
    """A column of a built-in range or multirange."""
    pg_type = builtin(oid)
    assert pg_type is not None
    return retyped(Column(name, pg_type), {RANGE: STRUCT}, is_key=False)


def _range(lower: Any, upper: Any, brackets: str = "[)") -> dict[str, Any]:
    """`brackets` are none where it is empty."""
    flags = {"lower_inc": "[" in brackets, "upper_inc": "]" in brackets, "isempty": not brackets}
    return {"lower": lower, "upper": upper, **flags}


_A = "00000000-0000-0000-0000-00000000000a"
_B = "ffffffff-ffff-ffff-ffff-fffffffffffe"


def _interval(months: int, days: int, nanoseconds: int) -> Any:
    build: Any = MonthDayNano
    return build((months, days, nanoseconds))


Case = tuple[Column, list[Any]]

# (column, values); dates in days, times and timestamps in microseconds, as Arrow stores them.
CASES: tuple[Case, ...] = (
    (Column("bool", PgType(pg_types.BOOL, "bool")), [True, False]),
    (Column("int2", PgType(pg_types.INT2, "int2")), [-32768, 32767]),
    (Column("int4", INT4), [-(2**31), 2**31 - 1]),
    (Column("int8", INT8), [-(2**63), 2**63 - 1]),
    (Column("float4", PgType(pg_types.FLOAT4, "float4")), [1.5, float("inf"), float("nan")]),
    (Column("float8", PgType(pg_types.FLOAT8, "float8")), [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("nan")]),
    (Column("money", _NUMERIC, numeric_modifier(12, 2)), [Decimal("-9999999999.99"), Decimal("0.00")]),
    (Column("wide", _NUMERIC, numeric_modifier(38, 10)), [Decimal("1234567890123456789012345678.0123456789")]),
    (Column("numeric", _NUMERIC), ["NaN", "1.10", "1e400", "-0.00000000000000000000000000000000000000000000001"]),
    (Column("text", TEXT), ["", " trailing ", "ünï \U0001f600 \n\t\"'\\", "x" * 100_000]),
    (Column("bytea", PgType(pg_types.BYTEA, "bytea")), [b"", b"\x00\xff\x00", bytes(range(256))]),
    (Column("uuid", _UUID), [_A, _B]),
    (Column("domain", _DOMAIN), [_A]),
    (Column("date", _DATE), [0, -719_528, 2_932_896, 2**31 - 1, -(2**31 - 1), -2_440_588]),
    (Column("time", PgType(pg_types.TIME, "time")), [0, 86_399_999_999, 86_400_000_000]),
    (
        Column("timestamp", PgType(pg_types.TIMESTAMP, "timestamp")),
        [0, -1, 1_700_000_000_123_456, _INFINITE, -_INFINITE],
    ),
    (
        Column("timestamptz", _TIMESTAMPTZ),
        [0, -210_866_803_200_000_000, 9_000_000_000_000_000_000, _INFINITE, -_INFINITE],
    ),
    (
        Column("interval", PgType(pg_types.INTERVAL, "interval")),
        [_interval(14, -3, 4_000_005_000), _interval(0, 0, -1_000)],
    ),
    (Column("json", _JSON), ['{"b": 1,   "a": [1, null], "b": 2}', '"\\ud800"', "1e1000", "null"]),
    (Column("jsonb", _JSONB), ['{"a": "ü"}', "[]"]),
    (Column("mood", _MOOD), ["sad", 'it\'s "ok"']),
    (Column("unknown", _UNKNOWN), [b"(1,2)"]),
    (Column("unknowns", array_of(70_010, _UNKNOWN)), [[b"x y", None, b"\xff"], []]),
    (Column("dollars", _MONEY), [Decimal("92233720368547758.07"), Decimal("-92233720368547758.08"), Decimal("0.00")]),
    (Column("yen", array_of(791, _YEN)), [[Decimal(2**63 - 1), None, Decimal(-1)]]),
    (Column("xid8", PgType(pg_types.XID8, "xid8")), [0, 2**64 - 1]),
    (Column("bit", _BIT, 3), ["101", "000"]),
    (
        Column("timetz", PgType(pg_types.TIMETZ, "timetz")),
        ["12:00:00.5+02", "10:00:00.5+00", "24:00:00+15:59:59", "00:00:00-15:59:59", "23:59:59.999999-00:01:01"],
    ),
    (Column("vectors_of_ints", PgType(pg_types.INT2VECTOR, "int2vector")), [[1, -2], []]),
    (Column("point", _POINT), [{"x": 1.5, "y": -0.0}, {"x": float("nan"), "y": float("inf")}]),
    (
        Column("path", PgType(pg_types.PATH, "path")),
        [{"closed": closed, "points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]} for closed in (True, False)],
    ),
    (Column("polygon", PgType(pg_types.POLYGON, "polygon")), [[{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]]),
    (Column("hstore", _HSTORE), [[("a", "b"), ("ü", None)], [], [("", "")], [("a", None)]]),
    (Column("vector", _VECTOR, 3), [[1.5, -2.0, 3.0], [0.0, 1e-45, 3.4028234663852886e38]]),
    (Column("any_vector", _VECTOR), [[1.5, -2.0, 3.0], [1.0]]),
    (
        Column("pair", _PAIR),
        [
            {"a": 1, "B c": Decimal("1.50"), "order": ["x", None]},
            {"a": None, "B c": None, "order": None},
            {"a": None, "B c": None, "order": []},
        ],
    ),
    (Column("ints", array_of(1007, INT4)), [[1, None, 3], []]),
    (Column("texts", array_of(1009, TEXT)), [["", None, "a,b"], [None]]),
    (Column("uuids", array_of(2951, _UUID)), [[_A, None], []]),
    (Column("jsons", array_of(3807, _JSONB)), [['{"a":  1}', None], []]),
    (Column("dates", array_of(1182, _DATE)), []),
    (Column("moods", array_of(70_002, _MOOD)), [["sad", None]]),
    (Column("feeling", _FEELING), ['it\'s "ok"', "", "a[]"]),
    (Column("feelings", array_of(70_012, _FEELING)), [["sad", None, "a[]"], []]),
    (
        Column("nest", _NEST),
        [
            {"kind": "k", "pair": {"a": 1, "B c": Decimal("1.50"), "order": ["x", None]}},
            {"kind": None, "pair": None},
            {"kind": "n", "pair": {"a": None, "B c": None, "order": None}},
        ],
    ),
    (
        _as_structs("int4range", 3904),
        [_range(1, 5), _range(None, 5, "()"), _range(None, None, "()"), _range(None, None, "")],
    ),
    (_as_structs("numranges", 4532), [[_range("1.50", "1.50", "[]"), _range("2", None, "()")], []]),
    (Column("grid", array_of(1007, array_of(1007, INT4))), [[[1, None], [3, 4]], []]),
    (Column("bits", array_of(1561, _BIT), 3), [["101", None], []]),
    (Column("points", array_of(1017, _POINT)), [[{"x": 1.5, "y": 2.5}, None], []]),
    (Column("hstores", array_of(70_006, _HSTORE)), [[[("a", None)], None, []], []]),
    (Column("vectors", array_of(70_007, _VECTOR), 2), [[[1.5, 2.5], None], []]),
    (Column("pairs", array_of(70_008, _PAIR)), [[{"a": 1, "B c": None, "order": ["x"]}, None], []]),
    (Column("moneys", array_of(1231, _NUMERIC), numeric_modifier(10, 2)), [[Decimal("1.10"), None]]),
)


Missing = tuple[Column, object, object]
"""(column, what its older rows have, a value of a newer one)."""

MISSING: tuple[Missing, ...] = (
    (Column("uuid", _UUID, missing_value=_A), _A, _B),
    (Column("jsonb", _JSONB, missing_value='{"a": 1}'), '{"a": 1}', "[]"),
    (Column("money", _NUMERIC, numeric_modifier(8, 2), missing_value="1.50"), Decimal("1.50"), Decimal("2.00")),
    (Column("nulled", _NUMERIC, _SMALL, missing_value="NaN", out_of_range=OutOfRange.NULL), None, Decimal(2)),
    (
        Column("clamped", _NUMERIC, _SMALL, missing_value="Infinity", out_of_range=OutOfRange.CLAMP),
        Decimal("999.99"),
        Decimal("-1.50"),
    ),
    (Column("when", _TIMESTAMPTZ, missing_value="infinity"), _INFINITE, 0),
    (Column("ints", array_of(1007, INT4), missing_value="{1,NULL}"), [1, None], [2]),
    (
        replace(_as_structs("int4ranges", 4451), missing_value="{[1,5),[7,)}"),
        [_range(1, 5), _range(7, None)],
        [],
    ),
    (Column("feeling", _FEELING, missing_value="sad"), "sad", ""),
)


_NESTED = frozenset(
    {
        "grid",
        "int4range",
        "numranges",
        "point",
        "path",
        "polygon",
        "hstore",
        "hstores",
        "vector",
        "vectors",
        "pair",
        "pairs",
        "nest",
        "texts",
    }
)


_TYPES_OF_A_KEY = 4
"""In one table, of which each takes a destination a while. BigQuery clusters by as many columns."""


def _differences(destination: Destination, schema: TableSchema, expected: Rows) -> dict[str, tuple[list[Row], ...]]:
    """Of each column that differs: (id, value) of the rows that are missing, and of those that are there instead."""
    there, wanted = contents(destination, schema), Counter(comparable(rows(schema, expected)))
    found: dict[str, tuple[list[Row], ...]] = {}
    for at, column in enumerate(schema.columns):
        is_there, is_wanted = (Counter((row[0], row[at]) for row in counted.elements()) for counted in (there, wanted))
        if is_there != is_wanted:
            found[column.name] = (list((is_wanted - is_there).elements()), list((is_there - is_wanted).elements()))
    return found


class ValueCases:
    """Which values a destination is tested with."""

    def holds(self, column: Column, value: Any) -> bool:  # noqa: ARG002 - for subclasses
        """Whether the destination can hold the value; one that it cannot hold it must refuse (ValueOutOfRange)."""
        return True

    @pytest.fixture
    def cases(self) -> Sequence[Case]:
        """To be overridden where a column cannot be tested."""
        return CASES

    @pytest.fixture
    def missing(self) -> Sequence[Missing]:
        """Likewise of columns that are added."""
        return MISSING


class ValueSuite(ValueCases):
    """Mixed into DestinationSuite."""

    def test_values_that_it_cannot_hold_are_refused(self, destination: Destination, cases: Sequence[Case]) -> None:
        for column, values in cases:
            schema = table("refused", Column("id", INT8), column)
            for value in values:
                if not self.holds(column, value):
                    with pytest.raises(ValueOutOfRange, match=column.name):
                        publish(destination, schema, [(1, value)])
                    assert destination.positions().tables == {}, column.name

    def test_values_come_out_as_they_went_in(self, destination: Destination, cases: Sequence[Case]) -> None:
        """All types in one table: what differs is told by the column's name."""
        held = [(column, [value for value in values if self.holds(column, value)]) for column, values in cases]
        columns = [column for column, _ in held]
        schema = table("values", Column("id", INT8), *columns, Column("tail", TEXT))
        # As many rows as the longest has values, and one of NULL; shorter ones begin again.
        values = [
            [[*values, None][at % (len(values) + 1)] for _, values in held]
            for at in range(1 + max(len(values) for _, values in held))
        ]
        copied = [(at, *row, "copied") for at, row in enumerate(values)]
        inserted = [(at + 1000, *row, "inserted") for at, row in enumerate(values)]
        publish(destination, schema, copied)
        destination.write(batch(changes(schema, inserts=inserted), expected=100, new=200))
        assert _differences(destination, schema, copied + inserted) == {}
        # Carried over as an unchanged value, out of the destination and back.
        moved: dict[Row, Any] = {(at,): (at + 5000, "moved") for at in range(len(values))}
        unchanged = [column.name for column in columns]
        destination.write(batch(changes(schema, partials=[partial(schema, unchanged, moved)]), expected=200, new=300))
        carried = [(at + 5000, *row, "moved") for at, row in enumerate(values)]
        assert _differences(destination, schema, carried + inserted) == {}

    def test_slices_of_many_rows_come_out_as_they_went_in(self, destination: Destination) -> None:
        """As batches are cut: the values of each column begin somewhere in an array, and are more than one block."""
        nested = [
            (column, [value for value in values if self.holds(column, value)])
            for column, values in CASES
            if column.name in _NESTED
        ]
        schema = table("many", Column("id", INT8), *(column for column, _ in nested))

        def many(first: int, last: int) -> list[tuple[Any, ...]]:
            return [
                (at, *([*values, None][at % (len(values) + 1)] for _, values in nested)) for at in range(first, last)
            ]

        every = rows(schema, many(0, 7000)).combine_chunks()
        publish(destination, schema, many(7000, 12_000))
        part = replace(changes(schema), inserts=every.slice(1000, 2500), upserts=every.slice(4001))
        destination.write(batch(part, expected=100, new=200))
        expected = many(7000, 12_000) + many(1000, 3500) + many(4001, 7000)
        assert contents(destination, schema) == Counter(comparable(rows(schema, expected)))

    def test_values_are_keys(self, destination: Destination, cases: Sequence[Case]) -> None:
        """Four types to a key; rows differ in one of them. All tables are written in one batch."""
        keyed: list[Case] = []
        for column, values in cases:
            if column.name in ("float8", "jsonb", "ints", "texts", "uuids"):
                values = values[:1] + values[2:]
            values = [value for value in values if self.holds(column, value)]
            if len(values) > 1 and column.name not in ("json", "jsons"):
                keyed.append((column, values))
        expected: dict[str, Rows] = {}
        parts = []
        for first in range(0, len(keyed), _TYPES_OF_A_KEY):
            columns, values_of = zip(*keyed[first : first + _TYPES_OF_A_KEY], strict=True)
            names = [column.name for column in columns]
            base = tuple(values[0] for values in values_of)

            def other(at: int, value: Any, base: Row = base) -> Row:
                return (*base[:at], value, *base[at + 1 :])

            kept = [base, *(other(at, value) for at, values in enumerate(values_of) for value in values[1:-1])]
            gone = [other(at, values[-1]) for at, values in enumerate(values_of)]
            name = f"key_{'_'.join(names)}"
            schema = table(name, Column("what", TEXT), *columns, key=names, table_id=16_500 + first)
            publish(destination, schema, [("old", *key) for key in kept + gone])
            expected[name] = [("new", *key) for key in kept]
            parts.append(changes(schema, upserts=expected[name], deletes=gone))
        destination.write(batch(*parts, expected=100, new=200))
        assert {
            name: found
            for part, (name, wanted) in zip(parts, expected.items(), strict=True)
            if (found := _differences(destination, part.schema, wanted))
        } == {}

    def test_a_missing_value_of_any_type(self, destination: Destination, missing: Sequence[Missing]) -> None:
        """Columns that all come with one change of the schema, each with a value for the rows that are there."""
        found = [
            (column, older, newer)
            if self.holds(column, older) and self.holds(column, newer)
            else (replace(column, missing_value=None), None, None)
            for column, older, newer in missing
        ]
        before = table("grows", Column("id", INT8))
        after = table("grows", Column("id", INT8), *(column for column, _, _ in found))
        publish(destination, before, [(1,), (2,)])
        added = (3, *(newer for _, _, newer in found))
        destination.write(batch(changes(after, inserts=[added]), expected=100, new=200))
        there = [older for _, older, _ in found]
        assert _differences(destination, after, [(1, *there), (2, *there), added]) == {}
