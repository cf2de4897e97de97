"""`write_mode` in the configuration: which tables have it, what is refused, and by which destinations."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.config import DestinationConfig, PipelineConfig
from etl_core.config_file import load_config
from etl_core.destination.registry import check_write_modes
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.write_mode import WriteMode

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


def test_the_last_entry_that_has_one_decides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'write_mode: soft_delete\ntables:\n  "public.tmp_*": {write_mode: mirror}\n'
        "  tmp_kept: {write_mode: soft_delete}\n  tmp_other: {columns: {exclude: [a]}}\n",
    )
    names = ("orders", "tmp_a", "tmp_kept", "tmp_other")
    assert [config.write_mode_of(TableName("public", name)).value for name in names] == [
        "soft_delete",
        "mirror",
        "soft_delete",
        "mirror",
    ]
    assert load(tmp_path, "").write_mode_of(TableName("public", "orders")) is WriteMode.MIRROR


@pytest.mark.parametrize(
    ("more", "field", "line"),
    [
        ("write_mode: soft-delete\n", "write_mode", 5),
        ("tables:\n  users: {write_mode: softdelete}\n", "tables.users.write_mode", 6),
        ("tables:\n  users: {write_mode: [mirror]}\n", "tables.users.write_mode", 6),
    ],
)
def test_what_is_no_mode_is_refused_with_its_line(tmp_path: Path, more: str, field: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more)
    assert (caught.value.field, caught.value.line) == (field, line)


def test_a_destination_that_cannot_is_refused_with_a_sentence() -> None:
    modes = [("write_mode", WriteMode.MIRROR), ("tables.users.write_mode", WriteMode.SOFT_DELETE)]
    streamed = DestinationConfig("bigquery", {"project": "p", "method": "storage_write_cdc"})
    with pytest.raises(ConfigError) as caught:
        check_write_modes(streamed, modes)
    assert caught.value.field == "tables.users.write_mode"
    assert str(caught.value) == (
        "tables.users.write_mode: is soft_delete, which destination type bigquery cannot do: destination.method is "
        "storage_write_cdc, by which a deleted row loses its values; with load_merge it can"
    )
    with pytest.raises(ConfigError, match=r"is append, which .* has one row for each key; with load_merge it can"):
        check_write_modes(streamed, [("write_mode", WriteMode.APPEND)])
    modes.append(("tables.log.write_mode", WriteMode.APPEND))
    history = [("write_mode", WriteMode.HISTORY)]
    for method in ("auto", "load_merge"):
        check_write_modes(DestinationConfig("bigquery", {"project": "p", "method": method}), modes)
        with pytest.raises(ConfigError, match="its views of versions are not made there; with append"):
            check_write_modes(DestinationConfig("bigquery", {"project": "p", "method": method}), history)
    check_write_modes(DestinationConfig("duckdb", {"path": "x.duckdb"}), [*modes, *history])
    with pytest.raises(ConfigError, match="destination type memory cannot do: it has no views"):
        check_write_modes(DestinationConfig("memory", {}), history)
    check_write_modes(DestinationConfig("postgres", {"dsn": "postgresql://h/d"}), [*modes, *history])
    check_write_modes(streamed, modes[:1])


def test_a_type_that_does_not_say_is_for_mirrors_alone() -> None:
    mirrors = DestinationConfig(f"{__name__}:build", {})
    with pytest.raises(ConfigError, match="it keeps the rows that the source has, and no others"):
        check_write_modes(mirrors, [("write_mode", WriteMode.SOFT_DELETE)])


def build(_options: object, _pipeline: str) -> None:
    """The factory of a destination that nothing is known of."""
