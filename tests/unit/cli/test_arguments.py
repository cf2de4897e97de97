"""The command line, read and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core import __version__
from etl_core.cli.arguments import Arguments, parse_arguments
from etl_core.identifiers import TableName


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("doctor", Arguments("doctor")),
        ("sync", Arguments("sync")),
        (
            "sync --table orders --table Sales.x",
            Arguments("sync", tables=[TableName("public", "orders"), TableName("sales", "x")]),
        ),
        ("sync --all", Arguments("sync", all=True)),
        ("stream --until-caught-up", Arguments("stream", until_caught_up=True)),
        ("run --for 2m", Arguments("run", seconds=120.0)),
        ("run --for 500ms", Arguments("run", seconds=0.5)),
        ("status --json", Arguments("status", json=True)),
        ("verify --table orders", Arguments("verify", tables=[TableName("public", "orders")])),
        ("pause a b", Arguments("pause", tables=[TableName("public", "a"), TableName("public", "b")])),
        ("teardown --yes", Arguments("teardown", yes=True)),
        # What holds for all commands may stand on either side of the command.
        ("-c x.yaml -v status", Arguments("status", config=Path("x.yaml"), verbose=1)),
        ("status -c x.yaml -vv", Arguments("status", config=Path("x.yaml"), verbose=2)),
        ("--quiet -c a.yaml run -c b.yaml", Arguments("run", config=Path("b.yaml"), quiet=True)),
    ],
)
def test_a_line_is_read(line: str, wanted: Arguments) -> None:
    assert parse_arguments(line.split()) == wanted


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("fly", "invalid choice: 'fly'"),
        ("status --jso", "unrecognized arguments: --jso"),
        ("run --for 5x", "argument --for: '5x' is not a duration"),
        ("run --for 0s", "the time must be greater than 0"),
        ("run --for 5s --until-caught-up", "not allowed with argument"),
        ("sync --table a..b", "argument --table: 'a..b' is not a table name"),
        ("sync --all --table orders", "not allowed with argument"),
        ("sync orders", "unrecognized arguments: orders"),
        ("resync", "the following arguments are required: TABLE"),
        ("doctor --table orders", "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(line.split())
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("etl: ")
    assert sentence in first
    assert second.startswith("  → etl ")
    assert second.endswith("--help")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"etl {__version__}\n"
