"""The initial copy: every row of the snapshot, once, whatever happens to the table, or an error; never fewer rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_core.errors import EtlError, SourceUnavailable, Stopped, TableError, TransientError
from etl_core.source.catalog import PublishedTable, published_tables
from etl_core.source.connection import Connection, connect
from etl_core.source.copy_ranges import all_into
from etl_core.source.ctid_range import CtidRange
from etl_core.source.slot import create_slot
from etl_core.source.snapshot import import_snapshot, plan_ranges
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import CopyResult, copy_range, copy_table
from etl_core.testing.database import Database

from .conftest import PIPELINE

SMALL_RANGES = 8 * 8192
"""Bytes: many ranges from a few thousand rows."""


class Copying:
    """A snapshot of the database taken at construction, and copies of its tables."""

    def __init__(self, database: Database, walsender: Connection) -> None:
        self.database = database
        self.slot = create_slot(walsender, f"{PIPELINE}_{database.name}", export_snapshot=True)
        self.batches: list[pa.RecordBatch] = []
        self.progress: list[tuple[int, int, int]] = []
        self.stop = threading.Event()

    def connect(self) -> Connection:
        return connect(self.database.dsn, pipeline=PIPELINE, role="copy")

    def run(
        self,
        table: PublishedTable,
        connections: int = 2,
        *,
        sink: Callable[[pa.RecordBatch], None] | None = None,
        open_one: Callable[[], Connection] | None = None,
        range_bytes: int = SMALL_RANGES,
    ) -> CopyResult:
        assert self.slot.snapshot_name is not None
        return copy_table(
            SnapshotConnections(open_one or self.connect, self.slot.snapshot_name),
            table,
            connections,
            all_into(sink or self.batches.append),
            lambda *progress: self.progress.append(progress),
            self.stop,
            range_bytes=range_bytes,
        )

    def rows(self) -> list[dict[str, Any]]:
        return pa.Table.from_batches(self.batches).to_pylist() if self.batches else []


def publish(database: Database, *statements: str, name: str = "t") -> PublishedTable:
    """Creates what the statements say and a publication of all tables; the published table called `name`."""
    for statement in statements:
        database.execute(statement)
    database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
    return published(database, name)


def published(database: Database, name: str = "t") -> PublishedTable:
    with connect(database.dsn, pipeline=PIPELINE, role="test") as conn:
        return next(table for table in published_tables(conn, "p") if table.name.name == name)


def assert_nothing_left(database: Database) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy-")]
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    # A closed connection's server process is there for a moment longer.
    while database.execute(count, (f"etl_{PIPELINE}_copy",)) != [(0,)]:
        pass


MANY_ROWS = (
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT g, 'value ' || g FROM generate_series(1, 20000) g",
)


@pytest.mark.parametrize("connections", [1, 4])
def test_copies_the_snapshot_and_nothing_after_it(database: Database, walsender: Connection, connections: int) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    database.execute("UPDATE t SET v = 'later' WHERE id % 3 = 0")
    database.execute("DELETE FROM t WHERE id % 5 = 0")
    database.execute("INSERT INTO t SELECT g, 'new' FROM generate_series(20001, 30000) g")
    database.execute("VACUUM t")

    result = copying.run(table, connections)

    assert result.rows == 20000
    assert sorted((row["id"], row["v"]) for row in copying.rows()) == [(g, f"value {g}") for g in range(1, 20001)]
    rows, size, total = copying.progress[-1]
    assert (rows, size) == (20000, total)
    assert copying.progress == sorted(copying.progress)
    assert len({progress[1] for progress in copying.progress}) > 10, "it was one range only"
    assert_nothing_left(database)


def test_values_that_csv_could_confuse(database: Database, walsender: Connection) -> None:
    values = [
        "",
        None,
        "NULL",
        '"',
        "a,b",
        "line\nline",
        "cr\r\nlf",
        "\\.",
        "\\N",
        " x ",
        "'",
        "\t",
        "ÄÖ€😀",
        '""',
        ",",
    ]
    table = publish(database, "CREATE TABLE t (v text)")
    for value in values:
        database.execute("INSERT INTO t VALUES (%s)", (value,))
    copying = Copying(database, walsender)
    copying.run(table)
    assert [row["v"] for row in copying.rows()] == values


def test_names_that_need_quotes(database: Database, walsender: Connection) -> None:
    table = publish(
        database,
        'CREATE SCHEMA "My ""Schema"""',
        'CREATE TABLE "My ""Schema"""."T%s {0} é" ("Column ""%s" int PRIMARY KEY, "select" text, "{x}" int)',
        'INSERT INTO "My ""Schema"""."T%s {0} é" VALUES (1, \'a\', 2)',
        name="T%s {0} é",
    )
    copying = Copying(database, walsender)
    copying.run(table)
    assert copying.rows() == [{'Column "%s': 1, "select": "a", "{x}": 2}]


def test_an_empty_table(database: Database, walsender: Connection) -> None:
    table = publish(database, "CREATE TABLE t (id int PRIMARY KEY)")
    copying = Copying(database, walsender)
    assert copying.run(table) == CopyResult(0, 0)
    assert copying.rows() == []


def test_a_null_alone_in_its_row(database: Database, walsender: Connection) -> None:
    table = publish(database, "CREATE TABLE t (v text)", "INSERT INTO t VALUES (NULL), (''), (NULL)")
    copying = Copying(database, walsender)
    assert copying.run(table).rows == 3
    assert [row["v"] for row in copying.rows()] == [None, "", None]


def test_only_rows_of_the_publications_filter(database: Database, walsender: Connection) -> None:
    if database.server.version_num < 150000:
        pytest.skip("row filters came with PostgreSQL 15")
    for statement in PARTITIONS:
        database.execute(statement)
    database.execute(
        "CREATE PUBLICATION p FOR TABLE t (id, n) WHERE (id % 7 = 0 OR n = -1) WITH (publish_via_partition_root)"
    )
    copying = Copying(database, walsender)
    copying.run(published(database))
    assert sorted((row["id"], row["n"]) for row in copying.rows()) == [
        (g, -g) for g in range(300) if g % 7 == 0 or g == 1
    ]


def test_a_table_without_columns_is_refused(database: Database, walsender: Connection) -> None:
    table = publish(database, "CREATE TABLE t ()")
    with pytest.raises(TableError, match="no published column"):
        Copying(database, walsender).run(table)


def test_generated_and_unpublished_columns_are_left_out(database: Database, walsender: Connection) -> None:
    table = publish(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED, v text)",
        "INSERT INTO t (id, gone, v) VALUES (1, 2, 'a')",
        "ALTER TABLE t DROP COLUMN gone",
    )
    copying = Copying(database, walsender)
    copying.run(table)
    assert copying.rows() == [{"id": 1, "v": "a"}]


PARTITIONS = (
    "CREATE TABLE t (id int, v text, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
    "CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (100)",
    # Another order of columns, a dropped one, and a level more.
    "CREATE TABLE t_mid (n int, gone int, id int NOT NULL, v text)",
    "ALTER TABLE t_mid DROP COLUMN gone",
    "ALTER TABLE t ATTACH PARTITION t_mid FOR VALUES FROM (100) TO (200)",
    "CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (200) TO (400) PARTITION BY RANGE (id)",
    "CREATE TABLE t_high_1 PARTITION OF t_high FOR VALUES FROM (200) TO (300)",
    "INSERT INTO t SELECT g, 'v' || g, -g FROM generate_series(0, 299) g",
)


def test_partitions_are_copied_as_their_root(database: Database, walsender: Connection) -> None:
    table = publish(database, *PARTITIONS)
    copying = Copying(database, walsender)
    assert copying.run(table, 3).rows == 300
    assert sorted((row["id"], row["v"], row["n"]) for row in copying.rows()) == [(g, f"v{g}", -g) for g in range(300)]


def test_an_inheriting_table_is_not_copied_with_its_parent(database: Database, walsender: Connection) -> None:
    table = publish(
        database,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE child () INHERITS (t)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO child VALUES (2)",
    )
    copying = Copying(database, walsender)
    copying.run(table)
    assert copying.rows() == [{"id": 1}]


# What replaces the file under the snapshot. Each but VACUUM FULL would leave a copy begun after it without rows.
@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ALTER COLUMN v TYPE varchar(100) USING v || ''",
        "ALTER TABLE t ADD COLUMN u uuid DEFAULT gen_random_uuid()",
        "TRUNCATE t",
        "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'x'); COMMIT",
        "BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); COMMIT",
        "BEGIN; CREATE TABLE o (LIKE t INCLUDING ALL); ALTER TABLE t RENAME TO x; ALTER TABLE o RENAME TO t; COMMIT",
        "ALTER TABLE t RENAME TO other",
        "DROP TABLE t",
        "VACUUM FULL t",
        "ALTER TABLE t DROP COLUMN v",
        "BEGIN; ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text; COMMIT",
        "ALTER TABLE t RENAME COLUMN v TO w",
    ],
)
def test_a_change_between_snapshot_and_lock_is_noticed(
    database: Database, walsender: Connection, statement: str
) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    database.execute(statement)
    with pytest.raises(TransientError, match="changed while its copy was starting"):
        copying.run(table)
    assert copying.batches == []
    assert_nothing_left(database)


def test_the_danger_is_real(database: Database, walsender: Connection) -> None:
    """Without the check above a rewritten table copies as empty, and PostgreSQL says nothing."""
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    database.execute("ALTER TABLE t ALTER COLUMN v TYPE varchar(100) USING v || ''")
    assert copying.slot.snapshot_name is not None
    with copying.connect() as conn:
        import_snapshot(conn, copying.slot.snapshot_name)
        assert (
            copy_range(conn, table, CtidRange(table.name, 0, None, 0), copying.batches.append, copying.stop).rows == 0
        )


def test_a_column_added_between_snapshot_and_lock_does_no_harm(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    database.execute("ALTER TABLE t ADD COLUMN later int DEFAULT 7")
    assert copying.run(table).rows == 20000
    assert set(copying.rows()[0]) == {"id", "v"}


def test_a_table_read_after_the_snapshot_but_changed_is_noticed(database: Database, walsender: Connection) -> None:
    publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    database.execute("ALTER TABLE t ADD COLUMN later int DEFAULT 7")
    with pytest.raises(TransientError, match="columns changed"):
        copying.run(published(database))


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t DETACH PARTITION t_mid",
        "DROP TABLE t_low",
        "CREATE TABLE t_new PARTITION OF t FOR VALUES FROM (400) TO (500)",
        "CREATE TABLE t_high_2 PARTITION OF t_high FOR VALUES FROM (300) TO (400)",
        "TRUNCATE t_high_1",
    ],
)
def test_partitions_changed_between_snapshot_and_lock_are_noticed(
    database: Database, walsender: Connection, statement: str
) -> None:
    table = publish(database, *PARTITIONS)
    copying = Copying(database, walsender)
    database.execute(statement)
    with pytest.raises(TransientError, match="partitions changed"):
        copying.run(table)


class Altering:
    """An ALTER TABLE in another session, that waits for locks."""

    def __init__(self, database: Database, statement: str) -> None:
        self._database = database
        self._statement = statement
        self._thread = threading.Thread(target=lambda: database.execute(statement))

    def begin(self) -> None:
        """Returns when the statement waits for its lock."""
        self._thread.start()
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        while self._database.execute(waiting) == [(0,)]:
            pass

    def end(self) -> None:
        self._thread.join()


def test_an_alter_during_the_copy_waits_for_it(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    altering = Altering(database, "ALTER TABLE t ALTER COLUMN v TYPE varchar(100) USING v || ''")
    once = threading.Lock()

    def sink(batch: pa.RecordBatch) -> None:
        copying.batches.append(batch)
        if once.acquire(blocking=False):
            altering.begin()

    assert copying.run(table, 3, sink=sink).rows == 20000
    altering.end()
    assert len(copying.rows()) == 20000


def test_a_connection_does_not_queue_behind_an_alter_that_waits_for_the_first(
    database: Database, walsender: Connection
) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    altering = Altering(database, "ALTER TABLE t ADD COLUMN later int")
    opened: list[Connection] = []

    def open_one() -> Connection:
        if len(opened) == 1:
            altering.begin()
        opened.append(copying.connect())
        return opened[-1]

    assert copying.run(table, 4, open_one=open_one).rows == 20000
    assert len(opened) == 2
    altering.end()


def test_the_first_error_of_the_sink_ends_the_copy(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)

    def sink(batch: pa.RecordBatch) -> None:
        raise EtlError("the destination is full")

    with pytest.raises(EtlError, match="the destination is full"):
        copying.run(table, 4, sink=sink)
    assert_nothing_left(database)


def test_stop_ends_the_copy(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    with pytest.raises(Stopped):
        copying.run(table, 2, sink=lambda _: copying.stop.set())
    assert_nothing_left(database)


def test_stop_ends_the_wait_for_the_lock(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    with psycopg.connect(database.dsn) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        waiter = Altering(database, "SELECT 1")

        def stop() -> None:
            waiter.begin()
            copying.stop.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(Stopped):
            copying.run(table)
        stopper.join()
        waiter.end()
    assert_nothing_left(database)


def test_a_lost_connection_ends_the_copy(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'etl_test_copy'"

    def sink(_: pa.RecordBatch) -> None:
        database.execute(kill)

    with pytest.raises(SourceUnavailable):
        copying.run(table, 2, sink=sink)
    assert_nothing_left(database)


def test_the_snapshot_is_gone_with_its_connection(database: Database, walsender: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    walsender.close()
    # The server process that holds the snapshot ends a moment later.
    while database.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl_test_test'") != [(0,)]:
        pass
    with pytest.raises(TransientError, match="snapshot"):
        copying.run(table)
    assert_nothing_left(database)


def test_stop_is_heard_while_no_row_passes_the_filter(database: Database, walsender: Connection) -> None:
    table = publish(database, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    sleeping = replace(table, row_filter="pg_sleep(3600) IS NOT NULL")
    copying = Copying(database, walsender)
    is_asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"

    def stop_when_asleep() -> None:
        while database.execute(is_asleep) == [(0,)]:
            pass
        copying.stop.set()

    stopper = threading.Thread(target=stop_when_asleep)
    stopper.start()
    with pytest.raises(Stopped):
        copying.run(sleeping)
    stopper.join()
    assert_nothing_left(database)


def test_an_error_of_the_row_filter_quotes_no_value(database: Database, walsender: Connection) -> None:
    table = publish(database, "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('secret')")
    with pytest.raises(TableError) as caught:
        Copying(database, walsender).run(replace(table, row_filter="v::int = 1"))
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.table == "public.t"


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """A role with REPLICATION and no other right, gone with the test."""
    name = f"reader_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD 'secret'").format(sql.Identifier(name)))
    yield name
    database.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_reader(database: Database, reader: str) -> Callable[[], Connection]:
    dsn = make_conninfo(database.dsn, user=reader, password="secret")
    return lambda: connect(dsn, pipeline=PIPELINE, role="copy")


def grant(database: Database, reader: str, table: str) -> None:
    database.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.Identifier(table), sql.Identifier(reader)))


def test_a_table_that_may_not_be_read(database: Database, walsender: Connection, reader: str) -> None:
    table = publish(database, *MANY_ROWS)
    copying = Copying(database, walsender)
    with pytest.raises(TableError, match="permission denied") as caught:
        copying.run(table, open_one=as_reader(database, reader))
    assert "GRANT SELECT" in (caught.value.hint or "")


def test_rows_hidden_by_row_level_security_are_an_error(database: Database, walsender: Connection, reader: str) -> None:
    table = publish(
        database, *MANY_ROWS, "ALTER TABLE t ENABLE ROW LEVEL SECURITY", "CREATE POLICY half ON t USING (id % 2 = 0)"
    )
    grant(database, reader, "t")
    copying = Copying(database, walsender)
    with pytest.raises(TableError, match="row-level security") as caught:
        copying.run(table, open_one=as_reader(database, reader))
    assert "BYPASSRLS" in (caught.value.hint or "")


def test_the_root_may_be_read_but_not_its_partitions(database: Database, walsender: Connection, reader: str) -> None:
    table = publish(database, *PARTITIONS)
    grant(database, reader, "t")
    copying = Copying(database, walsender)
    assert copying.run(table, open_one=as_reader(database, reader)).rows == 300
    assert {row["id"] for row in copying.rows()} == set(range(300))


def test_ranges_cover_the_file_and_the_last_is_open(database: Database, conn: Connection) -> None:
    table = publish(database, *MANY_ROWS)
    ranges = plan_ranges(conn, table, SMALL_RANGES)
    assert [part.first for part in ranges] == list(range(0, 8 * len(ranges), 8))
    assert [part.end for part in ranges] == [*range(8, 8 * len(ranges), 8), None]
    assert sum(part.size for part in ranges) == database.execute("SELECT pg_relation_size('t')")[0][0]


def test_a_server_without_room_for_more_connections(database: Database, walsender: Connection, reader: str) -> None:
    table = publish(database, *MANY_ROWS)
    grant(database, reader, "t")
    database.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1").format(sql.Identifier(reader)))
    copying = Copying(database, walsender)
    assert copying.run(table, 4, open_one=as_reader(database, reader)).rows == 20000
