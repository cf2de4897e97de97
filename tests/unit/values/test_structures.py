"""hstore, composites, geometric types and vectors: any value, as PostgreSQL prints it, is read back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import CopiedAgain, ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.shape.retyping import retyped
from etl_core.values import load
from etl_core.values.arrow import arrow_type, is_supported

TABLE = TableName("public", "t")
HSTORE = PgType(70_000, "hstore", "public")
VECTOR = PgType(70_001, "vector", "public")
MONEY = PgType(pg_types.MONEY, "money", form=2)
GEOMETRY = PgType(70_003, "geometry", "public", delimiter=":", form=0)
TEXT = PgType(pg_types.TEXT, "text")
NASTY = st.text(st.sampled_from("\"\\,(){}=> 'NULaé\n"), max_size=6)


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


def array_of(element: PgType) -> PgType:
    return PgType(70_100, f"_{element.name}", "public", TypeKind.ARRAY, element, delimiter=element.delimiter)


def composite(*attributes: PgType) -> PgType:
    columns = tuple(Column(f"a{number}", pg_type) for number, pg_type in enumerate(attributes))
    return PgType(70_002, "pair", "public", TypeKind.COMPOSITE, attributes=columns)


def loaded(pg_type: PgType, texts: Sequence[str | None], modifier: int = -1) -> Any:
    """The values, which are the same in whichever way the texts are handed over."""
    column = Column("c", pg_type, modifier)
    array = load(pa.array(texts, pa.string()), column, TABLE)
    array.validate(full=True)
    assert array.type == arrow_type(column)
    assert array.is_null().to_pylist() == [text is None for text in texts]
    around = pa.array([b"junk", None, *((None if text is None else text.encode()) for text in texts), b"junk"])
    sliced = load(around.slice(2, len(texts)), column, TABLE)
    assert str(sliced.to_pylist()) == str(array.to_pylist())
    return array.to_pylist()


def print_hstore(pairs: dict[str, str | None]) -> str:
    """hstore_out: https://github.com/postgres/postgres/blob/master/contrib/hstore/hstore_io.c"""

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(f"{quote(key)}=>{'NULL' if value is None else quote(value)}" for key, value in pairs.items())


def print_composite(values: Sequence[str | None]) -> str:
    """record_out: https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/rowtypes.c"""

    def quote(text: str | None) -> str:
        if text is None:
            return ""
        if text and not re.search(r'["\\(),\s]', text):
            return text
        return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'

    return f"({','.join(map(quote, values))})"


def print_array(values: Sequence[str | None]) -> str:
    """array_out, for elements that are all quoted."""
    quoted = ("NULL" if v is None else '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values)
    return "{" + ",".join(quoted) + "}"


def print_bound(text: str | None) -> str:
    """range_bound_escape: https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/rangetypes.c"""
    if text is None:
        return ""
    if text and not re.search(r'["\\(),\[\]\s]', text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'


def print_range(bounds: tuple[str | None, str | None, str]) -> str:
    lower, upper, brackets = bounds
    return f"{brackets[0]}{print_bound(lower)},{print_bound(upper)}{brackets[1]}"


def range_struct(bounds: tuple[str | None, str | None, str]) -> dict[str, Any]:
    lower, upper, brackets = bounds
    inc = {"lower_inc": brackets[0] == "[", "upper_inc": brackets[1] == "]", "isempty": False}
    return {"lower": lower, "upper": upper, **inc}


EMPTY_RANGE = {"lower": None, "upper": None, "lower_inc": False, "upper_inc": False, "isempty": True}


def as_structs(pg_type: PgType, **words: str) -> Column:
    """A column of the type, with its ranges as structs."""
    return retyped(Column("c", pg_type), {"range": "struct", **words}, is_key=False)


MAPS = st.dictionaries(NASTY, st.none() | NASTY, max_size=4)


@given(st.lists(st.none() | MAPS, max_size=6))
def test_any_hstore(maps: list[dict[str, str | None] | None]) -> None:
    texts = [None if one is None else print_hstore(one) for one in maps]
    assert loaded(HSTORE, texts) == [None if one is None else list(one.items()) for one in maps]


@given(st.lists(st.none() | st.lists(st.none() | MAPS, max_size=3), max_size=4))
def test_any_array_of_hstore(lists: list[list[dict[str, str | None] | None] | None]) -> None:
    texts = [
        None if one is None else print_array([None if m is None else print_hstore(m) for m in one]) for one in lists
    ]
    expected = [None if one is None else [None if m is None else list(m.items()) for m in one] for one in lists]
    assert loaded(array_of(HSTORE), texts) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
@given(data=st.data())
def test_any_composite(count: int, data: st.DataObject) -> None:
    row = st.tuples(*[st.none() | NASTY] * count)
    rows = data.draw(st.lists(st.none() | row, max_size=6))
    texts = [None if one is None else print_composite(one) for one in rows]
    expected = [None if one is None else {f"a{at}": value for at, value in enumerate(one)} for one in rows]
    assert loaded(composite(*[TEXT] * count), texts) == expected
    # In another composite, in an array.
    outer = composite(TEXT, composite(*[TEXT] * count))
    outer = PgType(70_003, "outer", "public", TypeKind.COMPOSITE, attributes=outer.attributes)
    nested = [print_array([print_composite(["k", text]) for text in texts])]
    assert loaded(array_of(outer), nested) == [[{"a0": "k", "a1": one} for one in expected]]


RANGES = st.tuples(st.none() | NASTY, st.none() | NASTY, st.sampled_from(["[]", "[)", "(]", "()"]))


@given(st.lists(st.none() | st.just("empty") | RANGES, max_size=6))
def test_any_range(ranges: list[Any]) -> None:
    """As a struct, in an array and in a composite, too."""
    text_range = PgType(70_010, "textrange", "public", TypeKind.RANGE, TEXT)
    texts = [one if one is None or one == "empty" else print_range(one) for one in ranges]
    expected = [None if one is None else EMPTY_RANGE if one == "empty" else range_struct(one) for one in ranges]
    assert loaded(as_structs(text_range).type, texts) == expected
    assert loaded(as_structs(array_of(text_range)).type, [print_array(texts)]) == [expected]
    pair = as_structs(composite(TEXT, text_range)).type
    assert loaded(pair, [print_composite(["k", text]) for text in texts]) == [
        {"a0": "k", "a1": one} for one in expected
    ]


@given(st.lists(st.none() | st.lists(RANGES, max_size=3), max_size=5))
def test_any_multirange(lists: list[list[tuple[str | None, str | None, str]] | None]) -> None:
    text_range = PgType(70_010, "textrange", "public", TypeKind.RANGE, TEXT)
    multirange = as_structs(PgType(70_011, "textmultirange", "public", TypeKind.MULTIRANGE, text_range)).type
    texts = [None if one is None else "{" + ",".join(map(print_range, one)) + "}" for one in lists]
    expected = [None if one is None else [range_struct(each) for each in one] for one in lists]
    assert loaded(multirange, texts) == expected
    assert loaded(array_of(multirange), [print_array(texts)]) == [expected]


def arrays_of(shape: Sequence[int]) -> st.SearchStrategy[Any]:
    """Of texts, nested as often as the shape says."""
    inner = arrays_of(shape[1:]) if len(shape) > 1 else st.none() | NASTY
    return st.lists(inner, min_size=shape[0], max_size=shape[0])


def print_nested(value: Any) -> str:
    return "{" + ",".join(map(print_nested, value)) + "}" if isinstance(value, list) else print_array([value])[1:-1]


@given(st.integers(2, 4), st.data())
def test_any_array_of_several_dimensions(count: int, data: st.DataObject) -> None:
    shapes = st.lists(st.integers(1, 3), min_size=count, max_size=count)
    arrays: list[Any] = data.draw(st.lists(st.none() | st.just([]) | shapes.flatmap(arrays_of), max_size=4))
    listed = retyped(Column("c", known(1009)), {"arrays": f"list({count})"}, is_key=False).type
    texts = [None if one is None else print_nested(one) for one in arrays]
    assert loaded(listed, texts) == arrays
    around = retyped(Column("c", composite(known(1009))), {"arrays": f"list({count})"}, is_key=False).type
    assert loaded(around, [print_composite([text]) for text in texts]) == [{"a0": one} for one in arrays]


def test_an_array_of_other_dimensions_is_refused() -> None:
    listed = retyped(Column("c", known(1007)), {"arrays": "list(2)"}, is_key=False).type
    assert loaded(listed, ["{{1,NULL},{3,4}}", "{}", None]) == [[[1, None], [3, 4]], [], None]
    for text in ("{1,2}", "{NULL}", "{{{1}}}", "{{{{1}}}}"):
        with pytest.raises(
            ValueOutOfRange, match=r"another number of dimensions than 2, as types\.arrays: list"
        ) as told:
            loaded(listed, ["{{1}}", text, "{{2}}"])
        assert str(told.value.hint).startswith("set types.arrays: json for column c")
    with pytest.raises(ValueOutOfRange, match="explicit bounds"):
        loaded(listed, ["[1:1][0:1]={{1,2}}"])
    boxes = retyped(Column("c", known(1020)), {"arrays": "list(2)"}, is_key=False).type
    box = {"x1": 3.0, "y1": 4.0, "x2": 1.0, "y2": 2.0}
    assert loaded(boxes, ["{{(3,4),(1,2);NULL};{NULL;(3,4),(1,2)}}"]) == [[[box, None], [None, box]]]


def test_a_range_of_which_a_bound_is_out_of_range_is_null() -> None:
    """With its bound as NULL it would be another range, without an end."""
    column = as_structs(known(3906), numeric="decimal(6,2)", out_of_range="null")
    texts = ["[1.50,Infinity)", "[1.5,2]", "(NaN,)", "(,)", "empty", None]
    values = load(pa.array(texts, pa.string()), column, TABLE).to_pylist()
    half = {"lower": Decimal("1.50"), "upper": Decimal("2.00"), "lower_inc": True, "upper_inc": True, "isempty": False}
    whole = {"lower": None, "upper": None, "lower_inc": False, "upper_inc": False, "isempty": False}
    assert values == [None, half, None, whole, EMPTY_RANGE, None]
    refused = as_structs(known(4532), numeric="decimal(6,2)")
    with pytest.raises(ValueOutOfRange, match=r"column c\.upper of table public\.t holds NaN or infinity"):
        load(pa.array(["{[1,2),[3,Infinity)}"]), refused, TABLE)


def test_an_attribute_has_its_own_type() -> None:
    pg_type = composite(known(pg_types.INT4), known(1007), known(pg_types.INTERVAL), PgType(70_004, "thing", "public"))
    build: Any = pa.MonthDayNano
    minute = build([0, 0, 60 * 10**9])
    assert loaded(pg_type, ['(1,"{1,NULL}",PT1M,x)', "(,,,)", None]) == [
        {"a0": 1, "a1": [1, None], "a2": minute, "a3": b"x"},
        {"a0": None, "a1": None, "a2": None, "a3": None},
        None,
    ]


def test_a_composite_whose_attributes_are_not_known_or_not_told_apart_is_bytes() -> None:
    assert not is_supported(Column("c", PgType(70_005, "pair", "public", TypeKind.COMPOSITE)))
    attributes = (Column("a", TEXT), Column("A", TEXT))
    assert not is_supported(Column("c", PgType(70_005, "pair", "public", TypeKind.COMPOSITE, attributes=attributes)))


def test_an_attribute_that_came_or_went_is_known_to_a_new_copy_alone() -> None:
    for text in ("(1)", "(1,2,3)"):
        with pytest.raises(CopiedAgain, match=r"the attributes of public\.pair, the type of column c of public\.t"):
            loaded(composite(TEXT, TEXT), ["(1,2)", text])


INT_RANGE, INT_RANGES = as_structs(known(3904)).type, as_structs(known(4451)).type
GRID = retyped(Column("c", known(1007)), {"arrays": "list(2)"}, is_key=False).type


def test_a_label_that_is_not_known_is_known_to_a_new_copy_alone() -> None:
    mood = PgType(70_000, "mood", "public", TypeKind.ENUM, labels=("sad", ""))
    enum = as_enum(mood).type
    assert loaded(mood, ["sad", None, "new"]) == ["sad", None, "new"]
    assert loaded(enum, ["sad", None, ""]) == ["sad", None, ""]
    assert loaded(enum, [None]) == [None]
    with pytest.raises(
        CopiedAgain, match=r"the labels of public\.mood, the type of column c of public\.t, were changed"
    ):
        loaded(enum, ["sad", "new"])
    with pytest.raises(CopiedAgain, match=r"the labels of public\.mood"):
        loaded(as_enum(array_of(mood)).type, ["{sad,NULL}", "{new}"])


def as_enum(pg_type: PgType) -> Column:
    return retyped(Column("c", pg_type), {"enum": "enum"}, is_key=False)


POINTS = [(1.0, 2.5), (float("inf"), -0.0), (1e300, 5e-324)]


def print_point(point: tuple[float, float]) -> str:
    return "(" + ",".join(repr(n).replace("inf", "Infinity").replace("nan", "NaN") for n in point) + ")"


@given(st.lists(st.none() | st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=4), max_size=5))
def test_any_points(lists: list[list[tuple[float, float]] | None]) -> None:
    inner = [None if one is None else ",".join(map(print_point, one)) for one in lists]
    points = [None if one is None else [{"x": x, "y": y} for x, y in one] for one in lists]
    closed = [None if one is None else f"({one})" for one in inner]
    assert repr(loaded(known(pg_types.POLYGON), closed)) == repr(points)
    mixed = [None if one is None else (f"({one})" if at % 2 else f"[{one}]") for at, one in enumerate(inner)]
    paths = [None if one is None else {"closed": at % 2 == 1, "points": one} for at, one in enumerate(points)]
    assert repr(loaded(known(pg_types.PATH), mixed)) == repr(paths)
    one_each = [None if one is None else print_point(one[0]) for one in lists]
    assert repr(loaded(known(pg_types.POINT), one_each)) == repr([None if one is None else one[0] for one in points])


def test_the_other_shapes() -> None:
    two = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": -4.0}
    assert loaded(known(pg_types.LINE), ["{1,-2,3e+20}", None]) == [{"a": 1.0, "b": -2.0, "c": 3e20}, None]
    assert loaded(known(pg_types.LSEG), ["[(1,2),(3,-4)]"]) == [two]
    assert loaded(known(pg_types.BOX), ["(1,2),(3,-4)"]) == [two]
    assert loaded(known(1020), ["{(1,2),(3,-4);NULL;(1,2),(3,-4)}", "{}"]) == [[two, None, two], []]
    assert loaded(known(pg_types.CIRCLE), ["<(1,2),3>"]) == [{"x": 1.0, "y": 2.0, "radius": 3.0}]


@given(st.lists(st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5), max_size=5))
def test_any_vector(vectors: list[list[float] | None]) -> None:
    texts = [None if one is None else f"[{','.join(map(repr, one))}]" for one in vectors]
    assert repr(loaded(VECTOR, texts)) == repr(vectors)
    three = [None if one is None else (one * 3)[:3] for one in vectors]
    texts = [None if one is None else f"[{','.join(map(repr, one))}]" for one in three]
    assert repr(loaded(VECTOR, texts, 3)) == repr(three)


@given(st.lists(st.none() | st.lists(st.integers(-(2**15), 2**15 - 1), max_size=4), max_size=5))
def test_any_int2vector(vectors: list[list[int] | None]) -> None:
    texts = [None if one is None else " ".join(map(str, one)) for one in vectors]
    assert loaded(known(pg_types.INT2VECTOR), texts) == vectors


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(0, 10))
def test_any_money(values: list[int | None], decimals: int) -> None:
    """cash_out with lc_monetary = C."""

    def text(whole: int) -> str:
        return f"{'-' if whole < 0 else ''}${abs(whole) // 100:,}.{abs(whole) % 100:02}"

    money = replace(MONEY, form=decimals)
    expected = [None if one is None else Decimal(one).scaleb(-decimals) for one in values]
    texts = [None if one is None else text(one) for one in values]
    assert loaded(money, texts) == expected
    quoted = [None if one is None else f'"{one}"' for one in texts]
    assert loaded(array_of(money), [f"{{{','.join(one or 'NULL' for one in quoted)}}}"]) == [expected]


@given(st.lists(st.none() | st.binary(min_size=5, max_size=30).map(lambda data: b"\x01" + data[1:]), max_size=5))
def test_any_geometry(values: list[bytes | None]) -> None:
    texts = [None if one is None else one.hex().upper() for one in values]
    assert loaded(GEOMETRY, texts) == values
    assert loaded(array_of(GEOMETRY), [f"{{{':'.join(one or 'NULL' for one in texts)}}}"]) == [values]


@pytest.mark.parametrize(
    ("pg_type", "text"),
    [
        *((HSTORE, text) for text in ('"a"', '"a"=>"b"=>"c"', '"a"=>', '"a"=>b', 'x"a"=>"b"', '"a"=>"b",', "a", '"')),
        *((HSTORE, text) for text in ('"a"=>"b", ', '"a", "b"', '"a"=>NULL, ', '"a"=>nULL', '"a"=>"b" "c"=>"d"')),
        *((composite(TEXT, TEXT), text) for text in ("1,2", "(1,2", '("1,2)', "", "x(1,2)")),
        *(
            (GRID, text)
            for text in ("{{1}", "{{1}}}", "{{1}{2}}", "{{1},2}", "{{1},}", "{{1};{2}}", "{{1,{2}}}", "{{", "")
        ),
        *((INT_RANGE, text) for text in ("[1,2", "1,2)", "[1)", "[1,2,3)", "", "emptx", "empty1", '["1,2)', "[x,2)")),
        *((INT_RANGES, text) for text in ("{[1,2)", "[1,2)}", "{[1,2)[3,4)}", "{[1,2),}", "{x}", "", "{{[1,2)}}")),
        *((INT_RANGES, text) for text in ("{,[1,2)}", "{[1,2);[3,4)}", "{[1,2)}}", "}[1,2){", "{empty}", "{)1,2[}")),
        *((known(pg_types.POINT), text) for text in ("1,2", "(1,2", "(1,,2)", "(1)", "((1,2)", "(1,x)", "", "(,)")),
        *((known(pg_types.BOX), text) for text in ("(1,2)", "(1,2)(3,4)", "(1,2),(3,4),(5,6)", "(1,2),3(,4)")),
        *((known(pg_types.POLYGON), text) for text in ("()", "((1,2)", "((1,2),)", "((1,2)x,(3,4))", "[(1,2)]", "")),
        *((known(pg_types.PATH), text) for text in ("[(1,2))", "((1,2)]", "((1,2,3))", "((1,2),(3,4)", "")),
        *((VECTOR, text) for text in ("[1,2", "1,2", "[1,,2]", "[1,NULL]", "[x]", "")),
        *((known(pg_types.INT2VECTOR), text) for text in ("1  2", "x", "1 2 ", "70000")),
        *((MONEY, text) for text in ("1.00", "$1234.00", "$,123.00", "$1,2,34.00", "$1.0.0", "$12,345.6", "Y1.00", "")),
        *((MONEY, text) for text in ("$-1.00", "($1.00)", "$ 1.00", "--$1.00", "$1,00", "$92,233,720,368,547,758.08")),
        *((GEOMETRY, text) for text in ("POINT(1 2)", "0101", "010100000", "02010000000000", "01g1000000", "")),
    ],
)
def test_text_that_is_none_of_the_type_is_refused(pg_type: PgType, text: str) -> None:
    for texts in ([text], [None, text, None]):
        with pytest.raises(ValueOutOfRange):
            loaded(pg_type, texts)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueOutOfRange, match=r"column c of table public\.t holds text that is not a value"):
        loaded(VECTOR, ["[1,2,3]", "[1,2]"], 3)


@pytest.mark.parametrize("pg_type", [HSTORE, composite(TEXT, TEXT)])
def test_text_that_is_no_utf8_is_named(pg_type: PgType) -> None:
    text = pa.array([b'"k"=>"\xff"' if pg_type is HSTORE else b"(k,\xff)"])
    with pytest.raises(ValueOutOfRange, match="not valid UTF-8"):
        load(text, Column("c", pg_type), TABLE)
