"""What a person reads when something is wrong: one sentence, one hint, the right exit status, and no secret."""

from __future__ import annotations

import json

import duckdb
import pytest

from tests.integration.cli.conftest import Project


def test_a_wrong_password(project: Project) -> None:
    dsn = project.database.server.dsn(project.database.name, password="hunter2")
    project.configure(dsn=dsn)
    for command in ("sync", "run", "verify"):
        refused = project.run(command)
        assert refused.status == 1
        assert refused.err.startswith("etl: cannot connect to 127.0.0.1:")
        assert "password authentication failed" in refused.err
        assert "\n  → check the user and the password" in refused.err
        assert "hunter2" not in refused.err
        assert len(refused.err.splitlines()) == 2
    assert project.run("doctor").status == 1


def test_a_stopped_server(project: Project) -> None:
    project.run("run", "--until-caught-up")
    project.database.server.stop()
    for command in (["sync"], ["run", "--until-caught-up"], ["stream", "--for", "5s"], ["teardown", "--yes"]):
        lost = project.run(*command)
        assert lost.status == 1, command
        assert lost.err.startswith("etl: cannot connect to "), command
        way_out = "etl teardown then forgets" if command[0] == "teardown" else "  → check that the server runs"
        assert way_out in lost.err
    known = project.run("status")
    assert known.status == 2
    assert "source       cannot connect to " in known.out
    assert "public.orders  ready" in known.out
    told = json.loads(project.run("status", "--json").out)
    assert (told["health"], told["reasons"]) == ("unknown", ["the source did not answer"])
    assert told["source"]["reachable"] is False
    assert told["slot"] is None
    assert told["stream"]["active"] is None
    assert len(told["tables"]) == 2
    project.database.server.start()
    assert project.run("verify").status == 0


def test_a_role_without_rights_is_told_the_sql(project: Project) -> None:
    role = f"{project.database.name}_reader"
    project.database.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'pencil'")
    try:
        project.database.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        project.configure(dsn=project.database.server.dsn(project.database.name, user=role, password="pencil"))
        refused = project.run("sync")
        assert refused.status == 1
        assert "etl: publication shop_pub may not be created" in refused.err
        statement = refused.err.partition("run: ")[2].strip()
        assert statement.startswith('CREATE PUBLICATION "shop_pub" FOR TABLE')
        assert "pencil" not in refused.err
        project.database.execute(statement)
        assert project.run("run", "--until-caught-up").status == 0
        assert project.run("verify").status == 0
        project.run("teardown", "--yes")
    finally:
        project.database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_unknown_table_is_a_wrong_configuration(project: Project) -> None:
    project.configure(tables="[public.orders, public.nope]")
    wrong = project.run("sync")
    assert wrong.status == 2
    assert wrong.err.startswith("etl: etl.yaml:5: source.tables: the source has no table public.nope\n  → ")
    assert project.database.execute("SELECT count(*) FROM pg_publication") == [(0,)]


@pytest.mark.parametrize("command", [["sync", "--table"], ["verify", "--table"], ["resync"], ["pause"], ["resume"]])
def test_an_unknown_table_on_the_command_line_touches_nothing(project: Project, command: list[str]) -> None:
    project.run("run", "--until-caught-up")
    also = ["--table"] if "--table" in command else []
    wrong = project.run(*command, "orders", *also, "nope")
    assert wrong.status == 2
    assert "etl: public.nope is not a table of pipeline" in wrong.err
    assert "  → its tables: public.items, public.orders" in wrong.err
    assert "public.orders  ready" in project.run("status").out


def test_a_destination_out_of_reach_does_not_hide_the_rest(project: Project) -> None:
    project.run("run", "--until-caught-up")
    project.warehouse.write_bytes(b"this is no database file" * 1000)
    known = project.run("status")
    assert known.status == 1
    assert "destination  " in known.out
    assert "is not a DuckDB database" in known.out
    assert "public.orders  ready" in known.out
    assert project.run("run", "--until-caught-up").status == 1


def test_a_source_that_was_replaced_is_refused(project: Project) -> None:
    project.run("run", "--until-caught-up")
    project.database.execute("SELECT pg_drop_replication_slot(%s)", (project.slot,))
    refused = project.run("run")  # also without a bound: this does not pass by itself
    assert refused.status == 1
    assert f"replication slot {project.slot} is gone" in refused.err
    project.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (project.slot,))
    assert "is confirmed up to" in project.run("run").err
    with duckdb.connect(project.warehouse, read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM public.orders").fetchall() == [(1000,)]
