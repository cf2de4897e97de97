"""`schema_changes`, `recopy` and `recopy_max_bytes` in the configuration: which tables have them, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.config import PipelineConfig
from etl_core.config_file import load_config
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.policies import Recopy, SchemaChanges, TablePolicy

FILE = """\
pipeline: shop
source: {dsn: "postgresql://etl@db/shop", publication: shop_pub}
destination: {type: duckdb, path: shop.duckdb}
state: {url: "sqlite:///state.db"}
"""


def load(tmp_path: Path, more: str) -> PipelineConfig:
    file = tmp_path / "etl.yaml"
    file.write_text(FILE + more)
    return load_config(file)


def test_each_word_of_the_last_entry_that_has_it_decides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'schema_changes: add_only\nrecopy_max_bytes: 50GiB\ntables:\n  "public.big_*": {recopy: ask}\n'
        "  big_one: {schema_changes: approve, recopy_max_bytes: 1000}\n  big_two: {recopy: auto}\n",
    )
    names = ("orders", "big_a", "big_one", "big_two")
    limit = 50 * 2**30
    assert [config.policy_of(TableName("public", name)) for name in names] == [
        TablePolicy(SchemaChanges.ADD_ONLY, Recopy.AUTO, limit),
        TablePolicy(SchemaChanges.ADD_ONLY, Recopy.ASK, limit),
        TablePolicy(SchemaChanges.APPROVE, Recopy.ASK, 1000),
        TablePolicy(SchemaChanges.ADD_ONLY, Recopy.AUTO, limit),
    ]
    assert load(tmp_path, "").policy_of(TableName("public", "orders")) == TablePolicy()


@pytest.mark.parametrize(
    ("more", "field", "line"),
    [
        ("schema_changes: add-only\n", "schema_changes", 5),
        ("recopy: true\n", "recopy", 5),
        ("recopy_max_bytes: large\n", "recopy_max_bytes", 5),
        ("tables:\n  users: {recopy: never}\n", "tables.users.recopy", 6),
        ("tables:\n  users: {recopy_max_bytes: 0}\n", "tables.users.recopy_max_bytes", 6),
    ],
)
def test_what_is_none_is_refused_with_its_line(tmp_path: Path, more: str, field: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more)
    assert (caught.value.field, caught.value.line) == (field, line)
