"""PostgreSQL as a destination: two writers at once, what people add to a table, types that come later."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg.conninfo import make_conninfo

from etl_core.batch import TableChanges, WriteBatch
from etl_core.destination.postgres.destination import PostgresDestination
from etl_core.destination.postgres.lines import copy_lines
from etl_core.errors import (
    ConfigError,
    DestinationError,
    DestinationUnavailable,
    EtlError,
    TableError,
    ValueOutOfRange,
    WatermarkConflict,
)
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema import pg_types
from etl_core.schema.change_log import EACH_ROW, old_value
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.testing.destination_multiset_suite import multiset
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    array_of,
    batch,
    changes,
    comparable,
    contents,
    numeric_modifier,
    orders,
    publish,
    rows,
    table,
)
from etl_core.testing.postgres import Database
from etl_core.values.text import is_utf8, own_bytes

PATIENCE = 300.0
ROW = (1, "a", "b", 1)
_WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND application_name = 'etl_shop_destination'"
)


@pytest.fixture
def make(database: Database, tmp_path: Path) -> Callable[[], PostgresDestination]:
    return lambda: PostgresDestination(database.dsn, "shop", tmp_path)


@pytest.fixture
def destination(make: Callable[[], PostgresDestination]) -> Iterator[PostgresDestination]:
    destination = make()
    destination.prepare()
    yield destination
    destination.close()


def _until_waiting(database: Database) -> None:
    deadline = time.monotonic() + PATIENCE
    while database.execute(_WAITING) == [(0,)]:
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.01)


def _held_open(whole: WriteBatch, fenced: threading.Event, database: Database) -> WriteBatch:
    """The batch, whose rows come when another session waits for a lock of its transaction."""

    def parts() -> Iterator[TableChanges]:
        fenced.set()
        _until_waiting(database)
        yield from whole.parts

    return replace(whole, parts=parts())


@pytest.mark.parametrize("of", ["a table", "the first position of the stream"])
def test_of_two_writers_that_expect_the_same_one_is_refused(
    destination: PostgresDestination, make: Callable[[], PostgresDestination], database: Database, of: str
) -> None:
    publish(destination, orders(), [ROW])
    stream = 200 if of != "a table" else None
    fenced = threading.Event()

    def writes(key: int) -> WriteBatch:
        return batch(changes(orders(), inserts=[(key, "x", "y", key)]), expected=100, new=200, stream=stream)

    if stream is not None:  # the stream's row alone is what they meet at

        def writes(key: int) -> WriteBatch:
            return batch(expected=0, new=0, stream=200 + key)

    other = make()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(destination.write, _held_open(writes(2), fenced, database))
        assert fenced.wait(PATIENCE)
        second = threads.submit(other.write, writes(3))
        first.result()
        with pytest.raises(WatermarkConflict):
            second.result()
    other.close()
    if stream is None:
        assert contents(destination, orders()) == Counter([ROW, (2, "x", "y", 2)])
    else:
        position = destination.positions().stream
        assert position is not None
        assert position.lsn == Lsn(202)


def test_a_copy_waits_for_a_writer_of_its_table(
    destination: PostgresDestination, make: Callable[[], PostgresDestination], database: Database
) -> None:
    publish(destination, orders(), [ROW])
    fenced = threading.Event()
    late = batch(changes(orders(), inserts=[(2, "x", "y", 2)]), expected=100, new=200)
    other = make()
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(destination.write, _held_open(late, fenced, database))
        assert fenced.wait(PATIENCE)
        copying = threads.submit(publish, other, orders(), [(7, "n", "n", 7)], watermark=300)
        writing.result()
        assert copying.result() == 1
    other.close()
    assert contents(destination, orders()) == {(7, "n", "n", 7): 1}
    assert destination.positions().tables == {orders().table_id: Lsn(300)}


def _rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    return sorted(database.execute(query))


def test_what_people_add_stays_and_readers_do_not_wait(destination: PostgresDestination, database: Database) -> None:
    publish(destination, orders(), [ROW, (2, "c", "d", 2)])
    database.execute(
        "CREATE VIEW public.mine AS SELECT id, note FROM public.orders;"
        "ALTER TABLE public.orders ADD COLUMN \"my %s\" text DEFAULT 'new';"
        "ALTER TABLE public.orders ADD COLUMN twice int GENERATED ALWAYS AS (amount * 2) STORED;"
        "UPDATE public.orders SET \"my %s\" = 'one' WHERE id = 1;"
        "CREATE INDEX by_note ON public.orders (note); GRANT SELECT ON public.orders TO public;"
        "COMMENT ON TABLE public.orders IS 'ours'"
    )
    added = (
        "SELECT relacl::text, obj_description(oid), (SELECT count(*) FROM pg_index WHERE indrelid = oid)"
        " FROM pg_class WHERE oid = 'public.orders'::regclass"
    )
    before = database.execute(added)
    with psycopg.connect(database.dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM public.mine")
        rows = [(1, "A", "B", 11), (3, "e", "f", 3)]
        destination.write(batch(changes(orders(), upserts=rows), expected=100, new=200))
        assert publish(destination, orders(), [*rows, (9, "g", "h", 9)], watermark=300) == 3
        assert sorted(reader.execute("SELECT id, note FROM public.mine")) == [(1, "b"), (2, "d")]
    assert database.execute(added) == before
    assert _rows(database, "SELECT * FROM public.mine") == [(1, "B"), (3, "f"), (9, "h")]
    assert _rows(database, 'SELECT id, "my %s", twice FROM public.orders') == [
        (1, "one", 22),
        (3, "new", 6),
        (9, "new", 18),
    ]


def test_a_view_on_a_column_that_goes_stops_its_table(destination: PostgresDestination, database: Database) -> None:
    publish(destination, orders(), [ROW])
    database.execute("CREATE VIEW public.mine AS SELECT status FROM public.orders")
    shrunk = replace(orders(), columns=tuple(column for column in orders().columns if column.name != "status"))
    for work in (
        lambda: destination.write(batch(changes(shrunk, deletes=[(1,)]), expected=100, new=200)),
        lambda: publish(destination, shrunk, watermark=300),
    ):
        with pytest.raises(TableError, match="a view, a constraint or another object") as caught:
            work()
        assert "etl resync public.orders" in str(caught.value.hint)
    assert contents(destination, orders()) == {ROW: 1}


def test_an_index_of_a_tables_new_name_stops_it_alone(destination: PostgresDestination, database: Database) -> None:
    """Also where the table's own index meets another one of its name in the schema that it is moved to."""
    publish(destination, orders(), [ROW], watermark=100)
    database.execute("CREATE TABLE public.others (id int); CREATE INDEX renamed ON public.others (id)")
    database.execute("CREATE SCHEMA sales; CREATE TABLE sales.theirs (id int CONSTRAINT orders_pkey PRIMARY KEY)")
    position = 100
    for name in (TableName("public", "renamed"), TableName("sales", "orders")):
        schema = replace(orders(), name=name)
        with pytest.raises(TableError, match=r"cannot be called so in the destination's PostgreSQL.*already exists"):
            destination.write(batch(changes(schema, inserts=[(2, "a", "b", 1)]), expected=position, new=position + 1))
    database.execute("ALTER INDEX sales.orders_pkey RENAME TO others_pkey")
    destination.write(batch(changes(schema, inserts=[(2, "a", "b", 1)]), expected=position, new=position + 1))
    assert len(contents(destination, schema)) == 2


def test_a_schema_that_is_made_at_the_same_moment_is_waited_for(
    destination: PostgresDestination, database: Database
) -> None:
    schema = replace(orders(), name=TableName("sales", "orders"))
    with psycopg.connect(database.dsn) as other, ThreadPoolExecutor() as pool:
        other.execute("CREATE SCHEMA sales")
        copy = pool.submit(publish, destination, schema, [ROW], watermark=100)
        _until_waiting(database)
        other.commit()
        copy.result(PATIENCE)
    assert len(contents(destination, schema)) == 1


def test_a_constraint_that_refuses_rows_is_told_without_them(
    destination: PostgresDestination, database: Database
) -> None:
    publish(destination, orders(), [ROW])
    database.execute("ALTER TABLE public.orders ADD CONSTRAINT small CHECK (amount < 10)")
    with pytest.raises(TableError, match=r"constraint small of public\.orders") as caught:
        destination.write(batch(changes(orders(), inserts=[(2, "SECRET", "b", 77)]), expected=100, new=200))
    assert "SECRET" not in str(caught.value)
    assert destination.positions().tables == {orders().table_id: Lsn(100)}


def _keys(database: Database, name: str) -> list[tuple[bool, str]]:
    query = "SELECT indisprimary, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1, 2"
    return [(primary, text.partition(" USING ")[2]) for primary, text in database.execute(query, (name,))]


def test_keys_follow_the_source_and_leave_those_of_people_alone(
    destination: PostgresDestination, database: Database
) -> None:
    publish(destination, orders(), [ROW, (2, "c", "d", 2)])
    assert _keys(database, "orders") == [(True, "btree (id)")]
    by_amount = replace(orders(), key=("amount",))
    destination.write(batch(changes(by_amount, upserts=[(5, "x", "y", 2)]), expected=100, new=200))
    assert _keys(database, "orders") == [(True, "btree (amount)")]
    publish(destination, orders(), [ROW], watermark=300)
    assert _keys(database, "orders") == [(True, "btree (id)")]
    database.execute(
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD COLUMN mine int DEFAULT 1;"
        "ALTER TABLE orders ADD PRIMARY KEY (mine, id)"
    )
    for at in (300, 400):
        destination.write(batch(changes(orders(), upserts=[(1, "z", "z", at)]), expected=at, new=at + 100))
    assert _keys(database, "orders") == [(False, "btree (id)"), (True, "btree (mine, id)")]
    assert publish(destination, orders(), [ROW], watermark=600) == 1
    assert _keys(database, "orders") == [(False, "btree (id)"), (True, "btree (mine, id)")]
    schema = multiset()
    publish(destination, schema, [("a", 1)])
    database.execute("ALTER TABLE lines ADD COLUMN no bigserial PRIMARY KEY")
    destination.write(batch(changes(schema, inserts=[("b", 2)]), expected=100, new=200))
    assert _keys(database, "lines") == [(True, "btree (no)")]


def test_a_foreign_key_that_would_delete_rows_of_people_stops_its_table(
    destination: PostgresDestination, database: Database
) -> None:
    publish(destination, orders(), [ROW])
    database.execute("CREATE TABLE notes (id bigint REFERENCES orders ON DELETE CASCADE); INSERT INTO notes VALUES (1)")
    for work in (
        lambda: destination.write(batch(changes(orders(), upserts=[(1, "x", "y", 2)]), expected=100, new=200)),
        lambda: publish(destination, orders(), [ROW], watermark=300),
    ):
        with pytest.raises(TableError, match=r"notes_id_fkey of public\.notes .* refers to public\.orders"):
            work()
    assert database.execute("SELECT * FROM notes") == [(1,)]


def test_a_table_that_inherits_from_ours_loses_no_row(destination: PostgresDestination, database: Database) -> None:
    publish(destination, orders(), [ROW])
    database.execute("CREATE TABLE archive () INHERITS (orders); INSERT INTO archive VALUES (1, 'old', 'old', 1)")
    for work in (
        lambda: destination.write(batch(changes(orders(), upserts=[(1, "x", "y", 2)]), expected=100, new=200)),
        lambda: publish(destination, orders(), [ROW], watermark=300),
    ):
        with pytest.raises(TableError, match=r"public\.archive inherits from public\.orders") as caught:
            work()
        assert "NO INHERIT" in str(caught.value.hint)
    assert database.execute("SELECT * FROM archive") == [(1, "old", "old", 1)]


_TRIGGER = """
CREATE TABLE audit (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql {} AS 'BEGIN INSERT INTO audit VALUES (7); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER noted AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION note();
"""


@pytest.mark.parametrize(
    ("made", "kind", "error"),
    [
        ("ALTER TABLE orders ADD CONSTRAINT mine UNIQUE (amount) INITIALLY DEFERRED", TableError, "constraint mine"),
        (
            "CREATE TABLE sizes (n int PRIMARY KEY); INSERT INTO sizes VALUES (1);"
            "ALTER TABLE orders ADD CONSTRAINT mine FOREIGN KEY (amount) REFERENCES sizes INITIALLY DEFERRED",
            TableError,
            "constraint mine",
        ),
        (_TRIGGER.format(""), TableError, "a trigger of public.orders"),
        (_TRIGGER.format("SET search_path = public"), DestinationError, "waits for COMMIT"),
    ],
)
def test_what_waits_for_the_commit_stops_its_table_alone(
    destination: PostgresDestination, database: Database, made: str, kind: type[EtlError], error: str
) -> None:
    publish(destination, orders(), [ROW])
    database.execute(made)
    wrong = [(2, "x", "y", 2), (3, "x", "y", 2)]
    for work in (
        lambda: destination.write(batch(changes(orders(), inserts=wrong), expected=100, new=200)),
        lambda: publish(destination, orders(), wrong, watermark=300),
    ):
        with pytest.raises(kind, match=error) as caught:
            work()
        assert type(caught.value) is kind
    assert contents(destination, orders()) == {ROW: 1}
    assert destination.positions().tables == {orders().table_id: Lsn(100)}


def test_a_deferred_foreign_key_sees_the_whole_batch(destination: PostgresDestination, database: Database) -> None:
    sizes = table("sizes", Column("n", INT4, nullable=False), table_id=16_500, key=("n",))
    publish(destination, sizes, [(1,)])
    publish(destination, orders(), [ROW])
    database.execute("ALTER TABLE orders ADD FOREIGN KEY (amount) REFERENCES sizes INITIALLY DEFERRED")
    parts = (changes(orders(), inserts=[(2, "x", "y", 2)]), changes(sizes, upserts=[(1,)], inserts=[(2,)]))
    destination.write(batch(*parts, expected=100, new=200))
    with pytest.raises(TableError) as caught:
        destination.write(batch(changes(sizes, deletes=[(1,)]), expected=200, new=300))
    assert caught.value.table == "public.sizes"


def test_a_limit_that_one_table_meets_stops_it_alone(destination: PostgresDestination, database: Database) -> None:
    lines = multiset()
    rows = [(f"r{number}", number) for number in range(20_000)]
    publish(destination, lines, rows)
    [(name,)] = database.execute("SELECT quote_ident(current_database())")
    database.execute(
        f"ALTER DATABASE {name} SET temp_file_limit = '128kB'; ALTER DATABASE {name} SET work_mem = '64kB'"
    )
    destination.close()
    with pytest.raises(TableError, match="temp_file_limit"):
        destination.write(batch(changes(lines, removals=rows), expected=100, new=200))


def test_settings_of_the_database_change_no_value(destination: PostgresDestination, database: Database) -> None:
    [(name,)] = database.execute("SELECT quote_ident(current_database())")
    database.execute(f"ALTER DATABASE {name} SET array_nulls = off")
    destination.close()
    schema = table("t", Column("id", INT4), Column("a", array_of(1009, TEXT)))
    publish(destination, schema, [(1, ["x", None])])
    assert database.execute("SELECT a[2] IS NULL FROM t") == [(True,)]


def _mood(database: Database) -> str:
    query = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'public.t'::regclass"
        " AND attname = 'mood'"
    )
    return str(database.execute(query)[0][0])


def test_a_type_that_is_not_there_is_text_until_the_copy_after_it_came(
    destination: PostgresDestination, database: Database
) -> None:
    mood = Column("mood", PgType(70_000, "mood", "public", TypeKind.ENUM))
    schema = table("t", Column("id", INT4), mood)
    publish(destination, schema, [(1, "sad")])
    assert _mood(database) == "text"
    database.execute("CREATE TYPE public.mood AS ENUM ('sad')")
    destination.write(batch(changes(schema, inserts=[(2, "sad")]), expected=100, new=200))
    assert _mood(database) == "text"
    publish(destination, schema, [(1, "sad"), (2, "sad")], watermark=300)
    assert _mood(database) == "mood"
    with pytest.raises(ValueOutOfRange, match="refuses"):
        destination.write(batch(changes(schema, inserts=[(3, "SECRET")]), expected=300, new=400))
    database.execute("ALTER TYPE public.mood ADD VALUE 'glad'")
    destination.write(batch(changes(schema, inserts=[(3, "glad")]), expected=300, new=400))
    assert contents(destination, schema) == {(1, "sad"): 1, (2, "sad"): 1, (3, "glad"): 1}


_NUMERIC = PgType(pg_types.NUMERIC, "numeric")
_TYPES = """
CREATE DOMAIN public.price AS money; CREATE TYPE public.offer AS (what text, amount money);
CREATE TYPE public.pair AS (a int, b int); CREATE DOMAIN public.tax AS numeric(12,2);
CREATE DOMAIN public.rate AS numeric(12,5); CREATE DOMAIN public.given AS int NOT NULL;
CREATE TYPE public.size AS ENUM ('S', 'M'); CREATE TYPE public.color AS ENUM ('red');
CREATE TYPE public.span AS RANGE (subtype = numeric);
"""


def _composite(name: str, *attributes: Column) -> PgType:
    return PgType(70_001, name, "public", TypeKind.COMPOSITE, attributes=attributes)


def _domain(name: str, element: PgType) -> PgType:
    return PgType(70_002, name, "public", TypeKind.DOMAIN, element)


def _enum(name: str, *labels: str) -> PgType:
    return PgType(70_003, name, "public", TypeKind.ENUM, labels=labels)


def test_a_type_of_that_name_is_taken_if_it_is_the_same(destination: PostgresDestination, database: Database) -> None:
    database.execute(_TYPES)
    yen, swapped = PgType(pg_types.MONEY, "money", form=0), (Column("b", INT4), Column("a", INT4))
    float8 = PgType(pg_types.FLOAT8, "float8")
    cases: list[tuple[PgType, Any, str]] = [
        (_domain("price", yen), Decimal(1234), "numeric(19,0)"),
        (array_of(70_010, _domain("price", yen)), [Decimal(5), None], "numeric(19,0)[]"),
        (_composite("offer", Column("what", TEXT), Column("amount", yen)), {"what": "x", "amount": Decimal(7)}, "text"),
        (_composite("pair", *swapped), {"b": 2, "a": 1}, "text"),
        (_composite("pair", *reversed(swapped)), {"a": 1, "b": 2}, "public.pair"),
        (_domain("tax", _NUMERIC), "1.23456", "numeric"),
        (replace(_domain("rate", _NUMERIC), type_modifier=numeric_modifier(12, 5)), None, "public.rate"),
        (_domain("given", INT4), None, "integer"),
        (_enum("size", "S"), "S", "public.size"),
        (_enum("size", "S", "L"), "L", "text"),
        (_enum("pair"), "x", "text"),
        (PgType(70_004, "span", "public", TypeKind.RANGE, float8), "[1,2)", "text"),
        (PgType(70_004, "span", "public", TypeKind.RANGE, _NUMERIC), "[1,2)", "public.span"),
    ]
    columns = [Column(f"c{at}", pg_type) for at, (pg_type, *_) in enumerate(cases)]
    schema = table("t", Column("id", INT4), *columns)
    data = [(key, *(value for _, value, _ in cases)) for key in (1, 2)]
    publish(destination, schema, data[:1])
    destination.write(batch(changes(schema, upserts=data), expected=100, new=200))
    with psycopg.connect(database.dsn, options="-c search_path=") as connection:
        query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 1"
        found = [kind for (kind,) in connection.execute(query + " ORDER BY attnum", ("public.t",))]
    assert found == [kind for *_, kind in cases]
    assert contents(destination, schema) == Counter(comparable(rows(schema, data)))
    assert database.execute("SELECT c0::int, c2 FROM t WHERE id = 1") == [(1234, '("x","7")')]


def test_a_key_whose_enum_came_later_finds_its_rows(destination: PostgresDestination, database: Database) -> None:
    schema = table("t", Column("size", _enum("size", "S"), nullable=False), Column("n", INT4), key=("size",))
    publish(destination, schema, [("S", 1)])
    database.execute(_TYPES)
    destination.write(batch(changes(schema, upserts=[("S", 2)]), expected=100, new=200))
    assert contents(destination, schema) == {("S", 2): 1}
    publish(destination, schema, [("S", 3)], watermark=300)
    destination.write(batch(changes(schema, upserts=[("S", 4)]), expected=300, new=400))
    assert contents(destination, schema) == {("S", 4): 1}


def test_a_name_that_would_be_cut_is_refused_before_the_copy(destination: PostgresDestination) -> None:
    key = Column("k" * 60, INT8, attnum=1, nullable=False)
    log = table("log", key, old_value(key), *EACH_ROW, key=())
    for schema in (log, table("t", Column("\u00e9" * 32, INT4), key=())):
        with pytest.raises(TableError, match="keeps 63 bytes") as caught:
            destination.copy(schema)
        assert "rename" in str(caught.value.hint)


def test_what_the_role_lacks_is_told_before_it_begins(
    destination: PostgresDestination, database: Database, tmp_path: Path
) -> None:
    assert "can be written" in destination.examine()
    [(name, role)] = database.execute(
        "SELECT quote_ident(current_database()), 'etl_' || oid FROM pg_database WHERE datname = current_database()"
    )
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    poor = PostgresDestination(make_conninfo(database.dsn, user=role, password="x"), "shop", tmp_path)
    with pytest.raises(DestinationError, match="CREATE, TEMPORARY"):
        poor.examine()
    poor.close()
    database.execute(f"GRANT CREATE, TEMPORARY ON DATABASE {name} TO {role}")
    poor.examine()
    poor.close()
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {role} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        odd = PostgresDestination(make_conninfo(database.dsn, dbname=role), "shop", tmp_path)
        with pytest.raises(DestinationError, match="SQL_ASCII"):
            odd.examine()
        odd.close()
        connection.execute(f"DROP DATABASE {role} WITH (FORCE)")


def test_text_that_copy_would_take_for_something_else(destination: PostgresDestination) -> None:
    schema = multiset(Column("a", TEXT), Column("b", TEXT))
    odd = ["\\.", "a\n\\.\nb", "\\N", "", "\t", "\r\n", "\\", '"', "'", "%s", "\ufeff", None, "\b\v\f"]
    rows = [(one, other) for one in odd for other in odd]
    publish(destination, schema, rows)
    destination.write(batch(changes(schema, removals=rows[::2], inserts=rows[::3]), expected=100, new=200))
    expected = Counter(rows)
    expected.subtract(rows[::2])
    assert contents(destination, schema) == +expected + Counter(rows[::3])


def test_what_cannot_be_reached_may_be_reached_later(tmp_path: Path) -> None:
    nowhere = PostgresDestination("postgresql://etl:hunter2@127.0.0.1:1/shop", "shop", tmp_path)
    with pytest.raises(DestinationUnavailable) as caught:
        nowhere.positions()
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"
    for dsn in ("postgresql://etl:hun@ter2@host/shop", "nonsense", "host=h", "postgresql://h/d?replication=database"):
        with pytest.raises(ConfigError, match=r"destination\.dsn") as refused:
            PostgresDestination(dsn, "shop", tmp_path)
        assert "ter2" not in str(refused.value)


def test_a_session_that_the_server_ended_is_made_anew(destination: PostgresDestination, database: Database) -> None:
    publish(destination, orders(), [ROW])
    database.execute(
        "SELECT pg_terminate_backend(pid, 300000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    destination.write(batch(changes(orders(), inserts=[(2, "c", "d", 2)]), expected=100, new=200))
    assert destination.positions().tables == {orders().table_id: Lsn(200)}


def test_it_can_be_published_further(destination: PostgresDestination, database: Database) -> None:
    database.execute("CREATE PUBLICATION downstream FOR ALL TABLES")
    lines, kept = multiset(), table("kept", *orders().columns, DELETED_AT, table_id=16_500)
    odd = table("odd", Column("key", PgType(pg_types.JSON, "json")), table_id=16_600, key=("key",))
    for _ in range(2):
        publish(destination, orders(), [ROW])
        publish(destination, lines, [("a", 1)])
        publish(destination, kept, [(*ROW, None)])
        publish(destination, odd, [("1",)])
    parts = (
        changes(orders(), upserts=[(1, "x", "y", 2)]),
        changes(lines, removals=[("a", 1)]),
        changes(kept, upserts=[(1, "x", "y", 2, None)]),
        changes(odd, deletes=[("1",)]),
    )
    destination.write(batch(*parts, expected=100, new=200))
    publish(destination, orders(16_500, "kept"), [ROW], watermark=200)  # its primary key comes, and goes
    publish(destination, kept, [(*ROW, None)], watermark=200)
    destination.write(batch(changes(kept, upserts=[(1, "x", "y", 2, None)]), expected=200, new=300))
    destination.forget(orders().table_id)


def test_columns_that_share_memory_cost_what_they_hold() -> None:
    shared = pa.array(["\\" * 1000, "\u00e9" * 1000, "plain", None, "a\tb"])
    assert own_bytes(shared.slice(2, 1)).tobytes() == b"plain"
    assert own_bytes(shared.slice(3)).tobytes() == b"a\tb"
    assert is_utf8(shared.slice(2))
    rows = pa.RecordBatch.from_arrays([shared.slice(2, 2), shared.slice(3, 2)], names=["a", "b"])
    assert b"".join(copy_lines(rows)) == b"plain\t\\N\n\\N\ta\\tb\n"
