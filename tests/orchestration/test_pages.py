"""Dagster's pages in a real browser: what a person must see there, and what nobody may."""

import re
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.testing import DagsterDev
from tests.orchestration.person import PATIENCE, Person, until

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")

from playwright.sync_api import expect

from scripts.screenshots import PAGES, Site, browser, find_chromium, take

if find_chromium() is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

pytestmark = pytest.mark.timeout(1200)


def test_a_person_sees_what_is_going_on_and_no_secret(
    replication: PostgresReplicationResource, database: Database, tmp_path: Path
) -> None:
    person = Person(replication, database, tmp_path / "home")
    with person.dagster() as dev:
        copy_in_one_process(person, dev)
        dev.start_sensor(person.sensor)
        for updates in (3, 6, 9):  # a report each: a plot of one point is none
            person.notes(1)
            until(lambda expected=updates: updated(dev) == expected, f"a report of {updates} updated rows")  # type: ignore[misc]
        # Everything is reported: no later materialisation makes the checks "Not evaluated".
        assert dev.wait_run(dev.launch(names.check_job_name(replication.name)), PATIENCE) == "SUCCESS"
        site = Site(dev.url, replication.name, dev.location)
        with browser() as page:
            html = {name: take(page, site, name, tmp_path) for name in PAGES}
            database.execute("DROP TABLE notes")
            page.goto(f"{site.url}/assets/duckdb/public/notes?view=checks")
            page.get_by_text("table_state", exact=True).first.click()
            expect(page.get_by_text(re.compile("^public.notes stopped: .*"))).to_be_visible()
            expect(page.get_by_text("etl/since", exact=True)).to_be_visible()
            (tmp_path / "stopped.png").write_bytes(page.screenshot())
    assert html["lineage"].count("4 / 4 Passed") == 3
    assert html["lineage"].count("1 / 1 Passed") == 1
    assert "TEST_DSN" in html["resource"]
    for secret in secrets(database):
        assert [name for name, content in html.items() if secret in content] == []


def copy_in_one_process(person: Person, dev: DagsterDev) -> None:
    run_id = dev.launch(person.sync_job, run_config={"execution": {"config": {"in_process": {}}}})
    assert dev.wait_run(run_id, PATIENCE) == "SUCCESS"


def updated(dev: DagsterDev) -> int:
    """How many updated rows of `orders` the stream has reported."""
    entries = [
        entry for each in dev.materializations("duckdb", "public", "orders") for entry in each["metadataEntries"]
    ]
    return sum(entry["intValue"] for entry in entries if entry["label"] == "etl/rows_updated")


def secrets(database: Database) -> list[str]:
    """What stands in the environment only: where the source is, and the password, if the server asks for one."""
    password = conninfo_to_dict(database.dsn).get("password")
    return [database.dsn, *([str(password)] if password else [])]
