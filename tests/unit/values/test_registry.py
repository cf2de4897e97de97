"""The registry of type families: what belongs to which, and families that another package adds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from etl_core.errors import ConfigError
from etl_core.schema.pg_types import builtin, has_form
from etl_core.schema.table import PgType, TypeKind
from etl_core.values.families import FAMILIES, UNKNOWN
from etl_core.values.family import TypeFamily
from etl_core.values.registry import _index, family_of, known_families, resolve
from etl_core.values.scalars import load_string

_PACKAGE = """
import pyarrow as pa
from etl_core.values.family import TypeFamily
from etl_core.values.scalars import load_number, load_string

PATHS = TypeFamily("label_path", pa.string(), load_string, names=("label_path", "int4", "citext"))
SIZES = [TypeFamily("size", pa.int32(), load_number, names=("size",))]
BROKEN = TypeFamily("tiny", pa.int8(), load_number, names=("tiny",))
"""
_PROGRAM = """
import pyarrow as pa
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values import load
from etl_core.values.arrow import arrow_type
from etl_core.values.registry import family_of

def of(name):
    return PgType(70_000, name, "public")

def loaded(pg_type, texts):
    return load(pa.array(texts), Column("c", pg_type), TableName("public", "t")).to_pylist()

print(loaded(of("label_path"), ["a.b", None]))
print(loaded(PgType(70_001, "_size", "public", TypeKind.ARRAY, of("size")), ["{1,NULL}"]))
print(loaded(PgType(70_002, "d", "public", TypeKind.DOMAIN, of("size")), ["7"]))
print(family_of(of("citext")).name, family_of(of("other")).name, family_of(PgType(23, "int4")).name)
try:
    arrow_type(Column("c", of("tiny")))
except ConfigError as error:
    print(error)
"""


def _install(folder: Path, code: str, entries: str) -> dict[str, str]:
    """The environment of a process in which the package is installed, as pip leaves it."""
    (folder / "my_types.py").write_text(code)
    metadata = folder / "my_types-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-types\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[etl.types]\n{entries}\n")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path}


def _run(program: str, environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_another_package_adds_families(tmp_path: Path) -> None:
    entries = "paths = my_types:PATHS\nsizes = my_types:SIZES\ntiny = my_types:BROKEN"
    assert _run(_PROGRAM, _install(tmp_path, _PACKAGE, entries)) == [
        "['a.b', None]",
        "[[1, None]]",
        "[7]",
        "string unknown int4",
        "type family tiny has Arrow type int8, which the destinations do not store",
    ]


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "types.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entries,) = re.findall(r'```toml\n\[project.entry-points."etl.types"\]\n(.*?)```', page, re.DOTALL)
    program = """
from etl_core.schema.table import PgType
from etl_core.values.registry import family_of
print(family_of(PgType(70_000, "label_path", "public")).name)
"""
    assert _run(program, _install(tmp_path, code, entries.replace('"', ""))) == ["my_label_path"]


def test_a_family_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    program = """
from etl_core.errors import ConfigError
from etl_core.schema.table import PgType
from etl_core.values.registry import family_of
print(family_of(PgType(23, "int4")).name)
try:
    family_of(PgType(70_000, "label_path", "public"))
except ConfigError as error:
    print(error)
"""
    found = _run(program, _install(tmp_path, "", "paths = my_types:PATHS"))
    assert found[0] == "int4", "ours need no other package"
    assert found[1].startswith("type family paths (my_types:PATHS) cannot be loaded: AttributeError")


def test_two_families_do_not_claim_one_type() -> None:
    one = TypeFamily("one", pa.string(), load_string, names=("thing",))
    other = TypeFamily("other", pa.string(), load_string, names=("thing",))
    with pytest.raises(ConfigError, match="one and other both claim the PostgreSQL type thing"):
        _index([one, other])


def test_every_family_has_a_name_and_a_type_of_its_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.oids or family.names or family.kinds
        for oid in family.oids:
            pg_type = builtin(oid)
            assert pg_type is not None
            assert family_of(replace(pg_type, form=2) if has_form(pg_type) else pg_type) is family
    assert known_families()[: len(FAMILIES)] == FAMILIES


def test_a_name_is_that_of_a_base_type_only() -> None:
    assert family_of(PgType(70_000, "citext", "any")).name == "string"
    assert family_of(PgType(70_000, "citext", "any", TypeKind.COMPOSITE)) is UNKNOWN
    mood = PgType(70_000, "citext", "any", TypeKind.ENUM)
    assert resolve(PgType(70_001, "_citext", "any", TypeKind.ARRAY, mood), -1) == (None, pa.list_(pa.string()))
