"""The command line, read and refused."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from etl_core import __version__
from etl_core.cli import main
from etl_core.cli.arguments import Arguments
from etl_core.cli.examples import EXAMPLES
from etl_core.cli.parser import SHELLS, build_parser, parse_arguments
from etl_core.identifiers import TableName
from etl_core.table_pattern import TablePattern


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
        ("pause --all", Arguments("pause", all=True)),
        ("resync a sales.*", Arguments("resync", tables=[TableName("public", "a"), TablePattern("sales.*")])),
        ('verify --table "x*"', Arguments("verify", tables=[TableName("public", "x*")])),
        ("approve", Arguments("approve")),
        ("init host=db --to duckdb:x", Arguments("init", source="host=db", to="duckdb:x")),
        ("config check", Arguments("config check")),
        ("config check -v x.yaml", Arguments("config check", file=Path("x.yaml"), verbose=1)),
        ("completion zsh", Arguments("completion", shell="zsh")),  # noqa: S604
        ("compact", Arguments("compact")),
        ("compact a", Arguments("compact", tables=[TableName("public", "a")])),
        ("teardown --yes", Arguments("teardown", yes=True)),
        # What holds for all commands may stand on either side of the command.
        ("-c x.yaml -v status", Arguments("status", config=Path("x.yaml"), verbose=1)),
        ("status -c x.yaml -vv", Arguments("status", config=Path("x.yaml"), verbose=2)),
        ("--quiet -c a.yaml run -c b.yaml", Arguments("run", config=Path("b.yaml"), quiet=True)),
    ],
)
def test_a_line_is_read(line: str, wanted: Arguments) -> None:
    assert parse_arguments(line.split()) == wanted


def test_every_command_has_examples_and_all_of_them_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [command for command, _ in subcommands(build_parser())]
    assert EXAMPLES.keys() == {"etl", *commands}
    for lines in EXAMPLES.values():
        for line, _ in lines:
            etl, *arguments = shlex.split(line.partition(" > ")[0])
            assert etl == "etl"
            parse_arguments(arguments)
    for command in commands:
        with pytest.raises(SystemExit):
            parse_arguments([*command.split()[1:], "--help"])
        assert f"examples:\n  {EXAMPLES[command][0][0]}" in capsys.readouterr().out


def subcommands(parser: argparse.ArgumentParser, name: str = "etl") -> list[tuple[str, argparse.ArgumentParser]]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found += [(f"{name} {word}", below), *subcommands(below, f"{name} {word}")]
    return found


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("status --jso", "unrecognized arguments: --jso"),
        ("run --for 5x", "argument --for: '5x' is not a duration"),
        ("run --for 0s", "the time must be greater than 0"),
        ("run --for 5s --until-caught-up", "not allowed with argument"),
        ("sync --table a..b", "argument --table: 'a..b' is not a table name"),
        ("sync --all --table orders", "not allowed with argument"),
        ("sync orders", "unrecognized arguments: orders"),
        ("resync", "one of the arguments TABLE --all is required"),
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


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fly", "etl: there is no command 'fly'\n  → etl --help lists them\n"),
        ("statsu --json", "etl: there is no command 'statsu'\n  → did you mean etl status?\n"),
        ("config chek", "etl: there is no command 'chek'\n  → did you mean etl config check?\n"),
    ],
)
def test_a_misspelt_command(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(line.split())
    assert (ended.value.code, capsys.readouterr().err) == (2, told)


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


def test_the_package_is_the_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "etl_core", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"etl {__version__}\n"


def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "resync" in capsys.readouterr().out
    main(["completion", "bash"])
    (tmp_path / "etl.bash").write_text(capsys.readouterr().out)
    (tmp_path / "eu.yaml").touch()
    program = """
    source ./etl.bash
    complete_after() {
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        "$(complete -p etl | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        echo "${COMPREPLY[@]}"
    }
    complete_after etl res
    complete_after etl run --un
    complete_after etl config c
    complete_after etl -c eu
    """
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["resync resume", "--until-caught-up", "check", "eu.yaml"], done.stderr
