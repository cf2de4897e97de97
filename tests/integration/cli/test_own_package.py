"""Destinations outside this repository's packages: installed by pip, held to the contract, written by `etl`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Project
from tests.own_package import MINE, SQLITE, environment

Etl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def etl(project: Project, own_package: Path) -> Etl:
    """Runs the command in a process of its own, with the package installed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "etl_core.cli", *arguments],
            cwd=project.folder,
            env=environment(own_package),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def configure(project: Project, destination: str) -> None:
    project.configure()
    file = project.folder / "etl.yaml"
    file.write_text(file.read_text().replace("{type: duckdb, path: shop.duckdb}", destination))


@pytest.mark.parametrize(
    ("package", "chosen"),
    [(MINE, ""), (SQLITE, "not slices_of_many_rows and not (Hostile and reader)")],  # which take as long as the rest
    ids=["mine", "sqlite"],
)
def test_it_keeps_the_contract(own_package: Path, tmp_path: Path, package: Path, chosen: str) -> None:
    """By the suite, as its own tests run it; apart from its source, so that what is installed is tested."""
    shutil.copy(package / f"test_{package.name}.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-k", chosen],
        cwd=tmp_path,
        env=environment(own_package),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_pipeline_into_it_from_the_first_row_to_the_last(project: Project, etl: Etl) -> None:
    listed = {one["type"]: one for one in json.loads(etl("destinations", "--json").stdout)["destinations"]}
    assert (listed["mine"]["origin"], listed["mine"]["url"]) == ("etl-mine 1.0", "mine:PATH")
    assert listed["mine"]["can"].items() >= {"mirror": True, "append": False, "counts": True}.items()
    configure(project, "mine:out/tables")
    assert etl("doctor").returncode == 0
    configure(project, "{type: mine, path: out/tables, compression: zstd}")
    assert "destination mine can be reached" in etl("doctor").stdout
    first = etl("run", "--until-caught-up")
    assert first.returncode == 0, first.stderr
    assert (project.folder / "out" / "tables" / "commit.json").is_file()
    project.database.execute(
        "UPDATE orders SET note = 'changed' WHERE id < 10; DELETE FROM orders WHERE id = 20;"
        "INSERT INTO items VALUES (1000, 1, 9.99); UPDATE items SET order_id = 2000 WHERE order_id = 5"
    )
    again = etl("run", "--until-caught-up")
    assert again.returncode == 0, again.stderr
    project.database.execute("TRUNCATE items; INSERT INTO items VALUES (1, 1, 1)")
    assert etl("stream", "--until-caught-up").returncode == 0
    assert etl("sync", "--table", "public.orders").returncode == 0
    assert etl("run", "--until-caught-up").returncode == 0
    compared = etl("verify")
    assert compared.returncode == 0, compared.stdout

    status = json.loads(etl("status", "--json").stdout)
    assert status["destination"] == {"type": "mine", "error": None}
    assert {table["state"] for table in status["tables"]} == {"ready"}
    assert etl("teardown", "--yes").returncode == 0


def test_it_need_not_be_installed_as_a_type(project: Project, etl: Etl) -> None:
    configure(project, "{type: 'etl_sqlite:SQLITE', path: shop.db}")
    copied = etl("run", "--until-caught-up")
    assert copied.returncode == 0, copied.stderr
    compared = etl("verify")
    assert compared.returncode == 0, compared.stdout


def test_each_mistake_is_one_sentence_with_what_to_do(project: Project, etl: Etl) -> None:
    for destination, sentence in {
        "{type: mien, path: x}": "destination.type: there is no destination type 'mien'\n  → did you mean mine?",
        "{type: mine}": "destination.path: destination type mine needs the option 'path'\n  → write",
        "{type: mine, path: x, compresion: lz4}": "destination type mine has no option 'compresion'\n  → did you mean",
        "{type: mine, path: x, compression: gzip}": "compression: must be one of none, lz4, zstd, not 'gzip'\n  → ",
        "{type: mine, path: 's3://bucket'}": "path: must be a file or folder of this machine, and begins with s3:\n  →",
        "{type: 'etl_mine:MIEN', path: x}": "etl_mine has no 'MIEN', which the configuration names",
        "{type: 'etl_mien:MINE', path: x}": "there is no module 'etl_mien', which the configuration names",
    }.items():
        configure(project, destination)
        said = etl("status")
        assert said.returncode == 2
        assert sentence in said.stderr
        assert said.stderr.startswith("etl: etl.yaml:")
        assert said.stderr.count("\n") <= 2


def test_dbt_sources_of_what_cannot_be_queried_are_refused(project: Project, etl: Etl) -> None:
    configure(project, "{type: mine, path: tables}")
    said = etl("dbt-sources")
    assert said.returncode == 2
    assert "destination type mine keeps no tables that can be queried" in said.stderr
