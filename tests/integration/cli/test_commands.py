"""Every command on a real source, one after another as a person uses them."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest

from tests.integration.cli.conftest import Project
from tests.unknown_type import CREATE_THING


def test_the_whole_way(project: Project) -> None:
    before = project.run("status")
    assert before.status == 0
    assert "nothing has been replicated yet: etl run" in before.out
    assert not project.warehouse.exists()

    healthy = project.run("doctor")
    assert healthy.status == 0, healthy.out
    assert "ready to replicate" in healthy.out

    copied = project.run("sync")
    assert copied.status == 0, copied.err
    assert "public.orders  1,000 rows" in copied.out
    assert "copied 2 tables: 1,200 rows" in copied.out
    assert "public.orders: copied 1,000 rows" in copied.err
    assert "nothing to copy: 2 tables copied before" in project.run("sync").out

    project.database.execute("UPDATE orders SET note = 'new' WHERE id = 7; DELETE FROM items WHERE order_id = 3")
    streamed = project.run("stream", "--until-caught-up")
    assert streamed.status == 0, streamed.err
    assert "2 row changes" in streamed.out
    assert "public.orders ~1" in streamed.err
    assert "public.items -1" in streamed.err

    proof = project.run("verify")
    assert proof.status == 0, proof.out
    assert "comparing 2 tables" in proof.err
    assert "equal: 2 tables, 1,199 rows" in proof.out

    after = project.run("status")
    assert after.status == 0
    assert f"{project.slot}: reserved" in after.out
    assert [line.split()[:2] for line in after.out.splitlines()[-2:]] == [
        ["public.items", "ready"],
        ["public.orders", "ready"],
    ]


def test_run_until_caught_up_copies_and_streams(project: Project) -> None:
    first = project.run("run", "--until-caught-up", "--quiet")
    assert (first.status, first.err) == (0, "")
    assert "copied 2 tables" in first.out
    project.database.execute("TRUNCATE items; INSERT INTO orders VALUES (0, 'zero')")
    assert project.run("run", "--until-caught-up").status == 0
    with duckdb.connect(project.warehouse, read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM public.items").fetchall() == [(0,)]
        assert warehouse.execute("SELECT count(*), min(id) FROM public.orders").fetchall() == [(1001, 0)]


def test_for_ends_by_itself(project: Project) -> None:
    ended = project.run("run", "--for", "500ms")
    assert ended.status == 0
    assert "the time is up at " in ended.out


def test_status_as_json(project: Project) -> None:
    nothing = json.loads(project.run("status", "--json").out)
    assert (nothing["tables"], nothing["stream"], nothing["slot"]) == ([], None, None)
    project.run("run", "--until-caught-up")
    known = json.loads(project.run("status", "--json").out)
    assert known["pipeline"] == project.pipeline
    transport = {"kind": "tcp", "tls_version": None, "cipher": None, "sslmode": None}
    assert known["source"] == {"reachable": True, "error": None, "transport": transport, "unsafe": []}
    assert known["destination"] == {"type": "duckdb", "error": None}
    assert known["stream"]["active"] is False
    assert known["stream"]["lag_seconds"] >= 0
    assert known["slot"]["name"] == project.slot
    assert known["slot"]["bytes_kept"] >= known["slot"]["bytes_behind"] >= 0
    assert (known["health"], known["reasons"], known["other_slots"]) == ("healthy", [], [])
    assert [(table["name"], table["state"], table["rows_copied"]) for table in known["tables"]] == [
        ("public.items", "ready", 200),
        ("public.orders", "ready", 1000),
    ]
    assert all(table["watermark_lsn"] and table["error"] is None for table in known["tables"])


def test_verify_names_the_differing_keys(project: Project) -> None:
    project.run("run", "--until-caught-up")
    with duckdb.connect(project.warehouse) as warehouse:
        warehouse.execute("DELETE FROM public.orders WHERE id = 11")
        warehouse.execute("UPDATE public.orders SET note = 'tampered' WHERE id IN (500, 501)")
        warehouse.execute("INSERT INTO public.orders VALUES (9999, 'extra')")
    different = project.run("verify")
    assert different.status == 1
    assert "1,000 rows in the source, 1,000 in the destination: 1 missing, 1 extra, 2 changed" in different.out
    for key in ("11", "500", "501", "9999"):
        assert f"key {key}: 1 row" in different.out
    assert "tampered" not in different.out + different.err
    assert "1 table differs, 1 equal" in different.out
    assert project.run("verify", "--table", "items").status == 0


def test_verify_says_what_it_could_not_compare(project: Project) -> None:
    project.run("run", "--until-caught-up")
    project.run("pause", "orders")
    partly = project.run("verify")
    assert partly.status == 1
    assert "1 table not compared, 1 equal" in partly.out
    assert "not compared: it is paused" in partly.out


def test_pause_resume_and_resync(project: Project) -> None:
    project.run("run", "--until-caught-up")
    assert project.run("pause", "public.orders").out == "public.orders is paused; its data stays as it is\n"
    project.database.execute("INSERT INTO orders VALUES (0, 'meanwhile')")
    project.run("run", "--until-caught-up")
    assert "paused" in project.run("status").out
    with duckdb.connect(project.warehouse, read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM public.orders WHERE id = 0").fetchall() == [(0,)]

    assert "was neither paused nor failed: ready" in project.run("resume", "items").out
    assert "will be copied" in project.run("resume", "orders").out
    assert "will be copied again" in project.run("resync", "items").out
    again = project.run("run", "--until-caught-up")
    assert "copied 2 tables: 1,201 rows" in again.out
    assert project.run("verify").status == 0

    paused = project.run("pause", "or*", "--quiet")
    assert paused.out == "public.orders is paused; its data stays as it is\n"
    assert project.run("resync", "--all").out.startswith("public.items will be copied again")  # not what is paused
    assert project.run("pause", "--all").out.splitlines() == ["public.items is paused; its data stays as it is"]
    assert project.run("pause", "public.*").out == "no table to pause\n"
    assert project.run("resume", "--all").out.count("is resumed: it will be copied") == 2
    nothing = project.run("resync", "sales.*", "orders")
    assert nothing.status == 2
    assert "matches sales.*\n  → its tables: public." in nothing.err
    assert "copied 2 tables" in project.run("run", "--until-caught-up").out
    assert project.run("resume", "--all").out == "no table is paused or failed\n"
    assert "equal: 1 table, 1,001 rows" in project.run("verify", "--table", "public.o*").out
    assert "copied 1 table: 200 rows" in project.run("sync", "--table", "*.items").out


def test_a_change_that_waits_is_shown_listed_and_approved(project: Project) -> None:
    project.configure(more="schema_changes: approve")
    project.run("run", "--until-caught-up")
    assert project.run("approve").out == "no table waits for approval\n"
    project.database.execute("ALTER TABLE orders RENAME note TO remark; INSERT INTO orders VALUES (0, 'zero')")
    assert project.run("stream", "--until-caught-up").status == 1
    what = "column note (text) was renamed to remark (text)"
    [orders] = [one for one in json.loads(project.run("status", "--json").out)["tables"] if one["error"]]
    assert (orders["name"], orders["state"], orders["waits_for"]) == ("public.orders", "errored", "approve")
    assert orders["waits_since"] == orders["updated_at"]
    assert project.run("status").status == 1
    for command in ("status", "approve"):
        shown = project.run(command).out
        assert "waits for approval since " in shown
        assert what in shown
        assert "→ to apply it: etl approve public.orders" in shown
    for tables, error in (
        (["ordres"], "public.ordres is not a table of pipeline"),
        (["items"], "public.items does not wait for approval"),
    ):
        refused = project.run("approve", *tables)
        assert refused.status == 2
        assert error in refused.err
    approved = project.run("approve", "orders")
    assert approved.status == 0
    assert approved.out.startswith("public.orders is approved: ")
    assert what in approved.out
    assert "it goes on with the changes that were kept" in approved.out
    assert project.run("stream", "--until-caught-up").status == 0
    assert project.run("verify").status == 0


def test_sync_of_a_named_table_copies_it_again(project: Project) -> None:
    project.run("run", "--until-caught-up")
    again = project.run("sync", "--table", "orders")
    assert again.status == 0, again.err
    assert "copied 1 table: 1,000 rows" in again.out


def test_a_failed_table_fails_the_command_and_only_itself(project: Project) -> None:
    project.database.execute(f"{CREATE_THING} CREATE TABLE places (id int PRIMARY KEY, at thing)")
    project.configure(tables="[public.orders, public.places]", more="types: {unknown: refuse}")
    failed = project.run("sync")
    assert failed.status == 1
    assert "copied 1 table: 1,000 rows" in failed.out
    assert "public.places  failed: column at of table public.places has type public.thing" in failed.out
    assert "  → set types.unknown" in failed.out
    assert "public.places failed:" in failed.err

    streamed = project.run("stream", "--until-caught-up")
    assert streamed.status == 1
    assert "caught up at " in streamed.out
    shown = project.run("status")
    assert shown.status == 1
    assert "    → set types.unknown" in shown.out


def test_settings_of_columns_that_fit_no_table_are_refused_with_their_line(project: Project) -> None:
    settings = "tables:\n  public.orders:\n    columns:\n      exclude: [{}]"
    project.configure(tables="[public.orders]", more=settings.format("nosuch"))
    line = 1 + (project.folder / "etl.yaml").read_text().split("\n").index("      exclude: [nosuch]")
    failed = project.run("run", "--until-caught-up")
    assert failed.status == 2
    field = "tables.public.orders.columns.exclude[0]"
    assert f"etl.yaml:{line}: {field}: nosuch is no published column of public.orders" in failed.err
    project.configure(tables="[public.orders]", more=settings.format("id"))
    assert "column id is in the key of public.orders, and cannot be left out" in project.run("sync").err


def test_doctor_prints_the_sql_that_mends(project: Project) -> None:
    project.database.execute("CREATE TABLE log (line text)")
    project.database.execute("CREATE PUBLICATION shop_pub FOR TABLE orders")
    project.configure(tables="[public.orders, public.log]")
    for expected in ("ALTER TABLE", "ALTER PUBLICATION"):  # only what is safe is added to the publication
        sick = project.run("doctor")
        assert sick.status == 1
        statements = [line.strip() for line in sick.out.splitlines() if line.startswith("    ")]
        assert any(line.startswith(expected) and line.endswith(";") for line in statements)
        for statement in statements:
            if "SYSTEM" not in statement:
                project.database.execute(statement)
    assert project.run("doctor").status == 0


def test_a_pipeline_is_moved_to_another_destination_by_one_command(project: Project) -> None:
    assert project.run("run", "--until-caught-up").status == 0
    file = project.folder / "etl.yaml"
    file.write_text(file.read_text().replace("{type: duckdb, path: shop.duckdb}", "duckdb:new/shop.duckdb"))
    (project.folder / "new").mkdir()
    project.database.execute("UPDATE orders SET note = 'changed' WHERE id = 7")
    for command in (["sync"], ["run", "--until-caught-up"]):
        refused = project.run(*command)
        assert refused.status == 1
        assert "etl: the destination has nothing of pipeline" in refused.err
        assert "every table copied into this one: etl sync --all" in refused.err
    moved = project.run("sync", "--all")
    assert moved.status == 0, moved.err
    assert "copied 2 tables: 1,200 rows" in moved.out
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("verify").status == 0


@pytest.mark.parametrize("own_publication", [True, False])
def test_teardown_drops_what_the_pipeline_created(project: Project, own_publication: bool) -> None:
    if not own_publication:
        project.database.execute("CREATE PUBLICATION shop_pub FOR TABLE orders, items")
    project.run("run", "--until-caught-up")
    refused = project.run("teardown")
    assert refused.status == 2
    assert "  → etl teardown --yes" in refused.err
    assert slots(project) == [(project.slot,)]

    done = project.run("teardown", "--yes")
    assert done.status == 0, done.err
    assert f"dropped replication slot {project.slot}" in done.out
    assert slots(project) == []
    left = project.database.execute("SELECT count(*) FROM pg_publication")
    assert left == [(0 if own_publication else 1,)]
    assert "nothing has been replicated yet" in project.run("status").out
    assert "nothing to tear down" in project.run("teardown").out
    with duckdb.connect(project.warehouse, read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM public.orders").fetchall() == [(1000,)]


def slots(project: Project) -> list[tuple[Any, ...]]:
    return project.database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
