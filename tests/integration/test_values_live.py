"""Nasty values of every type: what a real server prints, loaded, against what the server and psycopg say it is."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableId, TableName
from etl_core.schema.pg_types import MONEY, builtin
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.testing.postgres import PostgresServer, create_database
from etl_core.values import load, read_csv
from etl_core.values.arrow import arrow_schema

PINNED = {
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "client_encoding": "UTF8",
}
NAME = TableName("public", "nasty")
MICROSECONDS = """
CASE WHEN isfinite(v) THEN extract(epoch FROM v) * 1000000
     WHEN v > 'epoch' THEN 9223372036854775807 WHEN v < 'epoch' THEN -9223372036854775807 END::int8
"""
"""Microseconds since 1970 by the server's own arithmetic."""


@dataclass(frozen=True, slots=True)
class Nasty:
    """A type as declared, its values as SQL literals, and the expression that says what `load` must give for `v`."""

    declared: str
    literals: Sequence[str | None]
    expected: str = "v"
    as_integers: bool = False


DATES = [
    *("infinity", "-infinity", "4713-01-01 BC", "0044-03-15 BC", "0001-12-31 BC", "0001-01-01", "1969-12-31"),
    *("2000-02-29", "9999-12-31", "10000-01-01", "99999-12-31", "5874897-12-31"),
]
TIMESTAMPS = [
    *("infinity", "-infinity", "4713-01-01 00:00:00 BC", "0044-03-15 12:00:00.123456 BC", "0001-01-01 00:00:00"),
    *("1969-12-31 23:59:59.999999", "2000-01-01 00:00:00.1", "2024-02-29 23:59:59.12345"),
    *("9999-12-31 23:59:59.9", "10000-01-01 00:00:00.000001", "294246-12-31 23:59:59.999999"),
    "294247-01-10 04:00:54.775806",
]
TIMESTAMPTZS = [
    *("infinity", "-infinity", "4713-01-02 00:00:00+00 BC", "0044-03-15 12:00:00.12-03:30 BC"),
    *("0001-01-01 00:00+00", "1969-12-31 23:59:59.999999+00", "2024-06-30 12:00:00.5+02"),
    *("1883-11-18 12:03:58 America/New_York", "10000-01-01 00:00:00+00", "294246-12-31 23:59:59.999999+00"),
]
# As the extension makes it, which not every build of PostgreSQL brings.
CITEXT = """
CREATE TYPE citext;
CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, INTERNALLENGTH = VARIABLE, STORAGE = extended);
CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT;
"""
PRINTED = "CASE WHEN v IS NOT NULL THEN format('%s', v) END"
"""For types whose cast to text is another text than their output function's."""
CASES = [
    Nasty("bool", ["t", "f"]),
    Nasty("int2", ["-32768", "32767", "0"]),
    Nasty("int4", ["-2147483648", "2147483647"]),
    Nasty("int8", ["-9223372036854775808", "9223372036854775807"]),
    Nasty("oid", ["0", "4294967295"], "v::int8"),
    Nasty("xid", ["3", "4294967295"], "v::text::int8"),
    Nasty(
        "float4",
        ["NaN", "Infinity", "-Infinity", "-0", "1e-45", "1.1754944e-38", "3.4028235e38", "0.1", "16777217", "1e10"],
    ),
    Nasty(
        "float8",
        [
            *("NaN", "Infinity", "-Infinity", "-0", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308"),
            *("0.1", "9007199254740993", "123456789012345680", "2.2250738585072011e-308", "1e23", "8.5e-5"),
        ],
    ),
    Nasty("numeric(10,2)", ["-0.01", "99999999.99", "0", "-99999999.99"]),
    Nasty("numeric(38,38)", ["-0.99999999999999999999999999999999999999", "0.00000000000000000000000000000000000001"]),
    Nasty("numeric(38,0)", ["99999999999999999999999999999999999999", "-1"]),
    Nasty("numeric", ["NaN", "1.10", "-0.000", "1e50", "Infinity"], "v::text"),
    Nasty("numeric(50,3)", ["99999999999999999999999999999999999999999.999"], "v::text"),
    Nasty("text", ["", " ", "NULL", "null", "\\N", "\\.", 'a,"b"', "a\nb\r\nc\rd", "\ufeffx", "😀 é", "{}"]),
    Nasty("varchar(5)", ["", "é😀"]),
    Nasty("char(6)", ["ab", "", "  x"], "CASE WHEN v IS NOT NULL THEN rpad(v::text, 6) END"),
    Nasty('"char"', ["a", ""], "v::text"),  # another byte than ASCII prints as no UTF-8 before PostgreSQL 16
    Nasty("name", ["pg_class"], "v::text"),
    Nasty("bytea", ["", "\\x00", "\\x5c7822002c0aff"]),
    Nasty("uuid", ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff"], "v::text"),
    Nasty("json", ['{"a": 1.10,  "a": null}', '"NULL"', "null"], "v::text"),
    Nasty("jsonb", ['{"a": 1.10, "é": "\\n\\"{,}"}', '""', "[]"], "v::text"),
    Nasty(
        "date",
        DATES,
        "CASE v WHEN 'infinity' THEN 2147483647 WHEN '-infinity' THEN -2147483647 ELSE v - '1970-01-01'::date END",
        as_integers=True,
    ),
    Nasty(
        "time",
        ["00:00:00", "24:00:00", "23:59:59.999999", "12:34:56.1", "12:34:56.000001", "00:00:00.5"],
        "(extract(epoch FROM v) * 1000000)::int8",
        as_integers=True,
    ),
    Nasty(
        "timestamp",
        TIMESTAMPS,
        MICROSECONDS,
        as_integers=True,
    ),
    Nasty(
        "timestamptz",
        TIMESTAMPTZS,
        MICROSECONDS,
        as_integers=True,
    ),
    Nasty("int4[]", ["{}", "{1,NULL,-3}", "{NULL}", "{2147483647}"]),
    Nasty("bool[]", ["{t,f,NULL}"]),
    Nasty("float8[]", ["{Infinity,-0,NULL,5e-324}"]),
    Nasty("numeric(10,2)[]", ["{1.5,NULL,-99999999.99}"]),
    Nasty(
        "text[]",
        ["{}", '{NULL,"NULL","null",""}', '{"a,b","{c}","d\\"e","f\\\\g"," ","\\\\\\"\\\\"}', '{é,"a\nb"}', "{plain}"],
    ),
    Nasty("char(3)[]", ["{a,NULL}"], "CASE WHEN v IS NOT NULL THEN ARRAY[rpad('a', 3), NULL] END"),
    Nasty("bytea[]", ['{"\\\\x","\\\\x5c22",NULL}']),
    Nasty("jsonb[]", ['{"{\\"a\\": [1, \\"}\\"]}",NULL}'], "v::text[]"),
    Nasty("uuid[]", ["{00000000-0000-0000-0000-00000000000f}"], "v::text[]"),
    Nasty("mood", ["happy", 'it\'s, "so" so', "NULL"], "v::text"),
    Nasty("mood[]", ['{happy,"it\'s, \\"so\\" so","NULL",NULL}'], "v::text[]"),
    Nasty("label", ["a", ""], "v::text"),
    Nasty("label[]", ['{a,""}', "{}"], "v::text[]"),
    Nasty("counts", ["{1,NULL}"], "v::int4[]"),
    Nasty("money", ["0", "-1234.5", "0.01", "999", "92233720368547758.07", "-92233720368547758.08"], "v::numeric"),
    Nasty("timetz", ["12:00:00.5+02", "24:00:00-12"], "v::text"),
    Nasty("int4range", ["[1,5)", "(,5]", "(,)", "empty"], "v::text"),
    Nasty("tstzrange", ['["2024-06-30 12:00:00.5+02",infinity]', "(-infinity,)"], "v::text"),
    Nasty("textrange", ['["a,""b""\\\\c",)', "empty"], "v::text"),
    Nasty("datemultirange", ["{}", "{[2024-01-01,2024-02-01),[2024-03-01,)}"], "v::text"),
    Nasty("int4range[]", ['{"[1,5)",NULL,empty}', "{}"], "v::text[]"),
    Nasty("inet", ["10.0.0.1", "10.0.0.1/8", "::1", "::ffff:1.2.3.4"], PRINTED),
    Nasty("cidr", ["10.0.0.0/8", "2001:db8::/32"], "v::text"),
    Nasty("macaddr", ["08:00:2b:01:02:03"], "v::text"),
    Nasty("macaddr8", ["08002b0102030405"], "v::text"),
    Nasty("bit(3)", ["101"], "v::text"),
    Nasty("varbit[]", ['{"",1010,NULL}'], "v::text[]"),
    Nasty("pg_lsn", ["16/B374D848"], "v::text"),
    Nasty("tsvector", ["'a':1A 'it''s':2", ""], "v::text"),
    Nasty("tsquery", ["'a' & !'b'"], "v::text"),
    Nasty("jsonpath", ['$."ä"'], "v::text"),
    Nasty("citext", ["Straße", ""], "v::text"),
    Nasty("citext[]", ["{A,a,NULL}"], "v::text[]"),
    Nasty("money[]", ['{1,NULL,"1,234,567.89"}', "{}"], "v::numeric[]"),
    Nasty("pair", ['(1,"a,b")'], "convert_to(v::text, 'UTF8')"),
]


@pytest.fixture(scope="module")
def connection(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A session with the settings that `load` relies on, and the types of users that the cases name."""
    database = create_database(postgres)
    # No prepared statements: the table behind one name changes its type.
    with psycopg.connect(database.dsn, autocommit=True, prepare_threshold=None) as connection:
        for name, value in PINNED.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.execute("""CREATE TYPE mood AS ENUM ('happy', 'it''s, "so" so', 'NULL')""")
        connection.execute("CREATE DOMAIN label AS varchar(10)")
        connection.execute("CREATE DOMAIN counts AS int4[]")
        connection.execute("CREATE TYPE pair AS (a int, b text)")
        connection.execute("CREATE TYPE textrange AS RANGE (subtype = text)")
        connection.execute(CITEXT)
        yield connection
    database.drop()


def fill(connection: psycopg.Connection[Any], declared: str, literals: Sequence[str | None]) -> TableSchema:
    """Makes table `nasty (n int, v <declared>)` with a row per literal and one NULL; its schema."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS nasty"))
    connection.execute(sql.SQL("CREATE TABLE nasty (n int4, v {})").format(sql.SQL(declared)))
    for number, literal in enumerate([*literals, None]):
        connection.execute(
            sql.SQL("INSERT INTO nasty VALUES ({}, {})").format(sql.Literal(number), sql.Literal(literal))
        )
    rows = connection.execute(
        "SELECT attname, atttypid, atttypmod FROM pg_attribute WHERE attrelid = 'nasty'::regclass AND attnum > 0"
    ).fetchall()
    columns = tuple(Column(name, pg_type(connection, oid), modifier) for name, oid, modifier in rows)
    return TableSchema(TableId(1), NAME, columns, ())


def pg_type(connection: psycopg.Connection[Any], oid: int) -> PgType:
    known = builtin(oid)
    if known is not None:
        if known.element is not None:
            return replace(known, element=pg_type(connection, known.element.oid))
        return replace(known, form=2) if known.oid == MONEY else known
    row = connection.execute(
        "SELECT typname, typtype, typbasetype, typelem FROM pg_type WHERE oid = %s", (oid,)
    ).fetchone()
    assert row is not None
    name, kind, base, element = row
    if base:
        return PgType(oid, name, "public", TypeKind.DOMAIN, pg_type(connection, base))
    if element:
        return PgType(oid, name, "public", TypeKind.ARRAY, pg_type(connection, element))
    return PgType(oid, name, "public", TypeKind(kind))


def copied(connection: psycopg.Connection[Any], schema: TableSchema) -> pa.RecordBatch:
    with connection.cursor().copy("COPY nasty (n, v) TO STDOUT (FORMAT csv)") as copy:
        block = b"".join(bytes(row) for row in copy)
    return read_csv(block, schema)


def streamed(connection: psycopg.Connection[Any], schema: TableSchema) -> pa.Array[Any]:
    """The values loaded from the text that output functions print, as pgoutput sends it."""
    cursor = connection.cursor(binary=False)
    cursor.execute("SELECT v FROM nasty ORDER BY n")
    result = cursor.pgresult
    assert result is not None
    text = pa.array([result.get_value(row, 0) for row in range(result.ntuples)], pa.binary())
    return load(text, schema.column("v"), NAME)


def to_bits(value: Any) -> Any:
    """Equal only if equal to the bit: NaN equals NaN, 0 differs from -0, True from 1."""
    if isinstance(value, list):
        return [to_bits(element) for element in value]
    return struct.pack("d", value) if isinstance(value, float) else (type(value), value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.declared)
def test_what_the_server_prints_is_what_it_means(connection: psycopg.Connection[Any], case: Nasty) -> None:
    schema = fill(connection, case.declared, case.literals)
    values = streamed(connection, schema)
    by_copy = copied(connection, schema)
    assert by_copy.schema == arrow_schema(schema)
    assert by_copy.column("n").to_pylist() == list(range(len(case.literals) + 1))
    if case.as_integers:
        width = pa.int32() if pa.types.is_date(values.type) else pa.int64()
        loaded, loaded_by_copy = values.view(width), by_copy.column("v").view(width)
    else:
        loaded, loaded_by_copy = values, by_copy.column("v")
    meaning = sql.SQL("SELECT {} FROM nasty ORDER BY n").format(sql.SQL(case.expected))
    expected = [value for (value,) in connection.execute(meaning, binary=True)]
    assert to_bits(loaded.to_pylist()) == to_bits(expected)
    assert to_bits(loaded_by_copy.to_pylist()) == to_bits(expected)


def test_built_in_types_are_the_server_s(connection: psycopg.Connection[Any]) -> None:
    rows = connection.execute(
        "SELECT t.oid, typname, typtype, typelem, typcategory,"
        " CASE typtype WHEN 'r' THEN rngsubtype ELSE rngtypid END"
        " FROM pg_type t LEFT JOIN pg_range ON t.oid IN (rngtypid, rngmultitypid)"
        " WHERE t.oid < 10000 AND typtype <> 'c'"
    ).fetchall()
    seen = 0
    for oid, name, kind, element, category, range_of in rows:
        known = builtin(oid)
        if known is None:
            continue
        seen += 1
        assert (known.oid, known.name, known.namespace) == (oid, name, "pg_catalog")
        if known.kind is TypeKind.ARRAY:
            assert category == "A"
            assert known.element == builtin(element)
        else:
            assert known.kind == kind
            assert (known.element and known.element.oid) == range_of
    assert seen > 100


INTERVALS = [
    *("0", "1 year 2 mons 3 days 04:05:06.789", "-1 year -2 mons +3 days -04:05:06.000001", "-0.5 seconds"),
    *("1 mon -1 day", "1 min", "1 mon 1 min", "2562047 hours 47 min 16.854775 s", "-2562047:47:16.854775"),
    *("178956970 years 7 mons 2147483647 days", "-178956970 years -8 mons -2147483648 days", "23:59:59.999999"),
]


def test_intervals(connection: psycopg.Connection[Any]) -> None:
    schema = fill(connection, "interval", INTERVALS)
    expected = [
        None if months is None else pa.MonthDayNano([months, days, microseconds * 1000])  # type: ignore[call-arg, arg-type] # its stub has fields
        for months, days, microseconds in connection.execute(
            """
            SELECT (extract(year FROM v) * 12 + extract(month FROM v))::int8, extract(day FROM v)::int8,
                   (extract(hour FROM v) * 3600000000 + extract(minute FROM v) * 60000000
                    + extract(microseconds FROM v))::int8
            FROM nasty ORDER BY n
            """
        )
    ]
    assert streamed(connection, schema).to_pylist() == expected
    assert copied(connection, schema).column("v").to_pylist() == expected


@pytest.mark.parametrize(
    ("declared", "literal", "message"),
    [
        ("numeric(5,2)", "NaN", "NaN"),
        ("timestamp", "294276-12-31 23:59:59.999999", "after the year 294246"),
        ("timestamp", "294247-01-10 04:00:54.775807", "after the year 294246"),
        ("int4[]", "{{1,2},{3,4}}", "more than one dimension"),
        ("int4[]", "[0:2]={1,2,3}", "explicit bounds"),
        ("text[]", '[0:0]={"a"}', "explicit bounds"),
        ("interval", "2562048 hours", "nanoseconds"),
    ],
)
def test_what_arrow_cannot_hold_is_refused(
    connection: psycopg.Connection[Any], declared: str, literal: str, message: str
) -> None:
    schema = fill(connection, declared, [literal])
    with pytest.raises(ValueOutOfRange, match=rf"column v of table public\.nasty holds .*{message}"):
        streamed(connection, schema)
    with pytest.raises(ValueOutOfRange, match=rf"column v of table public\.nasty holds .*{message}"):
        copied(connection, schema)


def test_infinite_intervals_are_refused(connection: psycopg.Connection[Any]) -> None:
    if connection.info.server_version < 170000:
        pytest.skip("PostgreSQL has infinite intervals since 17")
    schema = fill(connection, "interval", ["-infinity"])
    with pytest.raises(ValueOutOfRange, match="infinity"):
        streamed(connection, schema)


@pytest.mark.parametrize("seed", range(3))
def test_random_floats_to_the_bit(connection: psycopg.Connection[Any], seed: int) -> None:
    """The bits of random doubles and singles, made by the server, printed by it, read back."""
    schema = fill(connection, "float8", [])
    connection.execute("SELECT setseed(%s)", (seed / 10,))
    connection.execute(
        "INSERT INTO nasty SELECT n, (random() - 0.5) * 10.0 ^ (random() * 600 - 300) FROM generate_series(1, 5000) n"
    )
    expected = [value for (value,) in connection.execute("SELECT v FROM nasty ORDER BY n", binary=True)]
    assert to_bits(streamed(connection, schema).to_pylist()) == to_bits(expected)
    schema = fill(connection, "float4", [])
    connection.execute(
        "INSERT INTO nasty SELECT n, (random() - 0.5) * 10.0 ^ (random() * 70 - 35) FROM generate_series(1, 5000) n"
    )
    expected = [value for (value,) in connection.execute("SELECT v FROM nasty ORDER BY n", binary=True)]
    assert to_bits(streamed(connection, schema).to_pylist()) == to_bits(expected)


DUCKDB_TYPES = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "REAL",
    "float8": "DOUBLE",
    "numeric(10,2)": "DECIMAL(10, 2)",
    "numeric(38,38)": "DECIMAL(38, 38)",
    "text": "VARCHAR",
    "bytea": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "int4[]": "INTEGER[]",
    "text[]": "VARCHAR[]",
    "bytea[]": "BLOB[]",
    "float8[]": "DOUBLE[]",
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.declared in DUCKDB_TYPES], ids=lambda case: case.declared
)
def test_duckdb_keeps_each_value(connection: psycopg.Connection[Any], case: Nasty) -> None:
    batch = copied(connection, fill(connection, case.declared, case.literals))
    rows, schema = through_duckdb(batch, DUCKDB_TYPES[case.declared])
    assert schema.field("v").type.equals(batch.schema.field("v").type)
    if case.as_integers:
        width = pa.int32() if pa.types.is_date(batch.column("v").type) else pa.int64()
        assert rows.view(width).to_pylist() == batch.column("v").view(width).to_pylist()
    else:
        assert to_bits(rows.to_pylist()) == to_bits(batch.column("v").to_pylist())


def test_duckdb_keeps_intervals(connection: psycopg.Connection[Any]) -> None:
    batch = copied(connection, fill(connection, "interval", INTERVALS))
    rows, _ = through_duckdb(batch, "INTERVAL")
    assert rows.to_pylist() == batch.column("v").to_pylist()


@pytest.mark.parametrize("declared", ["date", "timestamp", "timestamptz"])
def test_duckdb_calls_infinity_infinity(connection: psycopg.Connection[Any], declared: str) -> None:
    batch = copied(connection, fill(connection, declared, ["infinity", "-infinity"]))
    with duckdb.connect() as destination:
        destination.execute(f"CREATE TABLE t (n INTEGER, v {DUCKDB_TYPES[declared]})")
        destination.register("batch", pa.Table.from_batches([batch]))
        destination.execute("INSERT INTO t FROM batch")
        rows = destination.execute("SELECT v::VARCHAR, isinf(v) FROM t WHERE v IS NOT NULL ORDER BY n").fetchall()
    assert rows == [("infinity", True), ("-infinity", True)]


def through_duckdb(batch: pa.RecordBatch, declared: str) -> tuple[pa.Array[Any], pa.Schema]:
    """Column `v` inserted from Arrow into a table of type `declared`, and selected back as Arrow."""
    with duckdb.connect() as destination:
        destination.execute("SET TimeZone = 'UTC'")
        destination.execute(f"CREATE TABLE t (n INTEGER, v {declared})")
        destination.register("batch", pa.Table.from_batches([batch]))
        destination.execute("INSERT INTO t FROM batch")
        result = destination.sql("SELECT v FROM t ORDER BY n").to_arrow_table()
    return pa.concat_arrays(result.column("v").chunks), result.schema
