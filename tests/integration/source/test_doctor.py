"""The preflight against a real server: what it finds, and that its SQL mends it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_core.identifiers import TableName
from etl_core.source.connection import Connection, connect
from etl_core.source.doctor import Finding, Severity, examine
from etl_core.source.publication import told_harms
from etl_core.source.slot import create_slot
from etl_core.table_pattern import TableSelection
from etl_core.testing.database import Database
from tests.unknown_type import CREATE_THING


def name(table: str) -> TableName:
    return TableName("public", table)


def found(
    database: Database, *tables: str, check: str | None = None, dsn: str | None = None, pipeline: str = "shop"
) -> list[Finding]:
    """What is not in order, of one check or of all."""
    selection = TableSelection(tuple(name(table) for table in tables)) if tables else None
    findings = examine(dsn or database.dsn, pipeline=pipeline, publication="p", selection=selection)
    assert findings
    return [
        finding
        for finding in findings
        if finding.severity in (Severity.WARNING, Severity.UNSAFE) and check in (None, finding.check)
    ]


def mend(database: Database, findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.sql is not None, finding
        for statement in finding.sql.split("; "):
            database.execute(statement)


def test_a_source_in_order(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    before = database.execute("SELECT count(*) FROM pg_class")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    findings = examine(database.dsn, pipeline="shop", publication="p")
    assert not [finding for finding in findings if finding.severity in (Severity.WARNING, Severity.UNSAFE)]
    checks = {finding.check for finding in findings if finding.severity is Severity.OK}
    assert checks >= {"version", "wal_level", "max_replication_slots", "max_wal_senders", "replication", "slot"}
    assert checks >= {"publication", "tables"}
    assert database.execute("SELECT count(*) FROM pg_class") == before, "it left something behind"
    assert database.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(0,)]


def test_a_source_that_is_not_there(database: Database) -> None:
    (finding,) = examine(make_conninfo(database.dsn, port=1), pipeline="shop", publication="p")
    assert (finding.severity, finding.check) == (Severity.UNSAFE, "connection")
    password = psycopg.conninfo.conninfo_to_dict(database.dsn).get("password")
    assert not password or str(password) not in finding.message


def test_a_missing_publication_with_rights_to_create_it(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert found(database, "t") == []
    (finding,) = found(database)
    assert (finding.severity, finding.check) == (Severity.UNSAFE, "publication")
    mend(database, [finding])
    assert found(database) == []


def test_a_table_that_is_not_published(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("CREATE TABLE u (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    findings = found(database, "t", "u")
    assert [finding.severity for finding in findings] == [Severity.UNSAFE]
    mend(database, findings)
    assert found(database, "t", "u") == []


def test_operations_that_are_not_published(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert, update')")
    findings = found(database)
    assert "delete, truncate" in findings[0].message
    mend(database, findings)
    assert found(database) == []


@pytest.mark.parametrize("table", ["missing", "seen", "unlogged"])
def test_what_cannot_be_replicated(database: Database, table: str) -> None:
    database.execute("CREATE VIEW seen AS SELECT 1 AS id")
    database.execute("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p")
    findings = found(database, table, check="tables")
    assert [finding.severity for finding in findings] == [Severity.UNSAFE]
    assert table in findings[0].message


@pytest.mark.parametrize(
    ("statements", "severity", "mendable"),
    [
        ([], Severity.UNSAFE, True),
        (["ALTER TABLE t ADD UNIQUE (a)"], Severity.UNSAFE, True),
        (["ALTER TABLE t REPLICA IDENTITY FULL"], Severity.NOTE, False),
        (["ALTER TABLE t ADD PRIMARY KEY (a)", "ALTER TABLE t REPLICA IDENTITY NOTHING"], Severity.UNSAFE, True),
        (["ALTER TABLE t REPLICA IDENTITY NOTHING"], Severity.UNSAFE, True),
    ],
)
def test_tables_without_an_identity(
    database: Database, statements: list[str], severity: Severity, mendable: bool
) -> None:
    database.execute("CREATE TABLE t (a int NOT NULL, b int)")
    for statement in statements:
        database.execute(statement)
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    findings = examine(database.dsn, pipeline="shop", publication="p")
    (finding,) = [finding for finding in findings if finding.check == "replica_identity"]
    assert (finding.severity, finding.sql is not None) == (severity, mendable)
    assert found(database) == [finding] * mendable
    if mendable:
        mend(database, [finding])
        assert [left for left in found(database) if left.severity is Severity.UNSAFE] == []
        database.execute("INSERT INTO t VALUES (1, 1); UPDATE t SET b = 2; DELETE FROM t")


def test_a_partition_with_another_identity(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE leaf PARTITION OF t FOR VALUES FROM (0) TO (10)")
    database.execute("ALTER TABLE leaf REPLICA IDENTITY NOTHING")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    (finding,) = found(database)
    assert finding.check == "replica_identity"


def test_a_partition_that_sends_less_than_whole_rows(database: Database) -> None:
    """The root has no key and the identity FULL; a partition sends the keys of its own alone."""
    database.execute("CREATE TABLE t (id int, n int) PARTITION BY RANGE (id); ALTER TABLE t REPLICA IDENTITY FULL")
    database.execute(
        "CREATE TABLE leaf PARTITION OF t FOR VALUES FROM (0) TO (10); ALTER TABLE leaf ADD PRIMARY KEY (id)"
    )
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    assert any("an update or delete stops the table" in finding.message for finding in found(database))
    database.execute("ALTER TABLE leaf REPLICA IDENTITY FULL")
    assert found(database) == []


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """The connection string of a role without rights, gone with the test."""
    role = f"role_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(role)))
    yield make_conninfo(database.dsn, user=role, password="secret")
    database.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
    database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_rights_are_found_missing_and_mended(database: Database, reader: str) -> None:
    database.execute("CREATE SCHEMA private")
    database.execute("CREATE TABLE private.t (id int PRIMARY KEY)")
    database.execute("ALTER TABLE private.t ENABLE ROW LEVEL SECURITY")
    database.execute("CREATE PUBLICATION p FOR TABLE private.t WITH (publish_via_partition_root = true)")
    findings = found(database, dsn=reader)
    assert {finding.check for finding in findings} == {"replication", "rights", "row_security"}
    assert {finding.severity for finding in findings} == {Severity.UNSAFE}
    mend(database, findings)
    assert found(database, dsn=reader) == []


def test_a_table_that_is_not_there_is_all_that_is_said(database: Database) -> None:
    """It was followed by "postgres may not create the publication: it lacks CREATE", which it did not."""
    (finding,) = found(database, "nowhere")
    assert (finding.check, finding.severity) == ("tables", Severity.UNSAFE)
    assert "nowhere" in finding.message


def test_a_publication_somebody_else_has_to_create(database: Database, reader: str) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    findings = found(database, "t", dsn=reader, check="publication")
    assert "does not own public.t" in findings[0].message
    mend(database, findings)
    assert found(database, "t", dsn=reader, check="publication") == []


def test_a_slot_of_something_else(database: Database, conn: Connection) -> None:
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    slot = f"etl_{database.name}"
    conn.execute("SELECT pg_create_physical_replication_slot(%s)", (slot,))
    try:
        (finding,) = found(database, check="slot", pipeline=database.name)
        assert finding.severity is Severity.UNSAFE
        assert finding.sql is None, "dropping what is not ours is no mending"
    finally:
        conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))


def test_our_slot_is_seen(database: Database, walsender: Connection) -> None:
    database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
    create_slot(walsender, f"etl_{database.name}", export_snapshot=False)
    findings = examine(database.dsn, pipeline=database.name, publication="p")
    (finding,) = (finding for finding in findings if finding.check == "slot")
    assert (finding.severity, "is reserved" in finding.message) == (Severity.OK, True)


def test_types_carried_as_bytes_are_noted(database: Database) -> None:
    database.execute(f"{CREATE_THING} CREATE TABLE t (id int PRIMARY KEY, p thing)")
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    findings = examine(database.dsn, pipeline="shop", publication="p")
    (finding,) = (finding for finding in findings if finding.check == "types")
    assert (finding.severity, "public.t.p (public.thing)" in finding.message) == (Severity.NOTE, True)


def test_many_findings_of_one_kind_are_counted(database: Database) -> None:
    database.execute("DO $$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('CREATE TABLE t%s (v text)', i); END LOOP; END $$")
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    findings = found(database, check="replica_identity")
    assert len(findings) == 11
    assert "20 more tables" in findings[-1].message


def test_it_does_not_depend_on_the_environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.execute("CREATE PUBLICATION p FOR ALL TABLES")
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=public -c default_transaction_read_only=on")
    assert found(database) == []


def test_its_sql_leaves_the_source_working(database: Database) -> None:
    database.execute("CREATE TABLE log (v text)")
    database.execute("CREATE TABLE good (id int PRIMARY KEY, v text)")
    database.execute("CREATE TABLE child () INHERITS (good)")
    (creation,) = found(database, check="publication")
    assert creation.sql is not None
    database.execute(creation.sql)
    database.execute("INSERT INTO log VALUES ('a'); INSERT INTO child VALUES (1, 'a')")
    database.execute("UPDATE log SET v = 'b'; UPDATE good SET v = 'b'; DELETE FROM log")
    coverage, identity = found(database, "log", "good")
    assert (coverage.check, coverage.sql) == ("publication", None), "log is not added by our SQL"
    assert (identity.severity, "would refuse" in identity.message) == (Severity.UNSAFE, True)
    mend(database, [identity])
    (coverage,) = found(database, "log", "good", check="publication")
    mend(database, [coverage])
    database.execute("INSERT INTO log VALUES ('a'); UPDATE log SET v = 'b'")


def test_a_key_dropped_later_is_found(database: Database) -> None:
    database.execute("CREATE TABLE t (id int, CONSTRAINT k PRIMARY KEY (id))")
    database.execute("CREATE UNIQUE INDEX u ON t (id)")
    database.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX u")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    assert found(database) == []
    database.execute("DROP INDEX u")
    (finding,) = found(database)
    assert (finding.severity, "lost the index" in finding.message) == (Severity.UNSAFE, True)
    mend(database, [finding])
    assert found(database) == []


def test_a_generated_column_beside_identity_full(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED)")
    database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true)")
    database.execute("INSERT INTO t (id) VALUES (1)")
    findings = found(database, check="replica_identity")
    if database.execute("SELECT current_setting('server_version_num')::int") < [(180000,)]:
        assert findings == []
    else:
        assert [finding.severity for finding in findings] == [Severity.UNSAFE]
        mend(database, findings)
    database.execute("UPDATE t SET id = 2")


def test_what_is_left_out_is_noted(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED)")
    database.execute("CREATE TABLE child () INHERITS (t)")
    database.execute("CREATE PUBLICATION p FOR TABLE ONLY t")
    notes = [one.message for one in examine(database.dsn, pipeline="shop", publication="p") if one.check == "left_out"]
    assert ["public.t" in note and ("g" in note or "public.child" in note) for note in notes] == [True, True]


RESTRICTED = {
    "a filter beside the key": ("", "WHERE (v <> 'x')", "row filter"),
    "a list without the key": ("", "(v)", "column list"),
    "a list without the key, and a filter": ("", "(v) WHERE (id > 0)", "column list"),
    "a list without the key, and a filter beside it": ("", "(v) WHERE (v <> 'x')", "column list"),
    "a list with the key, and a filter beside it": ("", "(id, v) WHERE (v <> 'x')", "row filter"),
    "a list and identity FULL": ("ALTER TABLE t REPLICA IDENTITY FULL", "(id, v)", "FULL"),
    "a list without the key and identity FULL": ("ALTER TABLE t REPLICA IDENTITY FULL", "(v)", "FULL"),
    "a filter beside the key, and a generated column": (
        "ALTER TABLE t ADD g int GENERATED ALWAYS AS (u + 1) STORED",
        "WHERE (v <> 'x')",
        "row filter",
    ),
    "a filter beside an identity index": ("ALTER TABLE t REPLICA IDENTITY USING INDEX u", "WHERE (id > 0)", "filter"),
}


@pytest.mark.parametrize("case", RESTRICTED)
def test_a_filter_or_list_for_which_the_source_refuses_changes(database: Database, case: str) -> None:
    needs_restrictions(database)
    identity, restriction, why = RESTRICTED[case]
    database.execute("CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL, v text, w text)")
    database.execute("CREATE TABLE other (LIKE t INCLUDING ALL); INSERT INTO t VALUES (1, 1, 'a', 'b')")
    database.execute("CREATE UNIQUE INDEX u ON t (u)")
    if identity:
        database.execute(identity)
    database.execute(f"CREATE PUBLICATION p FOR TABLE other, t {restriction} WITH (publish_via_partition_root = true)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("UPDATE t SET u = u")
    assert any("UNSAFE" in sentence and why in sentence for sentence in told(database))
    for _ in range(2):  # with both, one after the other
        findings = found(database)
        if not findings:
            break
        assert {finding.severity for finding in findings} == {Severity.UNSAFE}
        assert "refuses every UPDATE and DELETE of it while p publishes it" in findings[0].message
        assert "public.t" in findings[0].message
        mend(database, findings[:1])
    database.execute("UPDATE t SET u = u; DELETE FROM t")
    assert told(database) == []
    query = "SELECT r.prqual IS NOT NULL FROM pg_publication_rel r WHERE r.prrelid = 't'::regclass"
    if "(id > 0)" in restriction:
        assert database.execute(query) == [(True,)], "a filter that does no harm was taken away"


def told(database: Database) -> list[str]:
    with connect(database.dsn, pipeline="shop", role="test") as connection:
        return told_harms(connection, "p", [name("t"), name("other")])


def needs_restrictions(database: Database) -> None:
    if database.execute("SELECT current_setting('server_version_num')::int") < [(150000,)]:
        pytest.skip("column lists and row filters came with PostgreSQL 15")


def test_a_filter_of_the_root_counts_for_its_partitions(database: Database) -> None:
    needs_restrictions(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE part PARTITION OF t FOR VALUES FROM (0) TO (9); INSERT INTO t VALUES (1, 'a')")
    database.execute("CREATE PUBLICATION p FOR TABLE t WHERE (v <> 'x') WITH (publish_via_partition_root = true)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("UPDATE t SET v = 'b'")
    (finding,) = found(database)
    assert (finding.severity, "public.part" in finding.message) == (Severity.UNSAFE, True)
    mend(database, [finding])
    database.execute("UPDATE t SET v = 'b'")


def test_the_plan_names_what_a_list_and_a_filter_leave_out(database: Database) -> None:
    needs_restrictions(database)
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, kept text, hidden text, g int GENERATED ALWAYS AS (1) STORED)"
    )
    database.execute("CREATE TABLE everything (id int PRIMARY KEY, g text)")
    database.execute("CREATE PUBLICATION p FOR TABLE t (id, kept) WHERE (id > 0), everything WHERE (true)")
    notes = [one.message for one in examine(database.dsn, pipeline="shop", publication="p") if one.check == "left_out"]
    assert notes == [
        "public.everything: publication p has a row filter: rows that do not match it will not arrive",
        "public.t: the column list of publication p leaves out columns, which will not arrive: hidden, g",
        "public.t: publication p has a row filter on id: rows that do not match it will not arrive",
    ]
    assert found(database, check="replica_identity") == []
