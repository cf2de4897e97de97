"""The options of types: what arrives by copy and by the stream, in keys, arrays and defaults, and what stops a table.

The oracle is PostgreSQL's own cast to the type that the option says.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, CopiedAgain, TableError
from etl_core.state.table_state import TableState
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.replication.conftest import Lab, Watched

DECIMALS = [
    *("0", "-0.0000000001", "12345678901234567890.1234567890", "1.10", "1.1000000000000000000000", "-7"),
    *("9999999999999999999999999999.9999999999", "-0.5" + "0" * 60),
]
DOUBLES = ["0.1", "123456789012345678901234567890.123456789", "NaN", "-Infinity", "0." + "0" * 300 + "1", "-7.50"]
CREATE = """
CREATE DOMAIN amount AS numeric;
CREATE DOMAIN prisma AS numeric(65,30);
CREATE TYPE cost AS (n int, price numeric, paid numeric(10,2));
CREATE TABLE t (
    id int PRIMARY KEY, d numeric, f numeric, v numeric, many numeric[], dom amount, wide prisma, wides prisma[],
    line cost, lines cost[], fixed numeric(10,2), doc jsonb, n int, big text);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
CREATE TABLE k (price numeric PRIMARY KEY, n int, big text);
ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
CREATE TABLE other (id int PRIMARY KEY, a numeric)
"""


def settings(tables: Mapping[str, Any], **types: Any) -> dict[str, Any]:
    return {"tables": read_tables("tables", tables), "types": types}


SETTINGS = settings(
    {
        "public.t": {"columns": {"numeric": {"f": "double", "v": "varchar"}, "json": {"doc": "varchar"}}},
        "other": {"types": {"numeric": "varchar"}},
    },
    numeric="decimal(38,10)",
)
STORED = {
    "d": "DECIMAL(38,10)",
    "f": "DOUBLE",
    "v": "VARCHAR",
    "many": "DECIMAL(38,10)[]",
    "dom": "DECIMAL(38,10)",
    "wide": "DECIMAL(38,10)",
    "wides": "DECIMAL(38,10)[]",
    "line": "STRUCT(n INTEGER, price DECIMAL(38,10), paid DECIMAL(10,2))",
    "lines": "STRUCT(n INTEGER, price DECIMAL(38,10), paid DECIMAL(10,2))[]",
    "fixed": "DECIMAL(10,2)",
    "doc": "VARCHAR",
}


def assert_verified(pipeline: Watched, *names: str) -> None:
    compared = {one.table.name: one for one in pipeline.verify()}
    assert [name for name in names or compared if not compared[name].is_equal] == []


def stored(lab: Lab, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in lab.rows(f"DESCRIBE public.{table}")}


def insert(lab: Lab, first: int) -> None:
    for at, text in enumerate(DECIMALS, first):
        double = DOUBLES[(at - first) % len(DOUBLES)]
        wide = "12345678901234567890.5" if at % 2 else text.rstrip("0") or "0"
        lab.execute(
            "INSERT INTO t VALUES (%s, %s, %s, %s, ARRAY[%s, NULL]::numeric[], %s, %s, ARRAY[%s]::prisma[],"
            " ROW(1, %s, 2.5), ARRAY[ROW(NULL, %s, NULL)]::cost[], %s, '{\"a\": 1.0}', 0, repeat('x', 9000))",
            [at, text, double, text, text, text, wide, wide, text, text, "1.5"],
        )
    lab.execute("INSERT INTO t (id) VALUES (%s)", [first + 50])


def source_rows(lab: Lab) -> list[tuple[Any, ...]]:
    """As the destination is to have them; a double as its bits."""
    decimal = "::numeric(38,10)"
    rows = lab.execute(
        f"SELECT id, d{decimal}, encode(float8send(f::float8), 'hex'), v::text, many[1]{decimal}, dom{decimal},"
        f" wide{decimal}, wides[1]{decimal}, (line).price{decimal}, (lines[1]).price{decimal}, (line).paid, fixed,"
        " doc::text, n, length(big) FROM t ORDER BY id"
    )
    return [tuple(row) for row in rows]


def destination_rows(lab: Lab) -> list[tuple[Any, ...]]:
    rows = lab.rows(
        "SELECT id, d, f, v, many[1], dom, wide, wides[1], line.price, lines[1].price, line.paid, fixed, doc, n,"
        " length(big) FROM public.t ORDER BY id"
    )
    return [(*row[:2], None if row[2] is None else struct.pack(">d", row[2]).hex(), *row[3:]) for row in rows]


def test_numerics_are_what_the_settings_say(lab: Lab) -> None:
    """By copy, by the stream, completed by unchanged values, as a default of rows of before; and as a key."""
    lab.execute(CREATE)
    insert(lab, 0)
    lab.execute("INSERT INTO k VALUES (1.0, 1, repeat('k', 9000)), (2.50, 2, NULL), (3, 3, NULL)")
    lab.publish()
    pipeline = lab.synced(**SETTINGS)
    insert(lab, 100)
    lab.execute("UPDATE t SET n = 7; DELETE FROM t WHERE id = 1")
    # One row of one key, though its text is another: in one transaction, and with a value that is not sent.
    lab.execute(
        "UPDATE k SET price = 1.000 WHERE n = 1; UPDATE k SET price = 2.5 WHERE n = 2; DELETE FROM k WHERE n = 3"
    )
    lab.execute("INSERT INTO k VALUES (3.00, 30, 'new')")
    lab.caught_up(pipeline)
    lab.execute("UPDATE k SET price = 1 WHERE n = 1; UPDATE k SET n = 20 WHERE price = 2.5; DELETE FROM k WHERE n = 30")
    lab.execute("ALTER TABLE t ADD late numeric DEFAULT 1.25, ADD half numeric DEFAULT 0.50")
    lab.execute("INSERT INTO t (id, late) VALUES (200, 2)")
    lab.caught_up(pipeline)

    assert {name: kind.replace('"', "") for name, kind in stored(lab, "t").items() if name in STORED} == STORED
    assert stored(lab, "other")["a"] == "VARCHAR"
    assert destination_rows(lab) == source_rows(lab)
    assert lab.rows("SELECT price, n, length(big) FROM public.k ORDER BY n") == [(1, 1, 9000), (2.5, 20, None)]
    assert stored(lab, "k")["price"] == stored(lab, "t")["late"] == "DECIMAL(38,10)"
    assert lab.rows("SELECT DISTINCT late::DOUBLE, half::DOUBLE FROM public.t ORDER BY 1") == [(1.25, 0.5), (2.0, 0.5)]
    assert_verified(pipeline)
    assert pipeline.observer.errors == {}

    # A restart goes on; other settings copy again what they change, and nothing else.
    restarted = lab.pipeline(**SETTINGS)
    assert {status.state for status in restarted.store.tables()} == {TableState.READY}
    changed = lab.pipeline(
        **settings({"public.t": {"columns": {"numeric": {"f": "double"}}}}, numeric="decimal(38,11)")
    )
    states = {status.name.name: status.state for status in changed.store.tables()}
    assert states == {"t": TableState.INIT, "k": TableState.INIT, "other": TableState.INIT}
    same = lab.pipeline(**settings({"public.*": {"types": {"numeric": "varchar"}}}, json="varchar"))
    assert {status.name.name: status.state for status in same.store.tables()} == states
    assert len(same.sync()) == 3
    lab.caught_up(same)
    assert stored(lab, "t")["d"] == "VARCHAR"
    again = lab.pipeline(**settings({"public.t": {"types": {"json": "varchar"}}}, numeric="varchar"))
    assert {status.state for status in again.store.tables()} == {TableState.READY}, "it comes to the same"


def test_digits_that_do_not_fit_stop_their_table_alone(lab: Lab) -> None:
    """Never rounded: by copy, by the stream, in an array, and in the default of a new column."""
    lab.execute("CREATE TABLE copied (id int PRIMARY KEY, a numeric); INSERT INTO copied VALUES (1, 0.12345678901)")
    for name in ("streamed", "listed", "grown", "kept"):
        lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a numeric, many numeric[])")
    lab.publish()
    pipeline = lab.pipeline(**settings({}, numeric="decimal(38,10)"))
    failed = [outcome for outcome in pipeline.sync() if isinstance(outcome, Exception)]
    said = "holds a number with more digits than DECIMAL(38,10) has, which the settings of its types say"
    assert [str(error) for error in failed] == [f"column a of table public.copied {said}"]
    pipeline.stream(until=pipeline.current_lsn())
    # 40 digits, of which 128 bits would keep some others.
    lab.execute("INSERT INTO streamed VALUES (1, 340282366920938463463374607431768211457)")
    lab.execute("INSERT INTO listed VALUES (1, 1, '{0.1,0.00000000001}')")
    lab.execute("ALTER TABLE grown ADD b numeric DEFAULT 0.00000000001; INSERT INTO grown VALUES (1, 1, NULL, 1)")
    lab.execute("INSERT INTO kept VALUES (1, 1.5, '{1}')")
    lab.caught_up(pipeline)
    columns = {"copied": "a", "streamed": "a", "listed": "many", "grown": "b"}
    told = {name: str(error) for name, error in pipeline.observer.errors.items()}
    assert told == {name: f"column {column} of table public.{name} {said}" for name, column in columns.items()}
    for name, column in columns.items():
        error = pipeline.observer.errors[name]
        assert isinstance(error, TableError)
        more = f"set types.numeric: decimal(38,11) for column {column}, or more; or " if name != "streamed" else ""
        assert error.hint == f"{more}set types.numeric: varchar for column {column}, which loses nothing"
    assert lab.rows("SELECT id, a::DOUBLE FROM public.kept") == [(1, 1.5)]
    # What the sentence says to do.
    mended = lab.synced(**settings({}, numeric="varchar"))
    assert lab.rows("SELECT a FROM public.streamed") == [("340282366920938463463374607431768211457",)]
    assert_verified(mended)


RANGES = {
    "amount": ("numeric(5,2)", ["NaN", "-1.50"]),
    "price": ("numeric", ["Infinity", "-Infinity", "NaN", "2"]),
    "many": ("numeric(5,2)[]", ["{NaN,1,NULL}"]),
    "moment": ("timestamp", ["294276-12-31", "infinity", "2024-01-01"]),
    "zoned": ("timestamptz", ["294276-12-31 00:00+00", "-infinity"]),
    "took": ("interval", ["2562048 hours", "-2562048 hours", "1 day"]),
}
CLAMPED: dict[str, list[str | None]] = {
    "amount": [None, "-1.50", None],
    "price": ["9" * 20 + "." + "9" * 18, "-" + "9" * 20 + "." + "9" * 18, None, "2." + "0" * 18],
    "many": ["[NULL, 1.00, NULL]"],
    "moment": ["294247-01-10 04:00:54.775806", "infinity", "2024-01-01 00:00:00"],
    "zoned": ["294247-01-10 04:00:54.775806+00", "-infinity"],
    "took": ["2562047:47:16.854775", "-2562047:47:16.854775", "1 day"],
}


def test_what_is_out_of_range_is_null_or_the_nearest_value(lab: Lab) -> None:
    """By copy and by the stream, with verify; a key refuses it."""
    most = max(len(values) for _, values in RANGES.values())
    columns = ", ".join(f"{name} {declared}" for name, (declared, _) in RANGES.items())
    infinite = lab.execute("SHOW server_version_num")[0][0] >= "170000"

    def fill(table: str, first: int) -> None:
        for at in range(most):
            values = [values[at] if at < len(values) else None for _, values in RANGES.values()]
            marks = ", ".join(["%s"] * (len(RANGES) + 1))
            lab.execute(f"INSERT INTO {table} VALUES ({marks})", [first + at, *values])
        if infinite:
            lab.execute(f"INSERT INTO {table} (id, took) VALUES ({first + most}, 'infinity')")

    for table in ("nulled", "clamped", "refused"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})")
    lab.execute("CREATE TABLE k (id numeric(5,2) PRIMARY KEY); INSERT INTO k VALUES (1)")
    for table in ("nulled", "clamped"):
        fill(table, 0)
    lab.publish()
    pipeline = lab.synced(
        **settings(
            {
                "clamped": {"types": {"out_of_range": "clamp"}},
                "refused": {"types": {"out_of_range": "refuse"}},
            },
            out_of_range=None,
            numeric="decimal(38,18)",
        )
    )
    for table in ("nulled", "clamped", "refused"):
        fill(table, 100)
    lab.execute("INSERT INTO k VALUES ('NaN')")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors.keys() == {"refused", "k"}
    assert str(pipeline.observer.errors["k"]) == (
        "column id of table public.k holds NaN or infinity, which no DECIMAL(5,2) can hold"
    )
    assert_verified(pipeline, "nulled", "clamped")
    for name, values in CLAMPED.items():
        found = lab.rows(f"SELECT {name}::VARCHAR FROM public.clamped WHERE id % 100 < {len(values)} ORDER BY id")
        assert [text for (text,) in found] == values * 2, name
    nulled = lab.rows(
        "SELECT id % 100, amount, price, many[1], moment::VARCHAR, zoned::VARCHAR, took FROM public.nulled"
    )
    first = (0, None, None, None, None, None, None)
    assert [row for row in nulled if row[0] == 0] == [first, first]
    assert lab.rows(
        "SELECT count(moment), count(zoned), count(took), count(price), count(amount) FROM public.nulled"
    ) == [(4, 2, 2, 2, 2)]


def test_what_would_make_two_rows_one_is_refused(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (price numeric PRIMARY KEY, n int, a numeric); INSERT INTO t VALUES (1.5, 1, 1)")
    lab.publish()
    for types, mode, said in (
        (
            {"numeric": "double"},
            WriteMode.MIRROR,
            "types.numeric: is double: column price is in the key of public.t, and two",
        ),
        (
            {"numeric": "decimal(9,2)"},
            WriteMode.SOFT_DELETE,
            "types.numeric: is decimal(9,2): column price is in the key of",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            lab.pipeline(**settings({}, **types), write_mode=mode)
        assert str(caught.value).startswith(said)
    # A column becomes part of the key while its values may have been rounded.
    only = settings({"t": {"columns": {"numeric": {"a": "double"}}}})
    pipeline = lab.synced(**only)
    lab.execute("ALTER TABLE t ALTER a SET NOT NULL, DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (price, a)")
    lab.execute("INSERT INTO t VALUES (2, 2, 2)")
    lab.caught_up(pipeline)
    assert "is double: column a is in the key of public.t" in str(pipeline.observer.errors["t"])


def test_a_type_that_changes_at_the_source_is_copied_again_by_the_settings(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a numeric(10,2), b numeric); INSERT INTO t VALUES (1, 1.5, 2)")
    lab.publish()
    pipeline = lab.synced(**settings({"t": {"columns": {"numeric": {"b": "double"}}}}, numeric="decimal(20,4)"))
    lab.execute("ALTER TABLE t ALTER a TYPE numeric; INSERT INTO t VALUES (2, 2.25, 3)")
    lab.caught_up(pipeline)
    assert isinstance(pipeline.observer.errors["t"], CopiedAgain)
    pipeline.sync()
    lab.execute("ALTER TABLE t RENAME b TO c; INSERT INTO t VALUES (3, 3.125, 4)")
    lab.caught_up(pipeline)
    told = pipeline.observer.errors["t"]
    assert isinstance(told, CopiedAgain)
    assert str(told) == "table public.t: column c was altered, and the settings of types say otherwise of it now"
    pipeline.sync()
    lab.caught_up(pipeline)
    assert {name: stored(lab, "t")[name] for name in ("a", "c")} == {"a": "DECIMAL(20,4)", "c": "DECIMAL(20,4)"}
    assert_verified(pipeline)
