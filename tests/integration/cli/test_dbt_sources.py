"""`etl dbt-sources`: what it writes of real tables, and what it says where there are none."""

from __future__ import annotations

from typing import Any

import yaml

from tests.integration.cli.conftest import Project

TABLES = """
CREATE SCHEMA "Sales 2";
CREATE TABLE "Sales 2"."Order" ("Id" int PRIMARY KEY, "user" text NOT NULL, tags text[]);
COMMENT ON TABLE orders IS 'what was ordered: {{ 1 + 1 }}
in two lines';
COMMENT ON COLUMN orders.note IS 'said by the customer, "ä"';
"""


def _sources(text: str) -> list[dict[str, Any]]:
    parsed = yaml.safe_load(text)
    assert parsed.keys() == {"version", "sources"}
    assert parsed["version"] == 2
    sources: list[dict[str, Any]] = parsed["sources"]
    return sources


def test_before_the_first_start_it_says_so_and_leaves_the_file(project: Project) -> None:
    (project.folder / "sources.yml").write_text("as it was")
    said = project.run("dbt-sources", "sources.yml")
    assert said.status == 1
    assert said.out == ""
    assert said.err == (
        f"etl: pipeline {project.pipeline} has no tables yet, so there are no sources for dbt\n"
        "  → they are known from its first start on: etl run\n"
    )
    assert (project.folder / "sources.yml").read_text() == "as it was"


def test_a_destination_that_keeps_nothing_has_no_sources(project: Project) -> None:
    path = project.folder / "etl.yaml"
    path.write_text(path.read_text().replace("{type: duckdb, path: shop.duckdb}", '{type: "null"}'))
    said = project.run("dbt-sources")
    assert said.status == 2
    assert "destination type null keeps no tables that can be queried" in said.err
    assert "→ use a type that does; etl destinations lists what there is" in said.err


def test_the_tables_with_columns_comments_and_the_keys_of_their_assets(project: Project) -> None:
    project.database.execute(TABLES)
    project.configure(tables="""[public.orders, public.items, '"Sales 2"."Order"']""")
    assert project.run("run", "--until-caught-up").status == 0

    told = project.run("dbt-sources")
    assert told.status == 0
    assert told.err == ""
    assert told.out.startswith(f"# Written by etl dbt-sources -c etl.yaml, of pipeline {project.pipeline}. ")
    sales, public = _sources(told.out)
    quoting = {"database": True, "schema": True, "identifier": True, "column": True}
    assert (sales["name"], sales["schema"]) == (f"{project.pipeline}_Sales_2_{sales['name'][-8:]}", "Sales 2")
    assert (public["name"], public["schema"]) == (f"{project.pipeline}_public", "public")
    assert [(source["database"], source["quoting"]) for source in (sales, public)] == [("shop", quoting)] * 2
    assert sales["tables"] == [
        {
            "name": "Order",
            "config": {"meta": {"dagster": {"asset_key": ["duckdb", "Sales 2", "Order"]}}},
            "columns": [
                {"name": "Id", "data_type": "INTEGER"},
                {"name": "user", "data_type": "VARCHAR"},
                {"name": "tags", "data_type": "VARCHAR[]"},
            ],
        }
    ]
    items, orders = public["tables"]
    assert [column["data_type"] for column in items["columns"]] == ["INTEGER", "INTEGER", "DECIMAL(10,2)"]
    assert orders == {
        "name": "orders",
        "description": "what was ordered: {{ '{' }}{ 1 + 1 }}\nin two lines",
        "config": {"meta": {"dagster": {"asset_key": ["duckdb", "public", "orders"]}}},
        "columns": [
            {"name": "id", "data_type": "INTEGER"},
            {"name": "note", "data_type": "VARCHAR", "description": 'said by the customer, "ä"'},
        ],
    }


def test_the_file_is_replaced_and_differs_only_by_what_changed(project: Project) -> None:
    assert project.run("run", "--until-caught-up").status == 0
    written = project.run("dbt-sources", "sources.yml")
    assert (written.status, written.out) == (0, "sources.yml: 2 tables\n")
    file = project.folder / "sources.yml"
    first = file.read_text()
    assert first == project.run("dbt-sources").out
    assert project.run("dbt-sources", "sources.yml").status == 0
    assert file.read_text() == first

    project.database.execute("ALTER TABLE items ADD COLUMN paid bool; INSERT INTO items VALUES (1000, 1, 2, true)")
    assert project.run("run", "--until-caught-up").status == 0
    assert project.run("dbt-sources", "sources.yml").status == 0
    assert file.read_text().replace("    - name: paid\n      data_type: BOOLEAN\n", "") == first
    assert "name: paid" not in first
    assert [path.name for path in project.folder.glob("sources.yml*")] == ["sources.yml"]


def test_a_folder_that_is_not_there_is_named(project: Project) -> None:
    assert project.run("run", "--until-caught-up").status == 0
    said = project.run("dbt-sources", "models/sources.yml")
    assert said.status == 2
    assert "cannot write models/sources.yml: No such file or directory" in said.err


def test_a_table_that_was_not_copied_yet_has_its_place_and_no_columns(project: Project) -> None:
    assert project.run("stream", "--for", "1ms").status == 0
    [public] = _sources(project.run("dbt-sources").out)
    assert [table["name"] for table in public["tables"]] == ["items", "orders"]
    assert all("columns" not in table for table in public["tables"])
