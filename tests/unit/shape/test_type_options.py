"""The options of types in the configuration, which columns they concern, and when a table must be copied again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etl_core.config import DestinationConfig, PipelineConfig
from etl_core.config_file import load_config
from etl_core.config_tables import read_tables
from etl_core.destination.duckdb_sql.types import duckdb_type, type_change
from etl_core.destination.registry import check_enums
from etl_core.destination.sql.type_change import TypeChange
from etl_core.errors import ConfigError, CopiedAgain, TableError, UnsupportedType
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, format_type, numeric_modifier
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.shape.digits import with_digits
from etl_core.shape.rules import Rules
from etl_core.shape.shapes import Shapes
from etl_core.state.schema_json import schema_from_json, schema_to_json
from etl_core.testing.destination_tables import INT4, INT8, TEXT, array_of, table
from etl_core.type_options import OutOfRange, read_types
from etl_core.values.digits import Digits
from etl_core.write_mode import WriteMode

PAGE = Path(__file__).parents[3] / "docs" / "types.md"
FILE = """\
pipeline: shop
source: {dsn: "postgresql://etl@db/shop", publication: shop_pub}
destination: {type: duckdb, path: shop.duckdb}
"""


def known(oid: int) -> PgType:
    found = builtin(oid)
    assert found is not None
    return found


NUMERIC = known(pg_types.NUMERIC)
ORDERS = table(
    "orders",
    Column("id", INT8, attnum=1),
    Column("price", NUMERIC, attnum=2),
    Column("paid", NUMERIC, numeric_modifier(10, 2), attnum=3),
    Column("doc", known(pg_types.JSONB), attnum=4),
    Column("at", known(pg_types.TIMESTAMPTZ), attnum=5),
    Column("note", TEXT, attnum=6),
    table_id=16_400,
)


def load(tmp_path: Path, more: str) -> PipelineConfig:
    (tmp_path / "etl.yaml").write_text(FILE + more)
    return load_config(tmp_path / "etl.yaml")


def shapes(types: Mapping[str, Any], tables: Mapping[str, Any] | None = None, **more: Any) -> Shapes:
    return Shapes.checked(read_tables("tables", tables or {}), None, types=read_types("types", types), **more)


def shown(schema: TableSchema) -> dict[str, str]:
    return {column.name: f"{format_type(column)} {column.out_of_range}" for column in schema.columns}


def test_the_page_is_true(tmp_path: Path) -> None:
    (yaml,) = re.findall(r"## Options\n\n```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "etl.yaml").write_text(yaml)
    config = load_config(tmp_path / "etl.yaml")
    found = Shapes.checked(config.tables, None, types=config.types)
    columns = (Column(name, NUMERIC) for name in ("price", "weight"))
    more = (Column("payload", known(pg_types.JSONB)), Column("shipped_at", known(pg_types.TIMESTAMPTZ)))
    orders = table("orders", Column("id", INT8), *columns, *more, table_id=1)
    assert shown(found.of(orders).target) == {
        "id": "int8 refuse",
        "price": "numeric(38,10) null",
        "weight": "float8 null",
        "payload": "text refuse",
        "shipped_at": "timestamptz clamp",
    }
    assert shown(found.of(replace(orders, name=replace(orders.name, name="fx_a"))).target)["price"] == (
        "numeric refuse"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("types: {numerics: double}\n", ":4: types.numerics: is unknown"),
        ("types: {numeric: decimal}\n", ":4: types.numeric: is 'decimal'"),
        ("types: {numeric: 'decimal(39,2)'}\n", ":4: types.numeric: is 'decimal(39,2)'"),
        ("types: {numeric: 'decimal(3,4)'}\n", ":4: types.numeric: is 'decimal(3,4)'"),
        ("types: {numeric: null}\n", ":4: types.numeric: has no value"),
        ("types: {arrays: list(7)}\n", ":4: types.arrays: is 'list(7)'"),
        ("types: {arrays: nested}\n", ":4: types.arrays: is 'nested'"),
        ("types: {out_of_range: [null]}\n", ":4: types.out_of_range: must be text, not a list"),
        ("tables:\n  t: {types: {json: text}}\n", ":5: tables.t.types.json: is 'text'"),
        (
            "tables:\n  t: {columns: {numeric: [a]}}\n",
            ":5: tables.t.columns.numeric: must be a mapping of columns to w",
        ),
        ("tables:\n  t: {columns: {json: {a: jsonb}}}\n", ":5: tables.t.columns.json.a: is 'jsonb'"),
        (
            "tables:\n  t: {columns: {exclude: [a], json: {a: varchar}}}\n",
            ":5: tables.t.columns.json.a: column a is left out or transformed by this entry",
        ),
    ],
)
def test_what_is_no_word_is_refused_with_its_line(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more)
    assert said in str(caught.value)


def test_null_is_a_word(tmp_path: Path) -> None:
    config = load(tmp_path, "types: {out_of_range: null}\ntables:\n  t: {columns: {out_of_range: {a: null}}}\n")
    assert config.types == {"out_of_range": "null"}
    assert config.tables[0].columns.types == {"out_of_range": {"a": "null"}}


def test_a_column_comes_before_its_table_and_that_before_the_pipeline() -> None:
    tables = {
        "*.*": {"types": {"numeric": "double"}, "columns": {"numeric": {"price": "Decimal( 20 , 3 )"}}},
        "orders": {"types": {"numeric": "varchar"}},
    }
    found = shapes({"out_of_range": "null", "json": "varchar"}, tables)
    assert shown(found.of(ORDERS).target) == {
        "id": "int8 refuse",
        "price": "numeric(20,3) null",
        "paid": "numeric(10,2) null",
        "doc": "text refuse",
        "at": "timestamptz null",
        "note": "text refuse",
    }
    key = replace(ORDERS, key=("id", "at", "paid"))
    assert {column.out_of_range for column in shapes({"out_of_range": "null"}).of(key).target.columns} == {
        OutOfRange.REFUSE
    }
    counted = shapes({"out_of_range": "null"}).of(with_digits(ORDERS, {"price": 9})).target
    assert shown(counted)["price"] == "numeric(38,9) null"
    assert shapes({}).of(ORDERS).is_identity


def test_types_in_types() -> None:
    prisma = PgType(1, "prisma", "public", TypeKind.DOMAIN, NUMERIC, numeric_modifier(65, 30))
    cost = PgType(
        2, "cost", "public", TypeKind.COMPOSITE, attributes=(Column("a", prisma), Column("b", NUMERIC, 655366))
    )
    array = PgType(3, "_cost", "public", TypeKind.ARRAY, cost)
    schema = table("t", Column("id", INT8), Column("c", array), Column("d", prisma), Column("i", TEXT))
    c = shapes({"numeric": "decimal(30,5)"}).of(schema).target.column("c").type
    assert c.element is not None
    assert [format_type(one) for one in c.element.attributes] == ["numeric(30,5)", "numeric(10,2)"]
    assert format_type(shapes({"numeric": "double"}).of(schema).target.column("d")) == "float8"
    assert shapes({"json": "varchar"}).of(schema).is_identity


def test_a_table_is_copied_again_where_the_options_come_to_something_else() -> None:
    stored = shapes({"numeric": "decimal(20,3)", "json": "varchar"}).stored(ORDERS)
    assert Rules.from_json(stored) is not None

    def is_same(
        types: Mapping[str, Any], tables: Mapping[str, Any] | None = None, schema: TableSchema = ORDERS
    ) -> bool:
        return shapes(types, tables).is_as_copied(stored, schema)

    assert is_same({"numeric": "decimal(20,3)", "json": "varchar"})
    assert is_same({}, {"*.*": {"types": {"json": "varchar"}, "columns": {"numeric": {"price": "decimal(20,3)"}}}})
    assert not is_same({"numeric": "decimal(20,3)"})
    assert not is_same({"numeric": "decimal(20,4)", "json": "varchar"})
    assert not is_same({"numeric": "decimal(20,3)", "json": "varchar", "out_of_range": "null"})
    few = replace(ORDERS, columns=(ORDERS.columns[0], ORDERS.columns[5]))
    assert is_same({"numeric": "double", "out_of_range": "clamp"}, schema=few), "it has no such columns"
    assert shapes({}).is_as_copied(shapes({"numeric": "auto", "out_of_range": "refuse"}).stored(ORDERS), ORDERS)
    as_text, as_decimal = {"numeric": "varchar"}, with_digits(ORDERS, {"price": 9})
    assert not shapes({}).is_as_copied(shapes(as_text).stored(ORDERS), ORDERS)
    assert not shapes(as_text).is_as_copied(shapes({}).stored(as_decimal), as_decimal)
    assert shapes(as_text).is_as_copied(shapes({}).stored(ORDERS), ORDERS), "an older version made it text"
    assert shapes({}).change_told(stored, ORDERS.name) == "the settings of its types were changed"
    assert Rules.from_json(stored.replace("decimal(20,3)", "decimal(99,3)")) is None


def test_deleted_rows_that_are_kept_do_not_keep_values_that_may_be_others() -> None:
    before = shapes({"numeric": "double", "out_of_range": "null"}, write_mode=WriteMode.SOFT_DELETE).stored(ORDERS)

    def changed(types: Mapping[str, Any]) -> set[str]:
        return set(shapes(types, write_mode=WriteMode.SOFT_DELETE).changed_values(before, ORDERS, ORDERS))

    assert changed({"numeric": "double", "out_of_range": "null"}) == set()
    assert changed({"numeric": "double", "out_of_range": "null", "json": "varchar"}) == set()
    assert changed({"out_of_range": "null"}) == {"price"}, "it was rounded"
    assert changed({"numeric": "double"}) == set(), "what was NULL is NULL"
    clamped = shapes({"out_of_range": "clamp"}, write_mode=WriteMode.SOFT_DELETE).stored(ORDERS)
    now = shapes({"out_of_range": "null"}, write_mode=WriteMode.SOFT_DELETE)
    assert set(now.changed_values(clamped, ORDERS, ORDERS)) == {"paid", "at"}, "they were not the source's"
    refused = shapes({}, write_mode=WriteMode.SOFT_DELETE).stored(ORDERS)
    assert set(now.changed_values(refused, ORDERS, ORDERS)) == set(), "none of them was out of range"


def test_what_becomes_part_of_the_key_is_copied_again() -> None:
    found = shapes({"out_of_range": "null"})
    with pytest.raises(CopiedAgain, match="column paid was altered, and the settings of types say otherwise of it now"):
        found.check_carried(ORDERS, replace(ORDERS, key=("id", "paid")))
    found.check_carried(ORDERS, replace(ORDERS, key=("id", "note")))


def test_an_option_that_says_nothing_of_its_column_is_found() -> None:
    tables = {"orders": {"columns": {"numeric": {"paid": "double", "prise": "double", "price": "double"}}}}
    assert [str(error) for error in shapes({}, tables).check([ORDERS])] == [
        "tables.orders.columns.numeric.prise: prise is no published column of public.orders",
        "tables.orders.columns.numeric.paid: column paid has type numeric(10,2), of which numeric says nothing",
    ]


def test_arrays_and_unknown_types_wherever_they_are() -> None:
    thing = PgType(70_000, "thing", "public")
    money = PgType(pg_types.MONEY, "money", form=2)
    pair = PgType(70_002, "pair", "public", TypeKind.COMPOSITE, attributes=(Column("a", array_of(1009, TEXT)),))
    kinds = {
        "ints": array_of(1007, INT4),
        "prices": array_of(791, money),
        "things": array_of(70_001, thing),
        "thing": PgType(70_003, "d", "public", TypeKind.DOMAIN, thing),
        "pairs": array_of(70_004, pair),
        "pair": pair,
    }
    schema = table("t", Column("id", INT8), *(Column(name, kind) for name, kind in kinds.items()))
    said = {"t": {"columns": {"arrays": {"prices": "list(2)", "ints": "json", "pair": "list"}}}}
    assert list(shapes({}, said).check([schema])) == []
    said["t"]["columns"]["arrays"] = {"prices": "json"}
    assert "of which arrays says nothing" in str(next(iter(shapes({}, said).check([schema]))))

    def stored(types: Mapping[str, str], **columns: Any) -> dict[str, str]:
        settings = {"public.t": {"columns": columns}} if columns else {}
        target = shapes(types, settings).of(schema).target
        return {column.name: duckdb_type(column) for column in target.columns[1:]}

    as_lists = {
        "ints": "INTEGER[]",
        "prices": "DECIMAL(19,2)[]",
        "things": "BLOB[]",
        "thing": "BLOB",
        "pairs": 'STRUCT("a" VARCHAR[])[]',
        "pair": 'STRUCT("a" VARCHAR[])',
    }
    assert stored({}) == as_lists
    assert stored({"unknown": "varchar"}) == {**as_lists, "things": "VARCHAR[]", "thing": "VARCHAR"}
    as_json = {"ints": "JSON", "things": "JSON", "pairs": "JSON", "pair": 'STRUCT("a" VARCHAR)'}
    assert stored({"arrays": "json"}) == {**as_lists, **as_json}
    assert stored({}, arrays={"pairs": "json"}) == {**as_lists, "pairs": "JSON"}
    grids = {
        "ints": "INTEGER[][]",
        "prices": "DECIMAL(19,2)[][]",
        "things": "BLOB[][]",
        "pair": 'STRUCT("a" VARCHAR[][])',
    }
    assert stored({"arrays": "list(2)"}) == {**as_lists, **grids, "pairs": 'STRUCT("a" VARCHAR[])[][]'}
    assert stored({"arrays": "List( 1 )"}) == as_lists
    assert stored({}, arrays={"ints": "list(3)"})["ints"] == "INTEGER[][][]"
    refused = {"arrays": "json", "unknown": "refuse"}
    assert stored(refused, exclude=["thing", "things"]).keys() == as_lists.keys() - {"thing", "things"}
    with pytest.raises(UnsupportedType, match=r"column things of table public\.t has type public\.thing\[\]"):
        stored(refused, unknown={"thing": "bytes"})


def test_the_digits_that_a_copy_decides_and_the_stream_carries() -> None:
    """By the widest values, never fewer than the destination has, for columns that may be DECIMALs."""
    prisma = PgType(1, "prisma", "public", TypeKind.DOMAIN, NUMERIC, numeric_modifier(65, 30))
    cost = PgType(2, "cost", "public", TypeKind.COMPOSITE, attributes=(Column("a", NUMERIC),))
    kinds = {"a": NUMERIC, "b": prisma, "c": array_of(1231, NUMERIC), "d": cost, "e": known(pg_types.INT8)}
    source = table(
        "t", *(Column(name, kind, attnum=at) for at, (name, kind) in enumerate(kinds.items(), 1)), key=("a",)
    )
    found = shapes({})

    def counted(of: Shapes, before: TableSchema | None = None) -> str:
        return "".join(column.name for column in of.columns_to_count(source, before))

    assert counted(found) == "abc"
    assert counted(shapes({"arrays": "json"})) == "ab"
    assert counted(shapes({"numeric": "decimal(20,2)"}, {"t": {"columns": {"numeric": {"b": "auto"}}}})) == "b"
    keeping = shapes({}, write_mode=WriteMode.SOFT_DELETE)
    assert counted(keeping) == "bc", "1.0 and 1.00 are two keys of the past"
    assert counted(keeping, with_digits(source, {"b": 12})) == "b", "deleted rows have text in c"

    def decided(before: int, whole: int, fraction: int, of: Shapes = found) -> int | None:
        digits = {"b": Digits(whole, fraction)}
        return of.decided(source, with_digits(source, {"b": before}), digits).column("b").fraction_digits

    assert [decided(0, *each) for each in ((0, 0), (29, 2), (30, 2), (38, 0), (18, 20), (0, 38))] == [
        9,
        9,
        8,
        0,
        20,
        38,
    ]
    assert [decided(12, *each) for each in ((0, 0), (28, 2), (28, 10))] == [12, 10, 10]
    with pytest.raises(
        TableError, match=r"column b of table public\.t holds numbers of up to 20 digits before the poi"
    ):
        decided(0, 20, 19)
    with pytest.raises(
        TableError, match="27 digits before the point and 0 after it, and 12 are kept for rows of the past"
    ):
        decided(12, 27, 0, keeping)

    stored = with_digits(source, {"a": 9, "b": 12})
    assert found.carried(source, stored) is found.carried(source, found.carried(source, stored)) == stored
    added = [Column("f", NUMERIC, missing_value="1.5"), Column("g", NUMERIC, missing_value="-0.00000000000100")]
    added += [Column("h", array_of(1231, NUMERIC), missing_value="{NULL,123456789012345678901234567890.5}")]
    was = replace(stored, columns=(*stored.columns, Column("i", NUMERIC, numeric_modifier(38, 2), attnum=9)))
    now = replace(source, columns=(*source.columns, *added, Column("i", NUMERIC, attnum=9)))
    digits = {column.name: column.fraction_digits for column in found.carried(now, was).columns}
    assert digits == {"a": 9, "b": 12, "c": None, "d": None, "e": None, "f": 9, "g": 12, "h": 8, "i": 2}
    assert schema_from_json(schema_to_json(stored)).column("b").fraction_digits == 12
    assert "fraction_digits" not in schema_to_json(source)
    shape = found.of(stored)
    assert duckdb_type(shape.target.column("b")) == "DECIMAL(38,12)"
    assert duckdb_type(shape.target.column("c")) == "VARCHAR[]"


def test_ranges_wherever_they_are() -> None:
    numrange, int4range = known(3906), known(3904)
    pair = PgType(70_002, "pair", "public", TypeKind.COMPOSITE, attributes=(Column("r", numrange),))
    own = PgType(70_005, "own", "public", TypeKind.RANGE)  # as an older version stored it
    kinds = {"r": numrange, "m": known(4451), "a": array_of(70_004, int4range), "p": pair, "own": own}
    schema = table("t", Column("id", INT8), *(Column(name, kind) for name, kind in kinds.items()))

    def stored(types: Mapping[str, str]) -> dict[str, str]:
        return {column.name: duckdb_type(column) for column in shapes(types).of(schema).target.columns[1:]}

    def struct(bound: str) -> str:
        flags = ", ".join(f'"{name}" BOOLEAN' for name in ("lower_inc", "upper_inc", "isempty"))
        return f'STRUCT("lower" {bound}, "upper" {bound}, {flags})'

    texts = {"r": "VARCHAR", "m": "VARCHAR", "a": "VARCHAR[]", "p": 'STRUCT("r" VARCHAR)', "own": "VARCHAR"}
    assert stored({}) == stored({"numeric": "double"}) == texts
    structs = {"r": struct("VARCHAR"), "m": struct("INTEGER") + "[]", "a": struct("INTEGER") + "[]"}
    assert stored({"range": "struct"}) == {**texts, **structs, "p": f'STRUCT("r" {struct("VARCHAR")})'}
    assert stored({"range": "struct", "numeric": "double"})["r"] == struct("DOUBLE")
    assert stored({"range": "struct", "arrays": "json"})["a"] == "JSON"
    # What is said of a range's bounds is said of it, and a range that is not known yet is copied again.
    of_all = shapes({"range": "struct", "numeric": "double", "out_of_range": "null"})
    rules = of_all.rules(schema.name)
    assert {name: rules.words_in_force(schema.column(name), schema).keys() for name in ("r", "m", "own")} == {
        "r": {"range", "numeric", "out_of_range"},
        "m": {"range"},
        "own": {"range"},
    }
    said = {"range": {"id": "struct"}, "numeric": {"r": "double", "m": "double"}, "out_of_range": {"r": "null"}}
    found = [str(error) for error in shapes({}, {"t": {"columns": said}}).check([schema])]
    assert found == [
        "tables.t.columns.range.id: column id has type int8, of which range says nothing",
        "tables.t.columns.numeric.m: column m has type int4multirange, of which numeric says nothing",
    ]
    key = replace(schema, key=("r",))
    with pytest.raises(TableError, match=r"is double: column r is in the key of public\.t"):
        shapes({"range": "struct", "numeric": "double"}).of(key)


def test_an_array_has_values_out_of_range() -> None:
    prices = table("t", Column("id", INT8), Column("prices", array_of(1231, NUMERIC), numeric_modifier(5, 2)))
    said = {"public.t": {"columns": {"out_of_range": {"prices": "null"}}}}
    assert list(shapes({}, said).check([prices])) == []


def test_enums_where_the_destination_has_them(tmp_path: Path) -> None:
    mood = PgType(70_000, "mood", "public", TypeKind.ENUM, labels=("sad", "it's"))
    pair = PgType(70_002, "pair", "public", TypeKind.COMPOSITE, attributes=(Column("m", mood),))
    own = PgType(70_003, "own", "public", TypeKind.RANGE, mood)
    domain = PgType(70_004, "state", "public", TypeKind.DOMAIN, mood)
    old = replace(mood, labels=())  # of an older version, or without any
    kinds = {"m": mood, "ms": array_of(70_001, domain), "p": pair, "r": own, "old": old}
    schema = table("t", Column("id", INT8), *(Column(name, kind) for name, kind in kinds.items()))

    def stored(types: Mapping[str, str]) -> dict[str, str]:
        return {column.name: duckdb_type(column) for column in shapes(types).of(schema).target.columns[1:]}

    texts = {"m": "VARCHAR", "ms": "VARCHAR[]", "p": 'STRUCT("m" VARCHAR)', "r": "VARCHAR", "old": "VARCHAR"}
    enum = "ENUM('sad', 'it''s')"
    assert stored({}) == texts
    assert stored({"enum": "enum"}) == {**texts, "m": enum, "ms": f"{enum}[]"}
    assert stored({"enum": "enum", "arrays": "json"}) == {**texts, "m": enum, "ms": "JSON"}
    rules = shapes({"enum": "enum"}).rules(schema.name)
    in_force = {one.name for one in schema.columns if "enum" in rules.words_in_force(one, schema)}
    assert in_force == {"m", "ms", "old"}
    with pytest.raises(TableError, match=r"types\.enum: is enum: column m of public\.t may keep labels"):
        shapes({"enum": "enum"}, write_mode=WriteMode.SOFT_DELETE).of(schema)

    config = load(tmp_path, "tables:\n  t: {columns: {enum: {m: enum, n: varchar}}}\n")
    assert config.enum_fields == ["tables.t.columns.enum.m"]
    check_enums(config.destination, config.enum_fields)
    with pytest.raises(ConfigError) as told:
        check_enums(DestinationConfig("bigquery", {"project": "p"}), config.enum_fields)
    assert str(told.value) == ("tables.t.columns.enum.m: is enum, which destination type bigquery does not have")
    assert load(tmp_path, "types: {enum: enum}\n").enum_fields == ["types.enum"]
    check_enums(DestinationConfig("bigquery", {"project": "p"}), load(tmp_path, "types: {enum: varchar}\n").enum_fields)


def test_an_enum_grows_in_place_and_nothing_else_of_it() -> None:
    def column(*labels: str, is_list: bool = False) -> Column:
        enum = PgType(70_000, "mood", "public", TypeKind.ENUM, form=0, labels=labels)
        return Column("m", array_of(70_001, enum) if is_list else enum)

    before = duckdb_type(column("a", "it's", "c', 'd"))
    assert type_change(before, duckdb_type(column("a", "it's", "c', 'd"))) is TypeChange.NONE
    assert type_change(before, duckdb_type(column("z", "it's", "c', 'd", "a"))) is TypeChange.GROWS
    assert type_change(before, duckdb_type(column("a", "it's", "c", "d"))) is TypeChange.COMPARABLE
    assert type_change(before, duckdb_type(column("a", "it's"))) is TypeChange.COMPARABLE
    assert type_change(f"{before}[]", duckdb_type(column("a", "it's", "c', 'd", "z"))) is TypeChange.OTHER
    assert type_change(f"{before}[]", duckdb_type(column("a", "it's", "c', 'd", "z", is_list=True))) is TypeChange.GROWS
    assert type_change("VARCHAR", duckdb_type(column("a"))) is TypeChange.COMPARABLE
    assert type_change("ENUM('a\"')", duckdb_type(column("a"))) is not TypeChange.NONE
