"""What older rows hold in an added column: compared with what they do hold, on a real server."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from etl_core.errors import SourceChanged
from etl_core.identifiers import TableId
from etl_core.source.connection import Connection
from etl_core.source.fill import Fill, FillKind, added_column_fill, attributes_now
from etl_core.source.fingerprint import look
from etl_core.testing.database import Database

NULL, UNKNOWN = Fill(FillKind.NULL), Fill(FillKind.UNKNOWN)


def constant(text: str) -> Fill:
    return Fill(FillKind.CONSTANT, text)


ADDED: Mapping[str, Fill] = {
    "c text": NULL,
    "c text DEFAULT 'it''s, {ok} \\ \"q\" NULL'": constant('it\'s, {ok} \\ "q" NULL'),
    "c text DEFAULT ''": constant(""),
    "c text DEFAULT 'NULL'": constant("NULL"),
    "c int NOT NULL DEFAULT 1 + 1": constant("2"),
    "c timestamptz DEFAULT '2024-03-01 12:00+02'": constant("2024-03-01 10:00:00+00"),
    "c interval DEFAULT '1 year 2 days'": constant("P1Y2D"),
    "c bytea DEFAULT '\\x00ff'": constant("\\x00ff"),
    'c jsonb DEFAULT \'{"a": "b,\\"c"}\'': constant('{"a": "b,\\"c"}'),
    'c text[] DEFAULT \'{"x,y",NULL,"q\\"z"}\'': constant('{"x,y",NULL,"q\\"z"}'),
    "c int[] DEFAULT '{{1,2},{3,4}}'": constant("{{1,2},{3,4}}"),
    "c box DEFAULT '(3,4),(1,2)'": constant("(3,4),(1,2)"),
    "c numeric(10,3) DEFAULT 1.5": constant("1.500"),
    "c float8 DEFAULT 0.1": constant("0.1"),
    "c uuid DEFAULT gen_random_uuid()": UNKNOWN,
    "c int GENERATED ALWAYS AS IDENTITY": UNKNOWN,
    "c bigserial": UNKNOWN,
}

LATER: Mapping[str, tuple[Sequence[str], Fill]] = {
    "default_set": (["ADD c int", "ALTER c SET DEFAULT 5"], NULL),
    "filled": (["ADD c int", "UPDATE {t} SET c = 1", "ALTER c SET NOT NULL"], NULL),
    "default_dropped": (["ADD c int DEFAULT 5", "ALTER c DROP DEFAULT"], constant("5")),
    "default_changed": (["ADD c int DEFAULT 5", "ALTER c SET DEFAULT 6"], constant("5")),
    "per_row_dropped": (["ADD c uuid NOT NULL DEFAULT gen_random_uuid()", "ALTER c DROP DEFAULT"], UNKNOWN),
    "identity_dropped": (["ADD c int GENERATED ALWAYS AS IDENTITY", "ALTER c DROP IDENTITY"], UNKNOWN),
    "expression_dropped": (["ADD c int GENERATED ALWAYS AS (id + 1) STORED", "ALTER c DROP EXPRESSION"], UNKNOWN),
    "rewritten": (["ADD c int DEFAULT 5", "VACUUM FULL {t}"], UNKNOWN),
    "rewritten_and_dropped": (["ADD c int DEFAULT 5", "VACUUM FULL {t}", "ALTER c DROP DEFAULT"], UNKNOWN),
    "moved": (["ADD c int", "CLUSTER {t} USING {t}_pkey"], UNKNOWN),  # NULL, but the file is another one
    "was_there": ([], UNKNOWN),
}


def fill(conn: Connection, database: Database, table: str, alterations: Sequence[str], column: str = "c") -> Fill:
    """What `added_column_fill` says after the alterations of a table that has rows. Proves what it claims to know."""
    [(oid,)] = database.execute(f"SELECT '{table}'::regclass::oid::bigint")
    before = look(conn, "p", [TableId(oid)]).tables[TableId(oid)]
    for alteration in alterations:
        is_clause = alteration.startswith(("ADD ", "ALTER "))
        database.execute(f"ALTER TABLE {table} {alteration}" if is_clause else alteration.format(t=table))
    [(attnum,)] = database.execute(
        "SELECT attnum FROM pg_attribute WHERE attrelid = %s AND attname = %s", [oid, column]
    )
    found = added_column_fill(conn, TableId(oid), attnum, before)
    assert added_column_fill(conn, TableId(oid), attnum, None) == UNKNOWN
    is_filled = any(alteration.startswith("UPDATE") for alteration in alterations)
    if found.kind is not FillKind.UNKNOWN and not is_filled:
        # On our connection, which prints intervals as the catalog is read.
        held = conn.execute(f"SELECT DISTINCT {column}::text FROM public.{table}").fetchall()
        assert held == [(found.text,)]
    return found


def test_an_added_column(database: Database, conn: Connection) -> None:
    found = {}
    for number, column in enumerate(ADDED):
        database.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY); INSERT INTO t{number} VALUES (1), (2)")
        found[column] = fill(conn, database, f"t{number}", [f"ADD COLUMN {column}"])
    assert found == ADDED


def test_what_came_after_the_column(database: Database, conn: Connection) -> None:
    found = {}
    for table, (alterations, _) in LATER.items():
        extra = ", c int" if table == "was_there" else ""
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY{extra}); INSERT INTO {table} VALUES (1), (2)")
        found[table] = fill(conn, database, table, alterations)
    assert found == {table: expected for table, (_, expected) in LATER.items()}


@pytest.mark.parametrize("definition", ["AS int DEFAULT 3", "AS int CHECK (VALUE > 0)", "AS int DEFAULT 3 NOT NULL"])
def test_a_domain_can_bring_a_default(database: Database, conn: Connection, definition: str) -> None:
    """Versions differ in whether they rewrite the table for it; saying NULL where there is a 3 is what must not be."""
    database.execute(f"CREATE DOMAIN d {definition}; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    found = fill(conn, database, "t", ["ADD COLUMN c d"])
    held = database.execute("SELECT c::text FROM t")[0][0]
    assert found.kind is FillKind.UNKNOWN or found.text == held


def test_the_partitions_have_to_agree(database: Database, conn: Connection) -> None:
    def create(root: str) -> None:
        database.execute(f"CREATE TABLE {root} (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        for part in range(2):
            values = f"FROM ({part * 10}) TO ({part * 10 + 10})"
            database.execute(f"CREATE TABLE {root}_{part} PARTITION OF {root} FOR VALUES {values}")
        database.execute(f"INSERT INTO {root} VALUES (1), (11)")

    for root in ("a", "b", "c", "d"):
        create(root)
    assert fill(conn, database, "a", ["ADD c int DEFAULT 5"]) == constant("5")
    assert fill(conn, database, "b", ["ADD c int"]) == NULL
    assert fill(conn, database, "c", ["ADD c int DEFAULT 5", "VACUUM FULL c_1"]) == UNKNOWN
    # What a partition that came later holds was sent.
    later = "CREATE TABLE d_2 PARTITION OF d FOR VALUES FROM (20) TO (30)"
    assert fill(conn, database, "d", ["ADD c int", later]) == NULL


def test_a_column_that_is_gone(database: Database, conn: Connection) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, c int); ALTER TABLE t DROP COLUMN c")
    [(oid,)] = database.execute("SELECT 't'::regclass::oid::bigint")
    [before, gone] = attributes_now(conn, TableId(oid)).items()
    assert (before[0], gone) == (1, (2, None))
    database.execute("ALTER TABLE t RENAME id TO key")
    assert (attributes_now(conn, TableId(oid))[1] or 0) > (before[1] or 0)
    with pytest.raises(SourceChanged):
        added_column_fill(conn, TableId(oid), 2, None)
