"""Every test that docs/reliability.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`((?:tests/)?[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reliability.md").read_text())


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 50
    for file, name in NAMED:
        path = ROOT / file if "/" in file else ROOT / "tests" / "integration" / "replication" / file
        assert path.is_file(), file
        assert not name or f"def {name}(" in path.read_text(), f"{file}::{name}"
