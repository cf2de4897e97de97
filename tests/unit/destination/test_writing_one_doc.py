"""`docs/destinations/writing_one.md` shows the packages as they are, and a configuration that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from etl_core.config_file import load_config
from tests.own_package import MINE, SQLITE

TEXT = (Path(__file__).parents[3] / "docs" / "destinations" / "writing_one.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PACKAGES = {
    file.relative_to(source): file.read_text()
    for source in (MINE, SQLITE)
    for file in source.rglob("*")
    if file.suffix in (".py", ".toml")
}


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind in ("toml", "python")])
def test_what_is_shown_stands_in_the_package(block: str) -> None:
    if "from etl_dagster import" in block:
        exec(block, {})  # noqa: S102 - of our own docs
    else:
        assert any(unindented(block) in unindented(text) for text in PACKAGES.values())


def unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_the_configuration_loads(tmp_path: Path) -> None:
    [text] = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "etl.yaml").write_text(text)
    config = load_config(tmp_path / "etl.yaml").destination
    assert (config.type, config.options, config.folder) == ("sqlite", {"path": "shop.db"}, tmp_path)


def test_every_file_of_the_packages_is_named() -> None:
    named = set(re.findall(r"^\| `([\w./]+)` \|", TEXT, re.MULTILINE))
    assert {str(path) for path in PACKAGES} <= named


def test_the_example_is_as_short_as_the_page_says() -> None:
    lines = [text for path, text in PACKAGES.items() if path.parts[0] == "etl_sqlite"]
    assert sum(text.count("\n") for text in lines) < 300
