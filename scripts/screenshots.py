"""Takes the pictures of docs/dagster.md from a running `make ui`: python scripts/screenshots.py http://127.0.0.1:3000

Needs a Chromium on PATH (CHROMIUM names another one). The tests look at the same pages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
_PATIENCE_MS = 60_000
_FADE_MS = 2_500


@dataclass(frozen=True, slots=True)
class Shown:
    """A page, and texts that are on it when it is complete."""

    name: str
    path: str
    texts: tuple[str, ...]


def pages(pipeline: str, location: str) -> list[Shown]:
    """What a person looks at, of a pipeline that replicates `orders` into DuckDB."""
    repository = f"/locations/__repository__@{location}"
    asset = "/assets/duckdb/public/orders"
    sensor = f"{pipeline}_stream_sensor"
    return [
        Shown("lineage", "/asset-groups", ("orders",)),
        Shown("asset", f"{asset}?view=overview", ("orders", "etl/lsn")),
        Shown("plots", f"{asset}?view=events", ("lag_seconds",)),
        Shown(
            "checks",
            f"{asset}?view=checks",
            ("replication_lag", "slot_health", "schema_matches", "equals_source"),
        ),
        Shown("sensor", f"{repository}/sensors/{sensor}", (f"Keeps a run of {pipeline}_stream", "0 runs requested")),
        Shown("runs", "/runs", (f"{pipeline}_stream", f"{pipeline}_initial_sync")),
        Shown("resource", f"{repository}/resources/{pipeline}", ("publication",)),
    ]


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A page of a headless Chromium. Raises RuntimeError if there is none."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium, or set CHROMIUM")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched.new_page(viewport={"width": 1440, "height": 900})
        launched.close()


def take(page: Page, url: str, shown: Shown, directory: Path) -> str:
    """Waits for the page, takes its picture; returns its HTML."""
    page.goto(url + shown.path)
    for text in shown.texts:
        page.get_by_text(text).first.wait_for(state="visible", timeout=_PATIENCE_MS)
    page.wait_for_timeout(_FADE_MS)  # pictures fade in
    page.screenshot(path=directory / f"{shown.name}.png")
    return page.content()


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python scripts/screenshots.py URL\n")
        return 2
    IMAGES.mkdir(exist_ok=True)
    with browser() as page:
        for shown in pages("shop", "etl_dagster"):
            take(page, sys.argv[1].rstrip("/"), shown, IMAGES)
            sys.stdout.write(f"{shown.name}.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
