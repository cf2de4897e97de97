"""The wheel with the extra of one destination: the command works, and nothing of Dagster or of the tests is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import etl_core
from tests.integration.cli.conftest import Project

REPOSITORY = Path(etl_core.__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
_PIP = ("-m", "pip", "--isolated", "--no-input", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, built of a copy: building leaves files beside what is built."""
    source = folder / "source"
    for package in ("etl_core", "etl_dagster"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    run(sys.executable, *_PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", source, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def required(metadata: Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The packages that a package with these extras needs, each with the extras it is needed with."""
    for text in metadata.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), tuple(sorted(requirement.extras))


def install(wheel: Path, folder: Path, *extras: str) -> Path:
    """A virtual environment as pip would make it, of packages that are installed here. No network."""
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    python = venv / "bin" / "python"
    run(sys.executable, *_PIP, "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    [site] = venv.glob("lib/python*/site-packages")
    [info] = site.glob("etl_dagster-*.dist-info")
    wanted = list(required(Distribution.at(info), extras))
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while wanted:
        package = wanted.pop()
        if package in seen:
            continue
        seen.add(package)
        found = distribution(package[0])
        wanted += required(found, package[1])
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(SITE / top)
    return venv


def test_one_extra_is_the_command_alone(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    wheel = build(folder)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "etl_core/etl.schema.json" in names
    assert "etl_core/testing/destination_suite.py" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "etl_core/testing/servers/"))]

    venv = install(wheel, folder, "duckdb")
    etl, python = venv / "bin" / "etl", venv / "bin" / "python"
    assert "etl init postgresql://" in run(etl, "--help", cwd=project.folder)
    assert "ready to replicate" in run(etl, "doctor", cwd=project.folder)
    assert "copied 2 tables: 1,200 rows" in run(etl, "run", "--until-caught-up", cwd=project.folder)
    assert "equal: 2 tables" in run(etl, "verify", cwd=project.folder)
    assert "needs Dagster, which is not installed" in run(python, "-c", "import etl_dagster", cwd=folder, status=1)
    assert "No module named 'dagster'" in run(python, "-c", "import dagster", cwd=folder, status=1)
    installed = run(etl, "destinations", cwd=folder)
    assert "duckdb  (etl-dagster)" in installed
    assert "pip install 'etl-dagster[bigquery]'" in installed
