"""`make demo` on little: the shop, its code location and the demo, as a person runs them, in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.shop import TABLES

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)  # a dozen processes, each importing Dagster, on a machine that has other work
def test_the_demo_ends_with_both_sides_equal(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "workspace.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--scale", "0.002", "--seconds", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert "Source and destination are equal." in done.stdout
    assert sum(line.endswith("  equal") for line in done.stdout.splitlines()) == len(TABLES)
    assert (tmp_path / "demo" / "shop.duckdb").exists()
