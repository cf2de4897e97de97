"""`etl init`: from a URL alone to a pipeline that runs, by what it writes and prints and nothing else."""

from __future__ import annotations

import json
from urllib.parse import quote

import jsonschema
import pytest
import yaml

from etl_core.config_file import SCHEMA_FILE
from tests.integration.cli.conftest import Project

PASSWORD = "p@ss/w ${ORD}"
_TABLES = """
CREATE TABLE log (line text);
CREATE TABLE entries (number int NOT NULL UNIQUE);
CREATE TABLE "Odd ${x} # - name" (id int PRIMARY KEY);
CREATE TABLE "new\nline" (line text);
CREATE SCHEMA sales;
CREATE TABLE sales.orders (id int PRIMARY KEY, day date) PARTITION BY RANGE (id);
CREATE TABLE sales.orders_1 PARTITION OF sales.orders FOR VALUES FROM (0) TO (100);
INSERT INTO sales.orders VALUES (1, '2026-01-01');
"""


def test_from_a_url_to_a_pipeline_that_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    database, file = project.database, project.folder / "etl.yaml"
    database.execute(_TABLES)
    before = file.read_bytes()
    refused = project.run("init", database.dsn)
    assert refused.status == 2
    assert refused.err.startswith("etl: etl.yaml exists, and etl init overwrites nothing\n  → ")
    assert file.read_bytes() == before
    file.unlink()
    for url, to, error in (
        (database.dsn, "mysql:x", "there is no destination type 'mysql'"),
        (f"{database.dsn}x", "duckdb:shop.duckdb", "does not exist"),
        ("postgresql://a:b@c@d/shop", "duckdb:shop.duckdb", "etl: the source's URL has no valid host and port"),
    ):
        assert error in project.run("init", url, "--to", to).err
        assert not file.exists()

    by_admin = project.run("init", database.dsn)
    assert by_admin.status == 0, by_admin.err
    assert by_admin.out.startswith(f"wrote etl.yaml: 4 tables of database {database.name}\ncommented out there")
    assert by_admin.out.endswith(f"ready to replicate\n\nnext: export {project.pipeline.upper()}_PASSWORD=…; etl run\n")
    statements = [line.strip() for line in by_admin.out.splitlines() if line.startswith("    ")]
    statements = [line for line in statements if not line.startswith("ALTER SYSTEM")]
    assert [line.split()[0] for line in statements] == ["CREATE", "GRANT", "GRANT", "CREATE"]
    try:
        for statement in statements:
            database.execute(statement)
        database.execute(f"ALTER ROLE etl PASSWORD '{PASSWORD}'")
        check_a_role_of_its_own(project, monkeypatch)
    finally:
        database.execute("DROP OWNED BY etl; DROP ROLE etl")


def check_a_role_of_its_own(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    database, file = project.database, project.folder / "own.yaml"
    variable = f"{project.pipeline.upper()}_PASSWORD"
    address = database.dsn.partition("@")[2]
    written = project.run("-c", "own.yaml", "init", f"postgresql://etl:{quote(PASSWORD, safe='')}@{address}")
    assert written.status == 0, written.out + written.err
    assert "if you want a role" not in written.out
    assert f"set the environment variable {variable} for every command" in written.out
    assert written.out.endswith(f"next: export {variable}=…; etl -c own.yaml run\n")
    text = file.read_text(encoding="utf-8")
    assert PASSWORD not in text + written.out
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}\n")
    values = yaml.safe_load(text)
    jsonschema.validate(values, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert values["source"]["password"] == f"${{{variable}}}"

    assert f"the environment variable {variable} is not set" in project.run("-c", "own.yaml", "doctor").err
    monkeypatch.setenv(variable, PASSWORD)
    assert project.run("config", "check", "own.yaml").status == 0
    assert project.run("-c", "own.yaml", "run", "--until-caught-up").status == 0
    assert "equal: 4 tables, 1,201 rows" in project.run("-c", "own.yaml", "verify").out

    # A table without a key is taken in by what the file says about it.
    statements = {
        line.strip("# ").partition(";")[0] for line in text.splitlines() if "ALTER TABLE" in line and "?" not in line
    }
    for statement in statements:
        database.execute(statement)
    file.write_text(text.replace("# - public.", "- public."), encoding="utf-8")
    [sql] = [line for line in project.run("-c", "own.yaml", "doctor").out.splitlines() if "ALTER PUBLICATION" in line]
    database.execute(sql)
    database.execute("GRANT SELECT ON log, entries TO etl")
    assert project.run("-c", "own.yaml", "run", "--until-caught-up").status == 0
    database.execute("INSERT INTO log VALUES ('x'), ('x'); DELETE FROM log; INSERT INTO entries VALUES (1)")
    assert project.run("-c", "own.yaml", "run", "--until-caught-up").status == 0
    assert "equal: 6 tables, 1,202 rows" in project.run("-c", "own.yaml", "verify").out


def test_a_destination_with_a_password_is_a_variable(project: Project) -> None:
    destination = project.database.dsn.replace("/test_", "/nosuch_test_")
    assert destination != project.database.dsn
    written = project.run("-c", "pg.yaml", "init", project.database.dsn, "--to", destination)
    assert written.status == 1  # doctor cannot reach it
    assert "\nwhen that is done: export " in written.out
    assert written.out.endswith("=…; etl -c pg.yaml doctor; etl -c pg.yaml run\n")
    variable = f"{project.pipeline.upper()}_DESTINATION"
    assert f"set {variable} to its URL" in written.out
    values = yaml.safe_load((project.folder / "pg.yaml").read_text(encoding="utf-8"))
    assert values["destination"] == f"${{{variable}}}"
