"""The commands over each kind of connection, as a person runs them."""

from __future__ import annotations

import json
import re

import pytest

from etl_core.testing.postgres import Database
from tests.integration.cli.conftest import Project

SAID = {"tcp": "TCP without TLS", "tls": r"TLSv1\.[23] \(\w+\), verify-full", "unix": "unix socket"}


@pytest.fixture
def database(connected_database: Database) -> Database:
    return connected_database


def test_run_status_doctor_and_verify(project: Project, connection_kind: str) -> None:
    assert re.search(rf"^ok +transport +{SAID[connection_kind]}$", project.run("doctor").out, re.MULTILINE)
    running = project.start("run")
    running.wait_for("public.orders: is ready")
    project.database.execute("INSERT INTO orders SELECT g, 'x' FROM generate_series(2001, 2100) g")
    running.wait_for("streamed 100 row changes")
    assert re.search(rf"^source +{SAID[connection_kind]}$", project.run("status").out, re.MULTILINE)
    transport = json.loads(project.run("status", "--json").out)["source"]["transport"]
    assert transport["kind"] == connection_kind
    assert transport["sslmode"] == ("verify-full" if connection_kind == "tls" else None)
    running.signal()
    assert running.wait().status == 0
    assert project.run("verify").status == 0


def test_a_source_that_is_away_has_no_transport(project: Project) -> None:
    assert project.run("run", "--until-caught-up").status == 0
    project.configure(dsn="postgresql://postgres@127.0.0.1:1/nowhere?connect_timeout=1")
    assert json.loads(project.run("status", "--json").out)["source"]["transport"] is None
