"""`etl destinations`: what is installed, what each type can do, and one line for what cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import etl_core
from etl_core.destination.capabilities import CAPABILITIES

# A type whose module cannot be imported, one whose destination cannot be built, one that tells nothing of itself, and a
# product's library that is missing.
WRONG = """\
from etl_core.destination.declaration import DestinationType
from etl_core.destination.memory import MEMORY

def build(options, pipeline):
    raise ZeroDivisionError("line\\none")

FAILS = DestinationType(options=(), build=build)
SILENT = lambda options, pipeline: MEMORY.build(options, pipeline)
"""
ENTRIES = "[etl.destinations]\nabsent = no_such_module:X\nfails = wrong:FAILS\nsilent = wrong:SILENT\n"
CODE = """\
import sys
sys.modules["duckdb"] = None
from etl_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def etl(folder: Path, *arguments: str) -> str:
    (folder / "wrong.py").write_text(WRONG)
    information = folder / "wrong-1.0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRIES)
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{Path(etl_core.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_type_says_what_it_can_and_why_it_cannot_be_used(tmp_path: Path) -> None:
    said = etl(tmp_path, "destinations")
    assert (
        "postgres  (etl-dagster)  postgresql://USER@HOST/DATABASE\n  write_mode: mirror, soft_delete, append, history\n"
        in said
    )
    assert "duckdb  not installed: destination type duckdb needs the Python package duckdb" in said
    assert "  → run: pip install 'etl-dagster[duckdb]'\n" in said
    assert (
        "absent  broken: there is no module 'no_such_module', which wrong 1.0 names as destination type absent\n"
        in said
    )
    assert (
        "fails  broken: destination type fails of wrong 1.0 failed with ZeroDivisionError: line one (wrong.py" in said
    )
    assert "silent  (wrong 1.0)\n" in said
    assert "Traceback" not in said


def test_the_same_for_programs(tmp_path: Path) -> None:
    types = {one["type"]: one for one in json.loads(etl(tmp_path, "destinations", "--json"))["destinations"]}
    wanted = {"absent": "broken", "duckdb": "not installed", "fails": "broken", "postgres": "installed"}
    assert {name: types[name]["availability"] for name in (*wanted, "silent")} == {**wanted, "silent": "installed"}
    assert types["postgres"]["url"] == "postgresql://USER@HOST/DATABASE"
    assert list(types["postgres"]["can"]) == [capability.name for capability in CAPABILITIES]
    told = {"append": True, "history": True, "without_key": True, "shared_access": True, "stored_array": "text[]"}
    assert told.items() <= types["postgres"]["can"].items()
    # What the declaration says is known without the library, what the destination itself says is not.
    assert (types["duckdb"]["can"]["history"], types["duckdb"]["can"]["backup"]) == (True, None)
    assert set(types["silent"]["can"].values()) == {None, False, "all"}
