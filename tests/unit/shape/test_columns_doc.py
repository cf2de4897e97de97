"""`docs/columns.md` is true: its configuration loads, its transform works, its hash is the hash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from etl_core.config_file import load_config
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.shape.keyed_hash import HashKey
from etl_core.shape.shapes import Shapes
from etl_core.shape.transforms import _REGISTERED
from etl_core.testing.destination_tables import INT8, TEXT, table

TEXT_OF_PAGE = (Path(__file__).parents[3] / "docs" / "columns.md").read_text(encoding="utf-8")
YAML, PYTHON = re.findall(r"```(?:yaml|python)\n(.*?)```", TEXT_OF_PAGE, re.DOTALL)


def test_the_configuration_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETL_HASH_KEY", "x" * 32)
    (tmp_path / "etl.yaml").write_text(YAML)
    config = load_config(tmp_path / "etl.yaml")
    shapes = Shapes.checked(config.tables, config.hash_key)
    names = ("email", "phone", "zip", "born", "fullname", "internal_note")
    users = table("users", Column("id", INT8), *(Column(name, TEXT) for name in names))
    assert shapes.of(users).target.column_names == ("id", "email", "phone", "zip", "born", "name")
    actions = {name: action for name, (action, _) in shapes.rules(TableName("public", "users")).actions.items()}
    assert actions == {
        "internal_note": "exclude",
        "email": "hash",
        "phone": "mask",
        "zip": "truncate",
        "born": "null",
    }


def test_a_transform_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_REGISTERED, "lower"):
        monkeypatch.setitem(_REGISTERED, name, _REGISTERED.get(name))  # put back at the end
    scope: dict[str, Any] = {}
    exec(PYTHON, scope)  # noqa: S102
    function = _REGISTERED["lower"].function
    assert function is not None
    assert function(None, None)(pa.array(["Ada", None])).to_pylist() == ["ada", None]


def test_the_hash_of_one_value() -> None:
    [said] = re.findall(r"`(etl_core\.shape\.keyed_hash\.HashKey.*?)`", TEXT_OF_PAGE)
    call = said.removeprefix("etl_core.shape.keyed_hash.")
    assert len(eval(call, {"HashKey": HashKey, "key": "x" * 32})) == 32  # noqa: S307


def test_every_transform_has_its_line() -> None:
    for name in ("include", "exclude", "rename", *_REGISTERED):
        assert f"| `{name}` |" in TEXT_OF_PAGE
