"""From one PostgreSQL database into another: the same types, the same rows, whatever happens on the way."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from etl_core.config import DestinationConfig, StateConfig
from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, EtlError, ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.replication.type_findings import examine_types
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import Database, create_database
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(600)
PATIENCE = 300.0
TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
CREATE DOMAIN email AS varchar(50) CHECK (VALUE LIKE '%@%');
CREATE TYPE pair AS (a int, "B c" text, at timestamptz);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE DOMAIN grid AS int[];
CREATE TYPE wide AS (n numeric(5,2), a int[], i interval, t timestamp)
"""
VALUES = {
    "mood": "'it''s \"ok\"'",
    "mood[]": "array['sad', null]::mood[]",
    "email": "'a@b'",
    "pair": "row(3, 'y, \"z\"\\', '2024-01-01 00:00Z')",
    "pair[]": "array[row(1, null, 'infinity')::pair, null]",
    "span": "'[1.5,2)'",
    "int4range": "'[1,5)'",
    "datemultirange": "'{[2024-01-01,2024-02-01)}'",
    "varchar(7)": "'seven'",
    "char(4)": "'ab'",
    "bpchar": "'ab '",
    '"char"': "'x'",
    "name": "'n'",
    "bool": "true",
    "int2": "-32768",
    "int8": "9223372036854775807",
    "xid8": "'18446744073709551615'",
    "oid": "4294967295",
    "float4": "'1.1'",
    "float8": "'-0'",
    "numeric": "'1.10'",
    "numeric(12,2)": "1234567.89",
    "numeric(5,-2)": "12300",
    "uuid": "'00000000-0000-0000-0000-00000000000a'",
    "json": '\'{"a":  1, "a": "ü\\\\n"}\'',
    "jsonb": "'{\"a\": [1, null]}'",
    "jsonb[]": "array['{\"a\": 1}'::jsonb, null]",
    "bytea": "'\\x00ff5c'",
    "bytea[]": "array['\\x5c22'::bytea]",
    "date": "'4713-01-01 BC'",
    "date[]": "array['infinity'::date, '2024-02-29', '0001-01-01 BC']",
    "time(3)": "'24:00:00'",
    "timetz": "'12:00:00.5+02'",
    "timestamp": "'294246-01-01 04:05:06.000007'",
    "timestamp(0)": "'-infinity'",
    "timestamptz": "'0044-03-15 12:00:00 BC'",
    "timestamptz[]": "array['infinity'::timestamptz, '2024-01-01 00:00:00.123456Z']",
    "interval": "'1 year -2 months 3 days -04:05:06.000007'",
    "inet": "'10.0.0.1/8'",
    "macaddr": "'08:00:2b:01:02:03'",
    "bit(3)": "'101'",
    "bit varying(9)": "'1'",
    "text[]": "array['', null, 'NULL', 'a,b', '{}', '\"', '\\', E'\\t\\n']",
    "point": "'(1.5,-0)'",
    "box": "'(2,2),(1,1)'",
    "path": "'[(1,2),(3,4)]'",
    "path[]": "array['((1,2))'::path]",
    "polygon": "'((1,2),(3,4))'",
    "circle": "'<(1,2),3>'",
    "line": "'{1,2,3}'",
    "lseg": "'[(1,2),(3,4)]'",
    "tsvector": "'a:1 b'",
    "tsquery": "'a & b'",
    "pg_lsn": "'16/B374D848'",
    "jsonpath": "'$.\"a\"'",
    "int2vector": "'1 -2'",
    "pg_snapshot": "'10:20:10,14'",
    "txid_snapshot": "'10:20:10,14'",
    "oidvector": "'1 2'",
    "xid": "'4294967295'",
    "cid": "'7'",
    "tid": "'(1,2)'",
    "refcursor": "'a cursor'",
    "cidr": "'10.0.0.0/8'",
    "macaddr8": "'08:00:2b:01:02:03:04:05'",
    "tstzrange": "'[2024-01-01 00:00:00.5+00,infinity)'",
    "numrange[]": "array['[1.10,2]'::numrange, 'empty', null]",
    "int8multirange": "'{[1,5),[7,)}'",
    "email[]": "array['a@b'::email, null]",
    "span[]": "array['(,1.5]'::span]",
    "float8[]": "array['NaN', '-Infinity', '1e-300', null]::float8[]",
    "numeric[]": "array['NaN', '1.10', null]::numeric[]",
    "numeric(50,2)": "'12345678901234567890123456789012345678901234.50'",
    "interval[]": "array['-0.000001 s'::interval, '100 years', '1 mon -1 day', null]",
    "timetz[]": "array['24:00:00+15:59'::timetz]",
    "uuid[]": "array['00000000-0000-0000-0000-00000000000a'::uuid, null]",
    "name[]": "array['n'::name]",
    "bit varying": "''",
    # What no list, decimal or interval of Arrow's holds.
    "int[]": "'[0:1][-1:1]={{1,NULL,3},{4,5,6}}'",
    "int2[]": "'[5:6]={1,2}'",
    "varchar(5)[]": "array[['', null], ['NULL', E'\\\\\"{\\n']]",
    "box[]": "'{{(1,1),(0,0)};{(2,2),(1,1)}}'",
    "jsonb[][]": "array[array['{\"a\": 1}'::jsonb]]",
    "mood[][]": "array[['sad', null]]::mood[]",
    "grid": "'{{1,2},{3,4}}'",
    "wide": "row('NaN', '{{1}}', '9000000 hours', '294276-12-31')",
    "wide[]": "array[[row('NaN', null, '-9000000 hours', '-infinity')::wide, null]]",
    "numeric(5,2)": "'NaN'",
    "numeric(5,2)[]": "array['NaN', 1.5, null]::numeric(5,2)[]",
    "numeric(3)": "999",
    "interval(6)": "'178000000 years'",
    "interval(0)": "'-2000000000 hours'",
    "interval day to second(3)": "'-0.001 s'",
    "timestamp(6)": "'294276-12-31 23:59:59.999999'",
    "timestamp(3)": "'4714-11-24 00:00 BC'",
    "timestamptz(6)": "'294276-12-31 23:59:59.999999Z'",
    "timestamptz(0)": "'-infinity'",
    "timestamp[]": "'{294276-12-31 23:59:59.999999,infinity}'",
    "tsrange": "'[4714-11-24 00:00 BC,294276-12-31 23:59:59.999999]'",
    "daterange": "'[4714-11-24 BC,5874897-12-31)'",
    "tsmultirange": "'{(,-infinity],[294276-12-31 00:00,)}'",
}
SINCE = {"numeric(5,-2)": 150000, "interval(1)": 170000, "interval(2)[]": 170000}
VALUES |= {"interval(1)": "'-infinity'", "interval(2)[]": "'{{infinity,1 s}}'"}

SETTINGS = {
    "public.kept": {"write_mode": "soft_delete"},
    "public.shaped": {
        "types": {"arrays": "json", "range": "struct", "out_of_range": "null"},
        "columns": {"numeric": {"u": "decimal(9,4)"}},
    },
}


@pytest.fixture
def warehouse(lab: Lab) -> Iterator[Database]:
    """Another database of the server, which the lab's pipeline writes into."""
    made = create_database(lab.database.server)
    made.execute(TYPES)
    options = {"dsn": made.dsn, "staging": str(lab.path.with_name("staging"))}
    lab.config = replace(lab.config, destination=DestinationConfig("postgres", options))
    yield made
    lab.close()
    made.drop()


def _described(database: Database, table: str) -> list[tuple[object, ...]]:
    """Columns and types, and the key."""
    query = (
        "SELECT attname, format_type(atttypid, atttypmod), attnum = ANY (coalesce((SELECT indkey::int2[] FROM pg_index"
        " WHERE indrelid = attrelid AND indisprimary), '{}')) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1"
    )
    return database.execute(query, (table,))


def _assert_same(lab: Lab, warehouse: Database, *tables: str) -> None:
    """By the stream's end: `verify` agrees, and the two servers' own descriptions and texts of each row are equal."""
    pipeline = lab.caught_up(lab.pipeline())
    others = {s.name.name: s.error for s in pipeline.store.tables() if s.state is not TableState.READY}
    assert not others
    assert not [comparison for comparison in pipeline.verify() if not comparison.is_equal]
    for table in tables:
        described = _described(lab.database, table)
        assert _described(warehouse, table) == described
        names = ", ".join('"{}"'.format(str(name).replace('"', '""')) for name, *_ in described)
        query = f"SELECT row({names})::text FROM {table} ORDER BY 1"
        assert warehouse.execute(query) == lab.database.execute(query)


def test_every_type_is_kept_by_copy_and_by_stream(lab: Lab, warehouse: Database) -> None:
    lab.execute(TYPES)
    version = lab.database.server.version_num
    known = {kind: value for kind, value in VALUES.items() if SINCE.get(kind, 0) <= version}
    columns = ", ".join(f"c{at} {kind}" for at, kind in enumerate(known))
    lab.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns}, big text)")
    lab.execute("ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL")
    values = ", ".join(known.values())
    lab.execute(f"INSERT INTO t VALUES (1, {values}, repeat('x', 9000))")
    lab.execute("INSERT INTO t VALUES (2)")
    lab.publish()
    lab.synced().close()
    _assert_same(lab, warehouse, "t")
    lab.execute(f"INSERT INTO t VALUES (3, {values}, repeat('y', 9000))")
    lab.execute("INSERT INTO t VALUES (4)")
    lab.execute("UPDATE t SET c0 = 'sad' WHERE id IN (1, 3)")  # big is not sent
    lab.execute("UPDATE t SET id = id + 10 WHERE id IN (2, 3); DELETE FROM t WHERE id = 4")
    _assert_same(lab, warehouse, "t")


def test_schema_changes_follow_with_and_without_a_key(lab: Lab, warehouse: Database) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY, name varchar(5), price numeric(6,2), gone int)")
    lab.execute("CREATE TABLE lines (line text, doc json); ALTER TABLE lines REPLICA IDENTITY FULL")
    lab.execute("INSERT INTO a VALUES (1, 'one', 1.5, 1), (2, 'two', 2.5, 2)")
    lab.execute("INSERT INTO lines VALUES ('a', '{}'), ('a', '{}'), (null, '{\"a\":1}')")
    lab.publish()
    lab.synced().close()
    for statement in (  # each a transaction of its own
        "UPDATE a SET name = 'uno' WHERE id = 1",
        "ALTER TABLE a ADD COLUMN extra int DEFAULT 7",
        "INSERT INTO a VALUES (3, 'three', 3.5, 3, 3)",
        "ALTER TABLE a RENAME COLUMN name TO label",
        "UPDATE a SET extra = 8 WHERE id = 1",
        "ALTER TABLE a ALTER COLUMN label TYPE text, ALTER COLUMN price TYPE numeric(12,2)",
        "INSERT INTO a VALUES (4, 'a longer one', 1234567.25, 4)",
        "ALTER TABLE a DROP COLUMN gone",
        "DELETE FROM a WHERE id = 3",
        "DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines)",
        "INSERT INTO lines VALUES ('b', '[1]')",
    ):
        lab.execute(statement)
    lab.caught_up(lab.pipeline())
    lab.pipeline().sync()  # what is copied again by itself
    _assert_same(lab, warehouse, "a", "lines")
    for statement in (
        "ALTER TABLE a ALTER COLUMN id TYPE bigint",
        "CREATE SCHEMA archive",
        "ALTER TABLE a SET SCHEMA archive",
        "INSERT INTO archive.a VALUES (5000000000, 'five', 5, 5)",
        "TRUNCATE lines",
        "INSERT INTO lines VALUES ('z')",
    ):
        lab.execute(statement)
    lab.caught_up(lab.pipeline())
    lab.pipeline().sync()  # where a type became another one
    _assert_same(lab, warehouse, "archive.a", "lines")


@pytest.mark.parametrize(
    "failpoint",
    [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.BATCH_WRITTEN, failpoints.CATCHUP_WRITTEN],
)
def test_killed_where_postgresql_has_it_and_nobody_knows(
    lab: Lab, warehouse: Database, churn: Callable[..., Churn], churned: Callable[..., None], failpoint: str
) -> None:
    churned("a", "b")
    lab.publish()
    with churn("a", "b"):
        for _ in range(2):
            assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    lab.pipeline().sync()
    _assert_same(lab, warehouse, "a", "b")


def test_a_database_is_not_replicated_into_itself(lab: Lab) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY)")
    lab.publish()
    options = {"dsn": lab.database.dsn, "staging": str(lab.path.with_name("staging"))}
    lab.config = replace(lab.config, destination=DestinationConfig("postgres", options))
    with pytest.raises(ConfigError, match="destination: is the source's own database"):
        lab.pipeline()
    assert lab.slots() == set()
    assert lab.execute("SELECT FROM pg_namespace WHERE nspname = '_etl'") == []


def test_a_ring_of_two_pipelines_is_refused_by_the_table_and_what_goes_back_may_be_others(
    lab: Lab, warehouse: Database
) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    lab.publish("TABLE a")
    there = lab.synced()
    warehouse.execute("CREATE TABLE report (id int PRIMARY KEY); INSERT INTO report VALUES (7)")
    warehouse.execute("CREATE PUBLICATION back_pub FOR ALL TABLES")
    options = {"dsn": lab.database.dsn, "staging": str(lab.path.with_name("back"))}
    names = tuple(TableName("public", name) for name in ("a", "report"))
    lab.config = replace(
        lab.config,
        pipeline=f"back_{warehouse.name[-6:]}",
        source=replace(lab.config.source, publication="back_pub", dsn=warehouse.dsn, tables=names),
        destination=DestinationConfig("postgres", options),
        state=StateConfig(f"sqlite:///{lab.path.with_name('back.db')}"),
    )
    back = lab.pipeline()
    outcomes = back.sync()
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, EtlError)]
    assert "public.a exists in PostgreSQL and was not made by a pipeline" in str(refused)
    assert lab.execute("SELECT id FROM report") == [(7,)]
    lab.execute("INSERT INTO a VALUES (2)")
    lab.caught_up(there)
    assert warehouse.execute("SELECT id FROM a ORDER BY 1") == [(1,), (2,)]
    assert lab.execute("SELECT id FROM a ORDER BY 1") == [(1,), (2,)]


def test_the_doctor_names_types_that_the_destination_lacks_and_its_sql_makes_them(
    lab: Lab, warehouse: Database
) -> None:
    lab.execute(TYPES)
    lab.execute(
        "CREATE SCHEMA \"Other\"; CREATE TYPE \"Other\".kind AS ENUM ('a', 'b''c');"
        ' CREATE TYPE "Other".box AS (kind "Other".kind, "N" numeric(5,1));'
        ' CREATE DOMAIN "Other".price AS numeric(10,2) NOT NULL CHECK (VALUE >= 0);'
        ' CREATE TYPE "Other".prices AS RANGE (subtype = "Other".price, multirange_type_name = "Other"."Many");'
        " ALTER TYPE mood ADD VALUE 'new';"
        ' CREATE TABLE t (id int PRIMARY KEY, m mood, k "Other".kind, b "Other".box[], p "Other".price,'
        ' r "Other"."Many")'
    )
    lab.publish()
    pipeline = lab.pipeline()

    def examined() -> dict[str, tuple[str, str | None]]:
        found = examine_types(pipeline.source, None, pipeline.destination, lambda: pipeline.shapes)
        return {finding.message.partition(" ")[0]: (finding.message, finding.sql) for finding in found}

    found = examined()
    assert list(found) == ["public.mood", "Other.kind", "Other.box", "Other.price", "Other.prices"]
    assert "is another type there than at the source, so public.t.m is stored as text" in found["public.mood"][0]
    assert "is not in the destination's database, so public.t.p (and 1 more) is stored as" in found["Other.price"][0]
    for _, statements in found.values():
        warehouse.execute(statements or "ALTER TYPE mood ADD VALUE 'new'")
    assert examined() == {}
    lab.execute("INSERT INTO t VALUES (1, 'new', 'b''c', array[row('a', 1.5)::\"Other\".box], 2.5, '{[1,2)}')")
    lab.synced()
    _assert_same(lab, warehouse, "t")


def test_the_views_of_versions_follow_their_table(lab: Lab, warehouse: Database) -> None:
    """Types that are kept, columns and names that change, a bookkeeping of before; grants on the views stay."""
    lab.execute(TYPES)
    lab.execute(
        "CREATE TABLE items (id int PRIMARY KEY, feeling mood, price numeric(6,2), doc json, big text, spare int);"
        " ALTER TABLE items ALTER big SET STORAGE EXTERNAL;"
        " INSERT INTO items SELECT i, 'sad', i, '{\"a\":  1}', repeat('x', 3000), i FROM generate_series(1, 2) i"
    )
    lab.publish()
    lab.config = replace(lab.config, write_mode=WriteMode.HISTORY)
    lab.synced().close()
    role = f"reader_{warehouse.name}"
    warehouse.execute("DROP VIEW items_current; DROP VIEW items_history; DROP TABLE _etl.logs")
    warehouse.execute("DROP AGGREGATE _etl.last_known(anyelement, boolean)")
    pipeline = lab.pipeline()
    pipeline.resync(TableName("public", "items"))
    assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    lab.caught_up(pipeline)
    warehouse.execute(f"CREATE ROLE {role}; GRANT SELECT ON items_history, items_current TO {role} WITH GRANT OPTION")
    try:
        for change in (
            "UPDATE items SET feeling = 'it''s \"ok\"', price = price + 0.5 WHERE id = 1",
            "ALTER TABLE items RENAME big TO large; INSERT INTO items (id) VALUES (7)",
            "ALTER TABLE items DROP spare; DELETE FROM items WHERE id = 7",
            "ALTER TABLE items ALTER price TYPE numeric(9,2); UPDATE items SET id = 3 WHERE id = 1",
            "ALTER TABLE items ADD more int DEFAULT 7; UPDATE items SET doc = doc WHERE id = 2",
            "ALTER TABLE items RENAME TO things",
        ):
            lab.execute(change)
            lab.caught_up(pipeline)
        lab.execute("DELETE FROM things WHERE id = 2")
        lab.caught_up(pipeline)
        assert {status.name.name: status.error for status in pipeline.store.tables()} == {"things": None}
        assert [comparison.is_equal for comparison in pipeline.verify()] == [True]
        query = "SELECT (t.*)::text FROM (SELECT id, feeling, price, doc, large, more FROM {} ORDER BY 1) t"
        assert warehouse.execute(query.format("things_current")) == lab.execute(query.format("things"))
        found = "SELECT id, feeling::text, price::text, length(large), _etl_valid_to IS NULL FROM things_history"
        sad, ok = "sad", 'it\'s "ok"'
        assert sorted(warehouse.execute(f"{found} WHERE id < 7")) == [
            (1, ok, "1.50", 3000, False),
            (1, sad, "1.00", 3000, False),
            (2, sad, "2.00", 3000, False),
            (2, sad, "2.00", 3000, False),
            (3, ok, "1.50", 3000, True),
        ]
        described: dict[object, object] = {name: kind for name, kind, _ in _described(warehouse, "things_history")}
        assert (described["feeling"], described["price"]) == ("mood", "numeric(9,2)")
        # A person's view stops what it holds, and that alone.
        warehouse.execute("CREATE VIEW mine AS SELECT price FROM things_current")
        lab.execute("ALTER TABLE things DROP price; INSERT INTO things (id) VALUES (9)")
        lab.caught_up(pipeline)
        assert "cannot be altered in the destination's PostgreSQL: a view" in str(pipeline.observer.errors["things"])
        warehouse.execute("DROP VIEW mine")
        pipeline.resync(TableName("public", "things"))
        assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
        with psycopg.connect(warehouse.dsn) as reader:  # it has no right on schema _etl
            reader.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            assert reader.execute("SELECT count(*) > 3 FROM public.things_history").fetchall() == [(True,)]
        granted = "SELECT has_table_privilege(%s, %s, 'SELECT WITH GRANT OPTION')"
        assert warehouse.execute(granted, (role, "things_history")) == [(True,)]
    finally:
        warehouse.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_values_that_only_postgresql_has_are_keys_defaults_and_rows_of_the_past(lab: Lab, warehouse: Database) -> None:
    """Found by their key, or without one, kept when deleted; what settings make of them; types that are not kept."""
    lab.execute(TYPES)
    lab.execute(
        "CREATE TABLE keyed (n numeric(5,2), a int[], t timestamp, note text, PRIMARY KEY (n, a, t));"
        " CREATE TABLE bare (n numeric(5,2), a text[], i interval, w wide); ALTER TABLE bare REPLICA IDENTITY FULL;"
        " CREATE TABLE kept (a int[] PRIMARY KEY, t timestamp[]);"
        " CREATE TABLE shaped (id int PRIMARY KEY, a int[], n numeric(5,2), u numeric, s numrange, i interval);"
        " CREATE TABLE named (id int PRIMARY KEY, c regclass[], m money, v money[]);"
        " INSERT INTO keyed VALUES ('NaN', '{{1,2}}', '294276-12-31', 'a'), ('NaN', '[0:0]={1}', 'infinity', 'b');"
        " INSERT INTO bare SELECT 'NaN', '{{a,b}}', '9000000 hours', '(NaN,{{1}},,)' FROM generate_series(1, 3);"
        " INSERT INTO kept VALUES ('{{1},{2}}', '{294276-12-31}'), ('{{3},{4}}', '{{infinity}}');"
        " INSERT INTO shaped VALUES (1, '{{1,2}}', 'NaN', 1.25, '[1.5,2)', '9000000 hours');"
        " INSERT INTO named VALUES (1, '{{pg_class}}', 1.5, '{1.5,-2}')"
    )
    lab.config = replace(lab.config, tables=read_tables("tables", SETTINGS))
    lab.publish()
    lab.synced().close()
    for statement in (
        "UPDATE keyed SET note = 'c', n = 1 WHERE note = 'a'; DELETE FROM keyed WHERE note = 'b'",
        "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare)",
        "UPDATE bare SET n = 2 WHERE ctid = (SELECT max(ctid) FROM bare)",
        "DELETE FROM kept WHERE a = '{{1},{2}}'; INSERT INTO kept VALUES ('{{5},{6}}')",
        "ALTER TABLE keyed ADD more int[] DEFAULT '{{7,8}}', ADD much numeric(4,1) DEFAULT 'NaN'",
        "INSERT INTO keyed VALUES (3, '{}', '2024-01-01', 'd')",
    ):
        lab.execute(statement)
    _assert_same(lab, warehouse, "keyed", "bare")
    assert warehouse.execute("SELECT a::text, _etl_deleted_at IS NULL FROM kept ORDER BY 1") == [
        ("{{1},{2}}", False),
        ("{{3},{4}}", True),
        ("{{5},{6}}", True),
    ]
    hours = "9000000:00:00"
    assert warehouse.execute("SELECT (id, a, n, u, s, i)::text FROM shaped") == [
        (f'(1,"[[1,2]]",NaN,1.2500,"[1.5,2)",{hours})',)
    ]
    assert warehouse.execute("SELECT t::text FROM named t") == [('(1,{{pg_class}},1.50,"{1.50,-2.00}")',)]
    # Arrow, in which people read tables, has no such values; NULL where the settings say so.
    pipeline = lab.pipeline()

    def read(table: str) -> list[dict[str, object]]:
        status = pipeline.find(TableName("public", table))
        stored = pipeline.store.schema(status.table_id)
        assert stored is not None
        batches = pipeline.destination.read(pipeline.shapes.of(stored[1]).readable)
        return [row for batch in batches for row in batch.to_pylist()]

    [shaped] = read("shaped")
    assert (shaped["a"], shaped["n"], shaped["u"], shaped["i"]) == ("[[1,2]]", None, Decimal("1.2500"), None)
    with pytest.raises(ValueOutOfRange, match=r"column n of table public\.bare holds NaN or infinity"):
        read("bare")
    # A composite that gets an attribute is another type.
    lab.execute("ALTER TYPE wide ADD ATTRIBUTE more int")
    lab.execute("INSERT INTO bare (w) VALUES ('(1,{},1 s,,5)')")
    lab.caught_up(lab.pipeline())
    lab.pipeline().sync()
    lab.caught_up(lab.pipeline())
    assert ("w", "text", False) in _described(warehouse, "bare")
    assert warehouse.execute("SELECT w FROM bare WHERE n IS NULL") == [("(1.00,{},PT1S,,5)",)]
