"""Takes the pictures of docs/dagster.md from a running `make ui`: python scripts/screenshots.py http://127.0.0.1:3000

Needs a Chromium on PATH (CHROMIUM names another one). The tests look at the same pages: every `show_…` waits for what a
person must see there, and fails by AssertionError when it does not come.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
ASSET = "/assets/duckdb/public/orders"
CHECKS = ("replication_lag", "table_state", "schema_matches", "equals_source")

_SIZE: ViewportSize = {"width": 1440, "height": 900}
_WIDE: ViewportSize = {"width": 1920, "height": 1200}
_PATIENCE_MS = 60_000
_HOVER_MS = 5_000
_LOOKS = 20
_EXECUTIONS = 5
_DRAWN = """
() => {
    const has_colour = canvas => {
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < pixels.length; i += 4)
            if (pixels[i + 3] > 128 && pixels[i + 2] > pixels[i] + 60) return true;
        return false;
    };
    const plots = [...document.querySelectorAll('canvas')];
    return plots.length > 0 && plots.every(has_colour);
}
"""
"""Whether every plot shows a point or a line: axes are grey."""


@dataclass(frozen=True, slots=True)
class Site:
    """A running Dagster in which `pipeline` replicates `orders` into DuckDB; `location` is its code location's name."""

    url: str
    pipeline: str
    location: str

    @property
    def code(self) -> str:
        """Where the pages of the code location begin."""
        return f"{self.url}/locations/__repository__@{self.location}"


def show_lineage(page: Page, site: Site) -> None:
    """The replicated table with its state and checks, and the table at the source, whose groups are unfolded."""
    page.goto(f"{site.url}/asset-groups")
    boxes = page.locator("foreignObject")
    expect(boxes.filter(has_text=f"{site.pipeline}_source").first).to_be_visible()
    page.keyboard.press("Alt+KeyE")  # of the menu: expand all groups
    nodes = boxes.filter(has=page.get_by_text("orders", exact=True))
    copy = nodes.filter(has_text="DuckDB")
    expect(copy).to_contain_text("Materialized")
    expect(copy).to_contain_text(re.compile(r"\d / 4 Passed"))
    expect(nodes.filter(has_not_text="DuckDB")).to_contain_text("Postgres")


def show_asset(page: Page, site: Site) -> None:
    """What the stream told last, and what the table is a copy of."""
    page.goto(f"{site.url}{ASSET}?view=overview")
    for label in ("etl/summary", "etl/bytes", "etl/rows_updated", "etl/lag_seconds"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    for text in ("Row count", "non-nullable"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile("^(INTEGER|BIGINT)$")).first).to_be_visible()  # the tests' table, or the demo's
    expect(page.get_by_text(re.compile(r"^[\d,]+ changes? up to ")).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"^\d+/\d+/\d{4}$")).first).to_be_visible()  # the history's axis comes last
    expect(page.get_by_text("Upstream assets", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=f"{site.pipeline} / public / orders").first).to_be_visible()


def show_plots(page: Page, site: Site) -> None:
    """The numbers of all reports, drawn."""
    page.goto(f"{site.url}{ASSET}?view=overview")
    page.get_by_role("button", name="Plots").click()
    for label in ("dagster/row_count", "etl/bytes", "etl/changes_per_minute", "etl/lag_seconds", "etl/rows_updated"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    page.wait_for_function(_DRAWN)
    page.get_by_text("Metadata", exact=True).first.evaluate("heading => heading.scrollIntoView()")


def show_events(page: Page, site: Site) -> None:
    """The first report: the initial sync's, with rows, columns and place."""
    page.goto(f"{site.url}{ASSET}?view=events")
    expect(page.get_by_text("Materialized in run")).to_be_visible()
    page.locator("[data-index]").last.click()
    for label in ("dagster/row_count", "dagster/column_schema", "dagster/uri", "etl/rows_per_second"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()


def show_slot(page: Page, site: Site) -> None:
    """How far behind the stream is, and how fast the server writes WAL."""
    page.goto(f"{site.url}/assets/{site.pipeline}/replication_slot?view=overview")
    for label in ("etl/bytes_behind", "etl/wal_bytes_per_second", "etl/lag_seconds"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()


def show_source(page: Page, site: Site) -> None:
    """The columns of the table at the source, with PostgreSQL's types."""
    page.goto(f"{site.url}/assets/{site.pipeline}/public/orders?view=overview")
    expect(page.get_by_text("etl/columns", exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile("^int[48]$")).first).to_be_visible()


def show_checks(page: Page, site: Site) -> None:
    """All passed, and what the chosen one says."""
    page.goto(f"{site.url}{ASSET}?view=checks")
    for check in CHECKS:
        expect(page.get_by_text(check, exact=True).first).to_be_visible()
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(CHECKS))
    expect(page.get_by_text(re.compile("public.orders equals the source at"))).to_be_visible()


def show_sensor(page: Page, site: Site) -> None:
    """That it is on, and what its latest tick says."""
    page.goto(f"{site.code}/sensors/{site.pipeline}_stream_sensor")
    expect(page.get_by_role("checkbox")).to_be_checked()
    reason = page.get_by_text(re.compile("^run [0-9a-f]{8} streams; its lease has")).first
    for _ in range(_LOOKS):  # a tick that comes in between redraws the page
        page.mouse.move(0, 0)
        page.get_by_text("0 runs requested", exact=True).first.hover(timeout=_PATIENCE_MS)
        with contextlib.suppress(AssertionError):
            return expect(reason).to_be_visible(timeout=_HOVER_MS)
    raise AssertionError("the latest tick of the sensor does not say which run streams")


def show_runs(page: Page, site: Site) -> None:
    """The stream's run, under way, and the initial sync's."""
    page.goto(f"{site.url}/runs")
    for job, status in ((f"{site.pipeline}_stream", "Started"), (f"{site.pipeline}_initial_sync", "Success")):
        target = page.get_by_role("link", name=job, exact=True)
        row = page.locator("div").filter(has=target).filter(has=page.get_by_text(status, exact=True))
        expect(row.last).to_be_visible()


def show_control(page: Page, site: Site) -> None:
    """The launchpad of the control job: an action is filled in, and nothing is wrong with it."""
    page.goto(f"{site.code}/jobs/{site.pipeline}_control/playground")
    editor = page.locator(".CodeMirror").first
    for text in (f"control_{site.pipeline}", "action", "resync", "tables"):
        expect(editor).to_contain_text(text)
    expect(page.get_by_role("button", name="Launch run", exact=False).first).to_be_enabled()


def show_resources(page: Page, site: Site) -> None:
    """The list of the code location's resources."""
    page.goto(f"{site.code}/resources")
    expect(page.locator("a").filter(has_text=site.pipeline).first).to_be_visible()


def show_resource(page: Page, site: Site) -> None:
    """The pipeline's settings, with a variable's name where a secret is."""
    page.set_viewport_size(_WIDE)  # else the column of values is cut off
    page.goto(f"{site.code}/resources/{site.pipeline}")
    for text in ("PostgresReplicationResource", "publication", "Env var"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()


PAGES: Mapping[str, Callable[[Page, Site], None]] = {
    "lineage": show_lineage,
    "asset": show_asset,
    "plots": show_plots,
    "events": show_events,
    "slot": show_slot,
    "source": show_source,
    "checks": show_checks,
    "sensor": show_sensor,
    "runs": show_runs,
    "control": show_control,
    "resources": show_resources,
    "resource": show_resource,
}

# Where on this machine the demo is, one line, and what is in the text or in other pictures.
_NOT_IN_DOCS = ("events", "resources", "control", "source")


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A page of a headless Chromium. Raises RuntimeError if there is none."""
    chromium = find_chromium()
    if chromium is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium, or set CHROMIUM")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = launched.new_page(viewport=_SIZE, reduced_motion="reduce")
        page.set_default_timeout(_PATIENCE_MS)
        yield page
        launched.close()


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def take(page: Page, site: Site, name: str, directory: Path) -> str:
    """Waits for the page of this name, leaves its picture in `directory`; returns its HTML."""
    page.set_viewport_size(_SIZE)
    PAGES[name](page, site)
    (directory / f"{name}.png").write_bytes(_picture(page))
    return page.content()


def _picture(page: Page) -> bytes:
    """When it no longer changes: pictures fade in."""
    picture = b""
    for _ in range(_LOOKS):
        before, picture = picture, page.screenshot(animations="disabled")
        if picture == before:
            break
    return picture


def _execute_checks(page: Page, site: Site) -> None:
    """As a person does, until they are faster than the demo's next report, which undoes their results."""
    for _ in range(_EXECUTIONS):
        page.goto(f"{site.url}{ASSET}?view=checks")
        page.get_by_role("button", name="Execute all").click()
        with contextlib.suppress(AssertionError):
            return expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(CHECKS))
    raise AssertionError("the checks take longer than the time between two reports: try on a machine with less to do")


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python scripts/screenshots.py URL\n")
        return 2
    IMAGES.mkdir(exist_ok=True)
    site = Site(sys.argv[1].rstrip("/"), "shop", "etl_dagster")
    with browser() as page:
        for name in (name for name in PAGES if name not in _NOT_IN_DOCS):
            if name == "checks":
                _execute_checks(page, site)
            take(page, site, name, IMAGES)
            sys.stdout.write(f"{name}.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
