"""Destinations outside this repository's packages, installed as a person would: `etl_mine` and `etl_sqlite`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import etl_core

SQLITE = Path(__file__).parents[1] / "examples" / "etl_sqlite"
MINE = Path(__file__).parent / "packages" / "etl_mine"


def install(target: Path) -> None:
    """Builds and installs copies of the packages into `target`, which is then to be put onto the path. No network."""
    copies = target.with_name(f"{target.name}_source")  # building leaves files beside what is built
    for source in (MINE, SQLITE):
        shutil.copytree(source, copies / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    options = (
        "--quiet",
        "--isolated",  # whatever a person has told pip, such as PIP_USER
        "--no-input",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, copies.iterdir())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    shutil.rmtree(copies)


def environment(target: Path) -> dict[str, str]:
    """Of a process that has the packages installed."""
    path = os.pathsep.join((str(target), str(Path(etl_core.__file__).parents[1])))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, "PYTHONPATH": path}
