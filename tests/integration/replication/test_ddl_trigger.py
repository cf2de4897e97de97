"""With the event trigger in the source every ALTER TABLE is known where it happened, with or without rows after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from etl_core.errors import SourceRefused
from etl_core.identifiers import TableName
from etl_core.source.ddl_trigger import INSTALL, REMOVE, run_statements, trigger_state
from etl_core.state.table_state import TableState
from tests.integration.replication.test_schema_changes import BEHIND, CARRIED, REFUSED, alter, create

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

TOLD = {"swapped", "came_again_and_was_renamed", "name_given_to_another"}
"""Copied again where the trigger is not there, and carried where it is."""


@pytest.fixture
def told(lab: Lab) -> Lab:
    """A source with the trigger, in a database of its own."""
    with lab.connect() as connection:
        connection.autocommit = True
        connection.execute(INSTALL.encode())
    return lab


@pytest.mark.parametrize("streaming", [pytest.param(True, id="streaming"), pytest.param(False, id="behind")])
def test_what_a_table_has_become_is_told(told: Lab, streaming: bool) -> None:
    lab, cases = told, {**CARRIED, **REFUSED, **BEHIND}
    lab.execute("CREATE TABLE mark (id serial PRIMARY KEY)")
    create(lab, cases)
    lab.publish()
    pipeline = lab.synced()
    if streaming:
        with lab.running(pipeline, pipeline.stream):
            alter(lab, cases, pipeline)
    else:
        alter(lab, cases, None)
    lab.caught_up(pipeline)
    # Rows of before the first message are described as without the trigger, by a catalog that may be ahead.
    carried = TOLD | CARRIED.keys() | ({"same_type"} if streaming else set())
    assert not {table: str(error) for table, error in pipeline.observer.errors.items() if table in carried}
    assert pipeline.observer.errors.keys() <= REFUSED.keys() | BEHIND.keys()
    lab.assert_equal(pipeline, errored=sorted(pipeline.observer.errors))
    lab.assert_equal(lab.synced())


def test_a_change_without_rows_reaches_the_destination(told: Lab) -> None:
    lab = told
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b text); CREATE TABLE o (id int PRIMARY KEY)")
    lab.execute("CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE t ADD m mood, ADD gone int; INSERT INTO t VALUES (1, 2)")
    lab.publish()
    pipeline = lab.synced()
    lab.execute(
        "BEGIN; ALTER TABLE t RENAME TO between; ALTER TABLE between RENAME TO t;"
        "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b;"
        "ALTER TABLE t ADD c int DEFAULT 7, DROP gone; DROP TYPE mood CASCADE; COMMIT"
    )
    lab.execute("ALTER TABLE t ADD CONSTRAINT positive CHECK (id > 0); INSERT INTO o VALUES (1)")
    lab.caught_up(pipeline)
    assert not pipeline.observer.errors
    assert [name for name, *_ in lab.rows("DESCRIBE public.t")] == ["id", "b", "a", "c"]
    assert lab.rows("SELECT id, b, a, c FROM public.t") == [(1, 2, None, 7)]
    lab.assert_equal(pipeline)


def test_whoever_may_alter_a_table_may_do_so_still(told: Lab) -> None:
    lab = told
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.execute("CREATE ROLE nobody_special; ALTER TABLE t OWNER TO nobody_special")
        connection.execute(
            "DO $$DECLARE f regprocedure; BEGIN"
            " FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP"
            " EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END$$"
        )
        connection.execute("SET ROLE nobody_special")
        connection.execute("ALTER TABLE t RENAME a TO b")
        connection.execute("RESET ROLE; ALTER TABLE t OWNER TO CURRENT_USER; DROP ROLE nobody_special")
    lab.caught_up(pipeline)
    assert [name for name, *_ in lab.rows("DESCRIBE public.t")] == ["id", "b"]


def test_what_is_altered_through_a_parent_is_told_of_its_children(told: Lab) -> None:
    lab = told
    lab.execute(
        "CREATE TABLE p (id int PRIMARY KEY, a int, b int) PARTITION BY RANGE (id);"
        "CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO t VALUES (1, 10, 20)"
    )
    lab.execute("CREATE PUBLICATION lab_pub FOR TABLE t")
    pipeline = lab.synced()
    for statement in (
        "ALTER TABLE t SET (fillfactor = 90)",
        "BEGIN; ALTER TABLE p RENAME a TO x; ALTER TABLE p RENAME b TO a; ALTER TABLE p RENAME x TO b; COMMIT",
        "INSERT INTO t (id, a, b) VALUES (2, 21, 11)",
    ):
        lab.execute(statement)
    lab.caught_up(pipeline)
    assert not pipeline.observer.errors
    assert lab.rows("SELECT id, a, b FROM public.t ORDER BY id") == [(1, 20, 10), (2, 21, 11)]


def test_what_anybody_may_write_into_the_wal_alters_nothing(told: Lab) -> None:
    lab = told
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1)")
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.execute("CREATE ROLE mallory; SET ROLE mallory")
        connection.execute("SELECT pg_logical_emit_message(true, 'etl_ddl', 'of nobody')")
        connection.execute(
            "SELECT pg_logical_emit_message(true, 'etl_ddl', json_build_object("
            " 'trigger', (SELECT string_agg(concat_ws(':', evtname, oid, xmin, evtenabled), ' ' ORDER BY evtname)"
            "             FROM pg_event_trigger WHERE evtname LIKE 'etl_ddl%'),"
            " 'tables', json_build_array(json_build_object('id', 't'::regclass::oid::bigint, 'namespace', 'public',"
            "   'name', 't', 'identity', 'd', 'columns', '[[1,\"id\",23,-1,false,true]]'::json)))::text)"
        )
        connection.execute("RESET ROLE; DROP ROLE mallory; INSERT INTO t VALUES (2, 2)")
    lab.assert_equal(pipeline)
    assert not pipeline.observer.errors


def test_nothing_is_believed_of_a_time_without_the_trigger(told: Lab) -> None:
    """Two columns change places while it is off: what was told before is not what the columns are now."""
    lab = told
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1, 10, 20)")
    lab.publish()
    pipeline = lab.synced()
    for statement in (
        "ALTER TABLE t ADD c int",
        "INSERT INTO t VALUES (2, 10, 20, 0)",
        "ALTER EVENT TRIGGER etl_ddl DISABLE",
        "ALTER TABLE t RENAME a TO x",
        "ALTER TABLE t RENAME b TO a",
        "ALTER TABLE t RENAME x TO b",
        "UPDATE t SET a = 21 WHERE id = 1",
        "ALTER EVENT TRIGGER etl_ddl ENABLE ALWAYS",
        "ALTER TABLE t RENAME c TO d",
        "INSERT INTO t VALUES (3, 30, 40, 1)",
    ):
        lab.execute(statement)
    lab.caught_up(pipeline)
    lab.assert_equal(lab.synced())


def test_the_command_prints_and_installs(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    lab.publish()
    log = lab.path.with_name("etl.log")

    def doctor(action: str) -> int:
        return lab.process("doctor", f"--ddl-trigger{action}").wait(300)

    assert doctor("=print") == 0
    assert "CREATE EVENT TRIGGER etl_ddl" in log.read_text()
    assert not lab.execute("SELECT evtname FROM pg_event_trigger WHERE evtname LIKE 'etl_ddl%'")
    assert doctor("") == 0
    assert len(lab.execute("SELECT evtname FROM pg_event_trigger WHERE evtname LIKE 'etl_ddl%'")) == 2
    assert doctor("=remove") == 0
    assert not lab.execute("SELECT evtname FROM pg_event_trigger WHERE evtname LIKE 'etl_ddl%'")


def test_the_trigger_comes_and_goes(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
    lab.publish()
    pipeline = lab.synced()
    with pipeline.source.connect("doctor") as connection:
        assert trigger_state(connection) is None
        run_statements(connection, INSTALL)
        connection.execute("CREATE ROLE lowly; SET ROLE lowly")
        with pytest.raises(SourceRefused, match="event trigger cannot be created") as caught:
            run_statements(connection, INSTALL.replace("CREATE SCHEMA IF NOT EXISTS etl_ddl;", ""))
        assert "superuser" in str(caught.value.hint)
        connection.execute("RESET ROLE; DROP ROLE lowly")
        first = trigger_state(connection)
        assert first is not None
        run_statements(connection, INSTALL)
        assert trigger_state(connection) not in (None, first), "installed again, it is another one"
        run_statements(connection, REMOVE)
        assert trigger_state(connection) is None
    lab.execute("ALTER TABLE t RENAME a TO b; INSERT INTO t VALUES (1, 1)")
    lab.execute("SELECT pg_logical_emit_message(true, 'etl_ddl', 'of nobody we know')")
    lab.assert_equal(pipeline)
    assert pipeline.find(TableName("public", "t")).state is TableState.READY
