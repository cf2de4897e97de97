"""Types that are more than a text: by copy and by the stream the same value, as data and as key, and verify agrees."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import json
import sqlite3
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from etl_core.config_tables import read_tables
from etl_core.errors import CopiedAgain
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

# As an extension makes it, for a server that does not bring it: the texts below are those that it prints.
LIKE_TEXT = """
CREATE TYPE {name};
CREATE FUNCTION {name}in(cstring) RETURNS {name} LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION {name}out({name}) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE {name} (INPUT = {name}in, OUTPUT = {name}out, INTERNALLENGTH = VARIABLE, STORAGE = extended{more})
"""
USERS = """
CREATE TYPE pair AS (a int, "B c" text);
CREATE TYPE nest AS (
    kind text, pair pair, many pair[], at timestamptz, amount numeric(10,2), raw bytea, price money, prices money[]
);
CREATE DOMAIN small_pair AS pair CHECK ((value).a < 1000)
"""
NESTED = (
    """row('k', row(3, 'y, "z"'), array[row(4, '\\')::pair, null], '2024-01-01 00:00Z', 1.5, '\\x00ff',"""
    " '-1234.5'::money, array[1000000::money, null])"
)
PLACE = "0101000020E6100000000000000000F03F0000000000000040"
"""POINT(1 2) with SRID 4326, as PostGIS prints it."""
# Declared type: DuckDB's type, and each value as SQL and as DuckDB gives it to Python.
TYPES: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "xid8": ("UBIGINT", [("'18446744073709551615'", 2**64 - 1), ("'0'", 0)]),
    "cid": ("BIGINT", [("'7'", 7)]),
    "int2vector": ("SMALLINT[]", [("'1 -2'", [1, -2]), ("''", [])]),
    "oidvector": ("BIGINT[]", [("'1 4294967295'", [1, 4294967295])]),
    "regclass": ("VARCHAR", [("'pg_catalog.pg_class'", "pg_class")]),
    "pg_snapshot": ("VARCHAR", [("'10:20:10,14'", "10:20:10,14")]),
    "numeric(6,2)": ("DECIMAL(6,2)", [("1.5", 1.5)]),
    "money": (
        "DECIMAL(19,2)",
        [("'92233720368547758.07'", Decimal("92233720368547758.07")), ("'-0.01'", Decimal("-0.01"))],
    ),
    "money[]": ("DECIMAL(19,2)[]", [("array[1234::money, null]", [Decimal("1234.00"), None]), ("'{}'", [])]),
    "geometry": ("BLOB", [(f"'{PLACE}'", bytes.fromhex(PLACE))]),
    "geometry[]": (
        "BLOB[]",
        [(f"array['{PLACE}'::geometry, null, '{PLACE}']", [bytes.fromhex(PLACE), None, bytes.fromhex(PLACE)])],
    ),
    "point": ("STRUCT(x DOUBLE, y DOUBLE)", [("'(1,-2.5)'", {"x": 1.0, "y": -2.5})]),
    "point[]": (
        "STRUCT(x DOUBLE, y DOUBLE)[]",
        [("array[point(1,2), null]", [{"x": 1.0, "y": 2.0}, None]), ("'{}'", [])],
    ),
    "line": ("STRUCT(a DOUBLE, b DOUBLE, c DOUBLE)", [("'{1,-1,3}'", {"a": 1.0, "b": -1.0, "c": 3.0})]),
    "box[]": (
        "STRUCT(x1 DOUBLE, y1 DOUBLE, x2 DOUBLE, y2 DOUBLE)[]",
        [
            (
                "'{(3,4),(1,2);(5,6),(5,6)}'",
                [{"x1": 3.0, "y1": 4.0, "x2": 1.0, "y2": 2.0}, {"x1": 5.0, "y1": 6.0, "x2": 5.0, "y2": 6.0}],
            )
        ],
    ),
    "circle": ("STRUCT(x DOUBLE, y DOUBLE, radius DOUBLE)", [("'<(1,2),5>'", {"x": 1.0, "y": 2.0, "radius": 5.0})]),
    "path": (
        "STRUCT(closed BOOLEAN, points STRUCT(x DOUBLE, y DOUBLE)[])",
        [
            ("'((1,2),(3,4))'", {"closed": True, "points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]}),
            ("'[(1,2),(3,4)]'", {"closed": False, "points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]}),
        ],
    ),
    "polygon": ("STRUCT(x DOUBLE, y DOUBLE)[]", [("'((1,2),(3,4))'", [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}])]),
    "bit(3)": ("BIT", [("b'101'", "101"), ("b'000'", "000")]),
    "bit(3)[]": ("BIT[]", [("array[b'101', null]", ["101", None])]),
    "varbit": ("VARCHAR", [("b''", "")]),
    "small_pair": (
        'STRUCT(a INTEGER, "B c" VARCHAR)',
        [("'(1,\"a,b\")'", {"a": 1, "B c": "a,b"}), ("'(,)'", {"a": None, "B c": None})],
    ),
    "pair[]": ('STRUCT(a INTEGER, "B c" VARCHAR)[]', [("array['(1,)'::pair, null]", [{"a": 1, "B c": None}, None])]),
    "hstore": (
        "MAP(VARCHAR, VARCHAR)",
        [
            ("""'"a"=>"b, c", "d"=>NULL'""", {"a": "b, c", "d": None}),
            (r"""'"q\"\\"=>"ü"'""", {'q"\\': "ü"}),
            ("''", {}),
        ],
    ),
    "hstore[]": ("MAP(VARCHAR, VARCHAR)[]", [("""array['"k"=>"v"'::hstore, '', null]""", [{"k": "v"}, {}, None])]),
    "ltree": ("VARCHAR", [("'Top.Science'", "Top.Science")]),
    "vector": ("FLOAT[]", [("'[1,2.5]'", [1.0, 2.5])]),
    "halfvec[]": ("FLOAT[][]", [("array['[1,0.5]'::halfvec, null]", [[1.0, 0.5], None])]),
}
KEYS = {
    "timetz": ("'12:00+02'", "'10:00+00'"),
    "pair": ("'(1,)'", "'(1,\"\")'"),
    "hstore": ("'a=>NULL'", "''"),
    "ltree": ("'A'", "'a'"),
    "xid8": ("'18446744073709551615'", "'0'"),
    "bit(3)": ("b'101'", "b'111'"),
    "numeric(6,2)": ("1", "2"),
    "money": ("1.5", "'-1.5'"),
}
"""Two values of types that PostgreSQL takes into a primary key, where the extension is there."""


def create_types(lab: Lab) -> set[str]:
    """The extensions' types, as the extension makes them or like it; which extensions there are."""
    there = {name for (name,) in lab.execute("SELECT name FROM pg_available_extensions")}
    for extension, more, names in (
        ("hstore", "", ["hstore"]),
        ("ltree", "", ["ltree"]),
        ("vector", "", ["vector", "halfvec"]),
        ("postgis", ", DELIMITER = ':'", ["geometry"]),
    ):
        if extension in there:
            lab.execute(f"CREATE EXTENSION {extension}")
        else:
            for name in names:
                lab.execute(LIKE_TEXT.format(name=name, more=more))
    lab.execute(USERS)
    return there


def plain(value: object) -> str:
    return repr(value).replace("Decimal('1.50')", "1.5")


def test_every_type_is_the_same_by_copy_and_by_the_stream(lab: Lab) -> None:
    create_types(lab)
    columns = ", ".join(f"c{number} {declared}" for number, declared in enumerate(TYPES))
    lab.execute(f"CREATE TABLE t (id int PRIMARY KEY, n int, nest nest, tz timetz, {columns})")
    most = max(len(values) for _, values in TYPES.values())
    for row in range(most):
        literals = [values[row][0] if row < len(values) else "NULL" for _, values in TYPES.values()]
        lab.execute(f"INSERT INTO t VALUES ({row}, 0, {NESTED}, '24:00:00+15:59:59', {', '.join(literals)})")
    lab.execute("INSERT INTO t (id) VALUES (50)")
    lab.publish()
    pipeline = lab.synced()
    kept = ", ".join(["nest", "tz", *(f"c{number}" for number in range(len(TYPES)))])
    lab.execute(f"INSERT INTO t (id, n, {kept}) SELECT id + 100, 0, {kept} FROM t")
    lab.execute("UPDATE t SET n = 7 WHERE id <> 50; DELETE FROM t WHERE id = 150")
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())

    described = {row[0]: row[1] for row in lab.rows("DESCRIBE public.t")}
    for number, (declared, (stored, values)) in enumerate(TYPES.items()):
        assert described[f"c{number}"] == stored, declared
        found = [row[0] for row in lab.rows(f"SELECT c{number} FROM public.t WHERE id <> 50 ORDER BY id")]
        expected = [value for _, value in values] + [None] * (most - len(values))
        assert list(map(plain, found)) == list(map(plain, expected * 2)), declared
    assert lab.rows("SELECT DISTINCT tz::VARCHAR FROM public.t WHERE id <> 50") == [("24:00:00+15:59:59",)]
    nested = lab.rows(
        "SELECT DISTINCT nest.kind, nest.pair.\"B c\", nest.many, nest.at = '2024-01-01 00:00Z'::TIMESTAMPTZ,"
        " nest.amount::DOUBLE, nest.raw, nest.price::DOUBLE, nest.prices::DOUBLE[] FROM public.t WHERE id <> 50"
    )
    assert nested == [("k", 'y, "z"', [{"a": 4, "B c": "\\"}, None], True, 1.5, b"\x00\xff", -1234.5, [1e6, None])]
    assert lab.rows("SELECT count(*) FROM public.t WHERE id = 50 AND nest IS NULL AND c0 IS NULL") == [(1,)]


@pytest.mark.parametrize("declared", KEYS)
def test_they_are_keys(lab: Lab, declared: str) -> None:
    there = create_types(lab)
    if declared in ("hstore", "ltree") and declared not in there:
        pytest.skip(f"this server has no extension {declared}")
    one, other = (f"{value}::{declared}" for value in KEYS[declared])
    lab.execute(f"CREATE TABLE t (k {declared} PRIMARY KEY, v int); INSERT INTO t VALUES ({one}, 1), ({other}, 2)")
    lab.publish()
    pipeline = lab.synced()
    lab.execute(f"UPDATE t SET v = 10 WHERE k = {one}; DELETE FROM t WHERE k = {other}")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT v FROM public.t") == [(10,)]
    lab.execute(f"INSERT INTO t VALUES ({other}, 3); UPDATE t SET v = 11 WHERE k = {one}")
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())
    assert lab.rows("SELECT v FROM public.t ORDER BY v") == [(3,), (11,)]


def test_unchanged_large_values_stay(lab: Lab) -> None:
    create_types(lab)
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int, h hstore, p pair[], v vector)")
    lab.execute(
        "ALTER TABLE t ALTER h SET STORAGE EXTERNAL, ALTER p SET STORAGE EXTERNAL, ALTER v SET STORAGE EXTERNAL"
    )
    large = ", ".join(
        [f"""'"k"=>"{"v" * 9000}"'""", "array_fill('(1,xyz)'::pair, ARRAY[3000])", f"'[{'1.25,' * 3000}1]'"]
    )
    lab.execute(f"INSERT INTO t VALUES (1, 0, {large})")
    lab.publish()
    pipeline = lab.synced()
    lab.execute("UPDATE t SET n = 1")
    lab.caught_up(pipeline)
    lab.execute("UPDATE t SET id = 2")
    lab.caught_up(pipeline)
    assert all(comparison.is_equal for comparison in pipeline.verify())
    assert lab.rows("SELECT id, n, len(h['k']), len(p), len(v) FROM public.t") == [(2, 1, 9000, 3000, 3001)]


def test_a_table_of_an_older_version_is_copied_again(lab: Lab) -> None:
    """Before, point and geometry were their text as bytes, and a column keeps its type until the table is copied."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, p point); INSERT INTO t VALUES (1, '(1,2)')")
    create_types(lab)
    lab.execute(f"CREATE TABLE places (id int PRIMARY KEY, g geometry); INSERT INTO places VALUES (1, '{PLACE}')")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY)")
    lab.publish("TABLE t, places, other")
    pipeline = lab.synced()
    with contextlib.closing(sqlite3.connect(lab.path.with_name("state.db"))) as state, state:
        state.execute("""UPDATE etl_schemas SET schema_json = replace(schema_json, '"form":0', '"form":-1')""")
    with duckdb.connect(lab.path) as file:
        file.execute(f"UPDATE public.places SET g = '{PLACE}'::BLOB")
        file.execute("ALTER TABLE public.t DROP COLUMN p; ALTER TABLE public.t ADD COLUMN p BLOB")
        file.execute("UPDATE public.t SET p = '(1,2)'::BLOB")
    problems = {comparison.table.name: comparison.problem for comparison in pipeline.verify()}
    assert problems == {
        "t": "not compared: public.t has a column of another type in DuckDB than is stored now; copy the table again: "
        "etl resync public.t",
        "places": "not compared: the rows have column g (public.geometry) in an older form; copy the table again: "
        "etl resync public.places",
        "other": None,
    }
    lab.execute("INSERT INTO t VALUES (2, '(3,4)'); INSERT INTO other VALUES (1)")
    lab.execute(f"INSERT INTO places VALUES (2, '{PLACE}')")
    lab.caught_up(pipeline)
    told = pipeline.observer.errors["t"]
    assert isinstance(told, CopiedAgain)
    assert str(told) == 'column p of public.t is STRUCT("x" DOUBLE, "y" DOUBLE) at the source and BLOB in DuckDB'
    told = pipeline.observer.errors["places"]
    assert isinstance(told, CopiedAgain)
    assert str(told) == (
        "table public.places: column g (public.geometry) is stored in another form now, which cannot be applied to the "
        "rows already copied"
    )
    states = {s.name.name: s.state for s in pipeline.store.tables()}
    assert states == {"t": TableState.INIT, "places": TableState.INIT, "other": TableState.READY}
    pipeline.sync()
    lab.caught_up(pipeline)
    assert lab.rows("SELECT p.x FROM public.t ORDER BY id") == [(1.0,), (3.0,)]
    assert lab.rows("SELECT DISTINCT g FROM public.places") == [(bytes.fromhex(PLACE),)]
    assert lab.rows("SELECT count(*) FROM public.other") == [(1,)]
    assert all(comparison.is_equal for comparison in pipeline.verify())


def test_arrays_of_any_dimension_are_json_if_asked(lab: Lab) -> None:
    """PostgreSQL's own JSON of them, where it has one."""
    lab.execute("CREATE TYPE pair AS (a int[], b text)")
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, i int[], s text[], b bool[], n numeric[], p pair, m money[])")
    lab.execute("CREATE TABLE k (a int[] PRIMARY KEY, v int); CREATE TABLE lists (id int PRIMARY KEY, a int[])")
    rows = [
        r"""'{{1,2},{3,NULL}}', '{{"a,\"b\" \\",""},{NULL,"NULL"}}', '{t,f,NULL}', '{{1.10},{-0.5}}'"""
        ", ROW('{{1},{2}}', 'x'), '{1}'",
        "'{1}', ARRAY[E'\n\t\x01é'], '{{{t}}}', '{1e10,NULL}', ROW('{}', NULL), '{}'",
        "'{}', '{}', NULL, NULL, NULL, NULL",
    ]
    for row, values in enumerate(rows):
        lab.execute(f"INSERT INTO t VALUES ({row}, {values})")
    lab.execute(
        "INSERT INTO k VALUES ('{{1,2}}', 1), ('{1,2}', 2), ('[0:1]={1,2}', 3); INSERT INTO lists VALUES (1, '{1}')"
    )
    lab.publish()
    settings = {"public.lists": {"types": {"arrays": "list"}}}
    pipeline = lab.synced(types={"arrays": "json"}, tables=read_tables("tables", settings))
    for row, values in enumerate(rows):
        lab.execute(f"INSERT INTO t VALUES ({row + 100}, {values})")
    lab.execute("ALTER TABLE t ADD late int[] DEFAULT '{{7}}'; UPDATE t SET id = id + 1000 WHERE id > 50")
    lab.execute("UPDATE k SET v = v * 10; DELETE FROM k WHERE v = 20; INSERT INTO lists VALUES (2, '{{1}}')")
    lab.caught_up(pipeline)
    ours = lab.execute(
        "SELECT id, array_to_json(i)::text, array_to_json(s)::text, array_to_json(b)::text, array_to_json(n)::text,"
        " array_to_json((p).a)::text, m::numeric[], array_to_json(late)::text FROM t ORDER BY id"
    )
    theirs = lab.rows("SELECT id, i, s, b, n, p.a, m, late FROM public.t ORDER BY id")
    assert [tuple(map(as_json, row)) for row in theirs] == [tuple(map(as_json, row)) for row in ours]
    described = {row[0]: row[1] for row in lab.rows("DESCRIBE public.t")}
    assert (described["i"], described["p"], described["m"]) == (
        "JSON",
        "STRUCT(a VARCHAR, b VARCHAR)",
        "DECIMAL(19,2)[]",
    )
    assert lab.rows("SELECT a, v FROM public.k ORDER BY v") == [("[[1,2]]", 10), ('"[0:1]={1,2}"', 30)]
    assert {s.name.name: s.state for s in pipeline.store.tables()}["lists"] is TableState.ERRORED
    assert "set types.arrays: json for column a" in str(pipeline.observer.errors["lists"].hint)
    assert all(c.is_equal for c in pipeline.verify() if c.table.name != "lists")


def as_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value
