"""Ranges as structs, lists of lists, enums: by copy, by the stream, with unchanged values, as keys and defaults.

The oracle is PostgreSQL: its functions of ranges say what each field is to be, and its arrays what each list is.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etl_core.config_tables import read_tables
from etl_core.errors import CopiedAgain
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.replication.conftest import Lab

MICROSECONDS = "(extract(epoch FROM {}) * 1000000)::int8"
# Declared type: DuckDB's type of a bound; the bound as PostgreSQL and as DuckDB tell it; values.
RANGES: dict[str, tuple[str, str, str, list[str]]] = {
    "int4range": ("INTEGER", "{}", "{}", ["[1,5)", "(,5]", "(,)", "empty", "[1,1]"]),
    "int8range": ("BIGINT", "{}", "{}", ["[-9223372036854775808,9223372036854775807)"]),
    "numrange": ("DECIMAL(20,4)", "{}::numeric(20,4)", "{}", ["[1.10,2)", "(-0.0001,3.00]", "[7,)"]),
    "daterange": ("DATE", "{}::text", "{}::VARCHAR", ["[2024-01-01,infinity]", "(,2024-02-29)", "(-infinity,)"]),
    "tsrange": ("TIMESTAMP", "{}::text", "{}::VARCHAR", ["[2024-01-01 10:00,2024-01-01 12:30)", "[,infinity]"]),
    "tstzrange": (
        "TIMESTAMP WITH TIME ZONE",
        MICROSECONDS,
        "epoch_us({})",
        ["[2024-01-01 10:00+02,2024-01-01 12:30:00.5-03]", "(1969-12-31 23:59+00,)"],
    ),
    "textrange": ("VARCHAR", "{}", "{}", ['["a,""b""\\\\c",)', '["",z)', "[é,ü]", '(,"(\'")']),
    "prices": ("DECIMAL(20,4)", "{}::numeric(20,4)", "{}", ["[1.10,2]"]),
    "pairs": ("STRUCT(n INTEGER, t VARCHAR)", "(({})).t", "{}.t", ['["(1,""x, y"")","(2,)")', "empty"]),
}
FIELDS = ("lower", "upper", "lower_inc", "upper_inc", "isempty")
CREATE = """
CREATE DOMAIN price AS numeric;
CREATE TYPE pair AS (n int, t text);
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE TYPE prices AS RANGE (subtype = price, subtype_opclass = numeric_ops);
CREATE TYPE pairs AS RANGE (subtype = pair);
CREATE TYPE booking AS (room text, during tstzrange, free nummultirange)
"""


def stored(lab: Lab, table: str) -> dict[str, str]:
    return {row[0]: row[1].replace('"', "") for row in lab.rows(f"DESCRIBE public.{table}")}


def struct_of(bound: str) -> str:
    return f"STRUCT(lower {bound}, upper {bound}, lower_inc BOOLEAN, upper_inc BOOLEAN, isempty BOOLEAN)"


def settings(types: Mapping[str, str], tables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"types": types, "tables": read_tables("tables", tables or {})}


def test_ranges_are_structs_if_asked(lab: Lab) -> None:
    lab.execute(CREATE)
    names = {declared: f"c{number}" for number, declared in enumerate(RANGES)}
    columns = ", ".join(f"{name} {declared}" for declared, name in names.items())
    lab.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, n int, {columns}, many nummultirange, list int4range[], booking booking,"
        " big textrange); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"
    )
    lab.execute("CREATE TABLE k (during int4range, label numrange, v int, PRIMARY KEY (during, label))")
    lab.execute("CREATE TABLE texts (id int PRIMARY KEY, r int4range); INSERT INTO texts VALUES (1, '[1,3)')")

    def insert(first: int) -> None:
        most = max(len(values) for *_, values in RANGES.values())
        for at in range(most):
            given = [values[at] if at < len(values) else None for *_, values in RANGES.values()]
            marks = ", ".join(["%s"] * len(given))
            lab.execute(
                f"INSERT INTO t VALUES (%s, 0, {marks}, '{{[1.50,2),[3,3],(9,)}}',"
                " ARRAY['[1,5)'::int4range, NULL, 'empty'],"
                " ROW('a, b', '[2024-01-01 00:00Z,2024-01-02 00:00Z)', '{}'),"
                " textrange(repeat('a', 9000), repeat('b', 9000)))",
                [first + at, *given],
            )
        lab.execute("INSERT INTO t (id, booking) VALUES (%s, ROW(NULL, NULL, NULL))", [first + most])

    insert(0)
    lab.execute("INSERT INTO k VALUES ('[1,5)', '[1.0,2)', 1), ('empty', '(,)', 2), ('(,3)', '[1,2)', 3)")
    lab.publish()
    asked = settings(
        {"range": "struct", "numeric": "decimal(20,4)"},
        {"texts": {"types": {"range": "varchar"}}, "k": {"columns": {"numeric": {"label": "varchar"}}}},
    )
    pipeline = lab.synced(**asked)
    insert(100)
    lab.execute("UPDATE t SET n = 7 WHERE id % 2 = 0; UPDATE t SET id = 1000 WHERE id = 1; DELETE FROM t WHERE id = 2")
    lab.execute("UPDATE k SET v = v * 10; DELETE FROM k WHERE v = 30; UPDATE k SET during = '[7,9]' WHERE v = 20")
    lab.execute("UPDATE texts SET r = 'empty'")
    lab.execute("ALTER TABLE t ADD late int4range DEFAULT '[1,5]', ADD lates int4multirange DEFAULT '{[1,2),[7,9)}'")
    lab.execute("INSERT INTO t (id, late) VALUES (2000, 'empty')")
    lab.caught_up(pipeline)

    assert pipeline.observer.errors == {}
    assert all(comparison.is_equal for comparison in pipeline.verify())
    described = stored(lab, "t")
    for declared, (kind, of_source, of_destination, values) in RANGES.items():
        name = names[declared]
        assert described[name] == struct_of(kind), declared
        theirs = [
            of_source.format(f"{field}({name})") if field in FIELDS[:2] else f"{field}({name})" for field in FIELDS
        ]
        ours = [
            of_destination.format(f"{name}.{field}") if field in FIELDS[:2] else f"{name}.{field}" for field in FIELDS
        ]
        expected = lab.execute(f"SELECT id, {', '.join(theirs)} FROM t ORDER BY id")
        assert lab.rows(f"SELECT id, {', '.join(ours)} FROM public.t ORDER BY id") == expected, declared
        assert sum(row[-1] is not None for row in expected) >= 2 * len(values) - 1, declared
    assert described["many"] == struct_of("DECIMAL(20,4)") + "[]"
    assert described["list"] == struct_of("INTEGER") + "[]"
    assert described["booking"] == (
        f"STRUCT(room VARCHAR, during {struct_of('TIMESTAMP WITH TIME ZONE')}, free {struct_of('DECIMAL(20,4)')}[])"
    )
    expected = lab.execute(
        "SELECT id, ARRAY(SELECT lower(one)::numeric(20,4) FROM unnest(many) one),"
        " ARRAY(SELECT upper_inc(one) FROM unnest(many) one), lower(list[1]), list[2] IS NULL, isempty(list[3]),"
        " (booking).room, lower((booking).during) = '2024-01-01 00:00Z', isempty((booking).free), length(lower(big)),"
        " lower(late), upper(late), isempty(late), ARRAY(SELECT upper(one) FROM unnest(lates) one) FROM t ORDER BY id"
    )
    found = lab.rows(
        "SELECT id, coalesce([one.lower for one in many], []), coalesce([one.upper_inc for one in many], []),"
        " list[1].lower, list[2] IS NULL, list[3].isempty, booking.room,"
        " booking.during.lower = '2024-01-01 00:00Z'::TIMESTAMPTZ, len(booking.free) = 0, length(big.lower),"
        " late.lower, late.upper, late.isempty, coalesce([one.upper for one in lates], []) FROM public.t ORDER BY id"
    )
    assert found == expected
    assert stored(lab, "texts")["r"] == "VARCHAR"
    assert lab.rows("SELECT r FROM public.texts") == [("empty",)]
    keys = lab.rows("SELECT during.lower, during.upper, label.lower, label.upper, v FROM public.k ORDER BY v")
    assert keys == [(1, 5, "1.0", "2", 10), (7, 10, None, None, 20)]

    # A restart goes on; as text it is another copy, of the tables that have ranges.
    assert {status.state for status in lab.pipeline(**asked).store.tables()} == {TableState.READY}
    changed = lab.pipeline(**settings({}, {"k": {"types": {"range": "struct"}}}))
    states = {status.name.name: status.state for status in changed.store.tables()}
    assert states == {"t": TableState.INIT, "k": TableState.READY, "texts": TableState.READY}
    changed.sync()
    lab.caught_up(changed)
    assert stored(lab, "t")["list"] == "VARCHAR[]"
    assert all(comparison.is_equal for comparison in changed.verify())


def test_arrays_are_lists_of_lists_if_asked(lab: Lab) -> None:
    lab.execute("CREATE DOMAIN grid AS int[]; CREATE TYPE board AS (name text, cells text[])")
    lab.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, i int[][], s text[], d numeric(10,2)[], m money[], g grid,"
        " board board, cubes int[], flat int[], big int[]); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"
    )
    lab.execute("CREATE TABLE k (a int[] PRIMARY KEY, v int); INSERT INTO k VALUES ('{{1,2}}', 1), ('{{1},{2}}', 2)")
    lab.execute("CREATE TABLE copied (id int PRIMARY KEY, a int[]); INSERT INTO copied VALUES (1, '{1}')")
    lab.execute("CREATE TABLE streamed (id int PRIMARY KEY, a int[]); INSERT INTO streamed VALUES (1, '{{1}}')")
    rows = [
        r"""'{{1,2},{3,NULL}}', '{{"a,\"b\" \\",""},{NULL,"NULL"}}', '{{1.10},{-0.5}}', '{{1234.5},{NULL}}', '{{7}}'"""
        ", ROW('x', '{{a,b}}'), '{{{1,2},{3,4}},{{5,6},{7,NULL}}}', '{1,NULL}', array_fill(7, ARRAY[50,60])",
        r"""'{}', ARRAY[[E'\n\t{}', 'é']], NULL, '{}', '{{-1,1}}', ROW(NULL, '{}'), '{}', '{}',"""
        " array_fill(1, ARRAY[60,50])",
        "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL",
    ]

    def insert(first: int) -> None:
        for at, values in enumerate(rows, first):
            lab.execute(f"INSERT INTO t VALUES ({at}, 0, {values})")

    insert(0)
    lab.publish()
    said = {"arrays": {"cubes": "list(3)", "flat": "list"}}
    asked = settings({"arrays": "list(2)"}, {"public.t": {"columns": said}})
    pipeline = lab.pipeline(**asked)
    failed = [str(outcome) for outcome in pipeline.sync() if isinstance(outcome, Exception)]
    wrong = "holds an array of another number of dimensions than 2, as types.arrays: list(2) says"
    assert failed == [f"column a of table public.copied {wrong}"]
    pipeline.stream(until=pipeline.current_lsn())
    insert(100)
    lab.execute("UPDATE t SET n = 7 WHERE id % 2 = 0; UPDATE t SET id = 1000 WHERE id = 1; DELETE FROM t WHERE id = 2")
    lab.execute("ALTER TABLE t ADD late int[] DEFAULT '{{1,NULL}}'; INSERT INTO t (id) VALUES (2000)")
    lab.execute("UPDATE k SET v = v * 10; DELETE FROM k WHERE v = 20")
    lab.execute("INSERT INTO streamed VALUES (2, '{1,2}')")
    lab.caught_up(pipeline)
    assert {name: str(error) for name, error in pipeline.observer.errors.items()} == {
        name: f"column a of table public.{name} {wrong}" for name in ("copied", "streamed")
    }
    assert all(one.is_equal for one in pipeline.verify() if one.table.name in ("t", "k"))
    described = stored(lab, "t")
    assert {name: described[name] for name in ("i", "s", "d", "m", "g", "cubes", "flat", "board", "late")} == {
        "i": "INTEGER[][]",
        "s": "VARCHAR[][]",
        "d": "DECIMAL(10,2)[][]",
        "m": "DECIMAL(19,2)[][]",
        "g": "INTEGER[][]",
        "cubes": "INTEGER[][][]",
        "flat": "INTEGER[]",
        "board": "STRUCT(name VARCHAR, cells VARCHAR[][])",
        "late": "INTEGER[][]",
    }
    columns = "id, n, i, s, d, {}, g, {}, {}, cubes, flat, big, late"
    theirs = lab.execute(f"SELECT {columns.format('m::numeric[]', '(board).name', '(board).cells')} FROM t ORDER BY id")
    ours = lab.rows(f"SELECT {columns.format('m', 'board.name', 'board.cells')} FROM public.t ORDER BY id")
    assert ours == theirs
    assert lab.rows("SELECT a, v FROM public.k") == [([[1, 2]], 10)]

    # What the sentence says to do copies again, and nothing else.
    changed = lab.pipeline(**settings({"arrays": "json"}, {"t": {"types": {"arrays": "list(2)"}, "columns": said}}))
    states = {status.name.name: status.state for status in changed.store.tables()}
    init = TableState.INIT
    assert states == {"t": TableState.READY, "k": init, "copied": TableState.ERRORED, "streamed": init}
    changed.sync()
    lab.caught_up(changed)
    assert lab.rows("SELECT a::VARCHAR FROM public.streamed ORDER BY id") == [("[[1]]",), ("[1,2]",)]
    assert lab.rows("SELECT a::VARCHAR FROM public.copied") == [("[1]",)]
    assert all(comparison.is_equal for comparison in changed.verify())


def test_enums_are_enums_if_asked(lab: Lab) -> None:
    """A label that was added is added in place; one that was renamed is a new copy by itself."""
    lab.execute("""CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"', 'happy'); CREATE DOMAIN state AS mood""")
    lab.execute("CREATE TYPE pair AS (m mood); CREATE TYPE empty AS ENUM ()")
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, m mood, ms mood[], s state, p pair, e empty, big text)")
    lab.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL; CREATE TABLE k (m mood PRIMARY KEY, v int)")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY, m mood); INSERT INTO other VALUES (1, 'sad')")
    row = """'it''s "ok"', ARRAY['sad', NULL]::mood[], 'happy', ROW('sad'), NULL, repeat('x', 9000)"""
    lab.execute(f"INSERT INTO t VALUES (1, {row}), (2, {row}); INSERT INTO k VALUES ('sad', 1), ('happy', 2)")
    lab.publish()
    asked = settings({"enum": "enum"}, {"other": {"columns": {"enum": {"m": "varchar"}}}})
    pipeline = lab.synced(**asked)
    lab.execute(f"INSERT INTO t VALUES (3, {row}), (4, NULL, '{{}}', NULL, NULL, NULL, NULL)")
    lab.execute("UPDATE t SET m = 'sad' WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE k SET v = 10 WHERE m = 'sad'")
    lab.execute("DELETE FROM k WHERE m = 'happy'; ALTER TABLE t ADD late mood DEFAULT 'happy'")
    lab.execute("INSERT INTO t (id, late) VALUES (5, 'sad')")
    lab.caught_up(pipeline)

    def assert_equal(labels: str) -> None:
        assert all(comparison.is_equal for comparison in pipeline.verify())
        columns = "id, m{0}, ms{0}[], s{0}, (p).m{0}, length(big), late{0}"
        theirs = lab.execute(f"SELECT {columns.format('::text')} FROM t ORDER BY t.m, id")
        ours = columns.format("::VARCHAR").replace("(p).m", "p.m")
        assert lab.rows(f"SELECT {ours} FROM public.t ORDER BY t.m NULLS LAST, id") == theirs
        described = stored(lab, "t")
        assert {name: described[name] for name in ("m", "ms", "s", "late", "p", "e")} == {
            **dict.fromkeys(("m", "s", "late"), f"ENUM({labels})"),
            "ms": f"ENUM({labels})[]",
            "p": "STRUCT(m VARCHAR)",
            "e": "VARCHAR",
        }
        assert stored(lab, "k")["m"] == f"ENUM({labels})"
        assert stored(lab, "other")["m"] == "VARCHAR"

    assert pipeline.observer.errors == {}
    assert_equal("'sad', 'it''s ok', 'happy'")
    assert lab.rows("SELECT m::VARCHAR, v FROM public.k") == [("sad", 10)]

    lab.execute("ALTER TYPE mood ADD VALUE 'fine' BEFORE 'happy'")
    lab.execute("INSERT INTO t (id, m, ms) VALUES (6, 'fine', '{fine}'); UPDATE t SET m = 'fine' WHERE id = 3")
    lab.execute("INSERT INTO k VALUES ('fine', 3)")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}, "in place"
    assert_equal("'sad', 'it''s ok', 'fine', 'happy'")

    lab.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; INSERT INTO t (id, m) VALUES (7, 'blue')")
    lab.execute("INSERT INTO k VALUES ('happy', 4); INSERT INTO other VALUES (2, 'blue')")
    lab.caught_up(pipeline)
    states = {status.name.name: status.state for status in pipeline.store.tables()}
    assert (states["t"], states["k"]) == (TableState.INIT, TableState.INIT)
    assert all(isinstance(error, CopiedAgain) for error in pipeline.observer.errors.values())
    pipeline.sync()
    lab.caught_up(pipeline)
    assert_equal("'blue', 'it''s ok', 'fine', 'happy'")
