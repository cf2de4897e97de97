"""`docs/configuration.md` is true: its examples load, its errors are said, its keys are printed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from etl_core.cli import main
from etl_core.cli.parser import parse_arguments
from etl_core.cli.status_json import status_object
from etl_core.config import BatchConfig, CopyConfig, PipelineConfig, SourceConfig
from etl_core.config_file import load_config
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.policies import TablePolicy
from etl_core.replication.status import PipelineStatus
from etl_core.source.slot import SlotStatus
from etl_core.source.transport import Transport
from etl_core.state.store import ReplicationProgress, TableStatus
from etl_core.state.table_state import TableState

TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [(match[1], match[2]) for match in BLOCK.finditer(TEXT)]
LEAST = {
    "pipeline": "pipeline: shop\n",
    "source": "source: {host: db, database: shop, publication: p}\n",
    "destination": "destination: {type: duckdb, path: shop.duckdb}\n",
}


def examples() -> list[tuple[str, str | None]]:
    """Each YAML block, with the error it is followed by, if any."""
    following = [*BLOCKS[1:], ("", "")]
    return [
        (text, after if kind_after == "text" else None)
        for (kind, text), (kind_after, after) in zip(BLOCKS, following, strict=True)
        if kind == "yaml"
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_PASSWORD", "one")
    monkeypatch.setenv("STATE_PASSWORD", "two")
    monkeypatch.setenv("ETL_HASH_KEY", "x" * 32)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "shop").write_text("three\n")
    (tmp_path / "aws").write_text("#!/bin/sh\necho four\n")
    (tmp_path / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@pytest.mark.parametrize(("text", "error"), examples())
def test_an_example(text: str, error: str | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = [section for name, section in LEAST.items() if name not in yaml.safe_load(text)]
    (folder / "etl.yaml").write_text(text + "".join(missing))
    if error is None:
        load_config("etl.yaml").source.conninfo()
        return
    assert main(["status"]) == 2
    assert capsys.readouterr().err == error


def test_there_are_examples_of_both_kinds() -> None:
    errors = [error for _, error in examples() if error is not None]
    assert len(errors) >= 3
    assert len(examples()) - len(errors) >= 8


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (SourceConfig, "source."),
        (BatchConfig, "batch."),
        (CopyConfig, "copy."),
        (PipelineConfig, ""),
        (TablePolicy, ""),
    ],
)
def test_every_field_has_its_line(kind: type, prefix: str) -> None:
    for field in dataclasses.fields(kind):
        if field.name not in ("keywords", "policy", "telemetry"):  # the line `source.…`; the lines of their own fields
            assert f"| `{prefix}{field.name}` |" in TEXT or f"## `{field.name}`" in TEXT, field.name


def test_the_defaults_are_true() -> None:
    batch, copy = BatchConfig(), CopyConfig()
    for name, default in (
        ("batch.max_rows", batch.max_rows),
        ("batch.max_bytes", f"{batch.max_bytes >> 20}MiB"),
        ("batch.max_age", f"{batch.max_age:g}s"),
        ("copy.workers", copy.workers),
        ("copy.connections_per_table", copy.connections_per_table),
    ):
        [line] = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
        assert line.split("|")[3].strip() == str(default)


def shape(value: object) -> object:
    """Keys and kinds of a JSON value."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value)


def test_the_json_of_status_is_as_documented(folder: Path) -> None:
    (folder / "etl.yaml").write_text("".join(LEAST.values()))
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    table = TableStatus(
        TableId(1), TableName("public", "orders"), TableState.READY, 1, Lsn(1), None, 50000, updated_at=at
    )
    slot = SlotStatus(
        name="etl_shop",
        plugin="pgoutput",
        database="shop",
        temporary=False,
        active=True,
        active_pid=4711,
        restart_lsn=Lsn(1),
        confirmed_flush_lsn=Lsn(1),
        wal_status="reserved",
        safe_wal_size=None,
        two_phase=False,
        invalidation_reason=None,
        inactive_since=None,
        bytes_behind=0,
    )
    known = PipelineStatus(
        [table],
        {TableId(1): Lsn(1)},
        ReplicationProgress(Lsn(1), at, 10, 5.0, 0.4, at),
        slot,
        None,
        None,
        transport=Transport("tls", False, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "verify-full"),
    )
    [documented] = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    assert shape(documented) == shape(json.loads(json.dumps(status_object(load_config("etl.yaml"), known, at))))


def test_every_command_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    commands = re.findall(r"^    ([\w-]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) == 20
    for command in commands:
        assert f"`etl {command}" in TEXT
