"""Takes the pictures of docs/dagster.md from a running `make ui`: python scripts/screenshots.py http://127.0.0.1:3000

Needs `pip install playwright` and a Chromium on PATH (CHROMIUM names another one).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
REPOSITORY = "__repository__@etl_dagster"

# (file, path of the page, a text that is on it when it is complete)
PAGES = (
    ("lineage", "/asset-groups", "orders"),
    ("asset", "/assets/duckdb/public/orders?view=overview", "orders"),
    ("plots", "/assets/duckdb/public/orders?view=events", "lag_seconds"),
    ("checks", "/assets/duckdb/public/orders?view=checks", "equals_source"),
    ("sensor", f"/locations/{REPOSITORY}/sensors/shop_stream_sensor", "shop_stream"),
    ("runs", "/runs", "shop_stream"),
    ("resource", f"/locations/{REPOSITORY}/resources/shop", "publication"),
)


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python scripts/screenshots.py URL\n")
        return 2
    url = sys.argv[1].rstrip("/")
    IMAGES.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for name, path, text in PAGES:
            _take(page, url + path, text, IMAGES / f"{name}.png")
        browser.close()
    return 0


def _take(page: Page, url: str, text: str, file: Path) -> None:
    page.goto(url)
    page.get_by_text(text).first.wait_for(state="visible", timeout=60_000)
    page.wait_for_timeout(2_500)  # pictures fade in
    page.screenshot(path=file)
    sys.stdout.write(f"{file.name}\n")


if __name__ == "__main__":
    sys.exit(main())
