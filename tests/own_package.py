"""`tests/packages/etl_mine`, a destination outside this repository's packages, installed as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import etl_core

SOURCE = Path(__file__).parent / "packages" / "etl_mine"


def install(target: Path) -> None:
    """Builds and installs a copy of the package into `target`, which is then to be put onto the path. No network."""
    copy = target.with_name(f"{target.name}_source")  # building leaves files beside what is built
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
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
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(copy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    shutil.rmtree(copy)


def environment(target: Path) -> dict[str, str]:
    """Of a process that has the package installed."""
    path = os.pathsep.join((str(target), str(Path(etl_core.__file__).parents[1])))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, "PYTHONPATH": path}
