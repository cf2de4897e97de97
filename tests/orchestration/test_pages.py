"""Dagster's pages in a real browser: what a person must see there, and what nobody may."""

import shutil
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from tests.orchestration.person import PATIENCE, Person, until

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

from scripts.screenshots import browser, pages, take

pytestmark = pytest.mark.timeout(600)


def test_a_person_sees_what_is_going_on_and_no_secret(
    replication: PostgresReplicationResource, database: Database, tmp_path: Path
) -> None:
    person = Person(replication, database, tmp_path / "home")
    secret = str(conninfo_to_dict(database.dsn)["password"])
    with person.dagster() as dev:
        person.copies(dev)
        dev.start_sensor(person.sensor)
        person.notes()
        person.sees_it()
        until(lambda: len(dev.materializations("duckdb", "public", "orders")) > 1, "a report of the stream")
        assert dev.wait_run(dev.launch(names.check_job_name(replication.name)), PATIENCE) == "SUCCESS"
        until(
            lambda: any("streams; its lease has" in (tick["skipReason"] or "") for tick in dev.ticks(person.sensor)),
            "a tick that says who streams",
        )
        with browser() as page:
            html = {shown.name: take(page, dev.url, shown, tmp_path) for shown in pages(replication.name, dev.location)}
    assert "customers" in html["lineage"]
    assert "public.orders" in html["asset"]
    for name, content in html.items():
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert secret not in content, name
