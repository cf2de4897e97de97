"""The command line: commands, their options, and what is wrong with one, said in the words of every other error."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

from etl_core import __version__
from etl_core.cli.arguments import Arguments
from etl_core.cli.examples import EXAMPLES
from etl_core.cli.exit_status import WRONG_USAGE
from etl_core.cli.failures import say
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.table_pattern import TablePattern
from etl_core.trigger_action import TriggerAction

_T = TypeVar("_T")

SHELLS = ("bash", "zsh", "fish", "tcsh")
_TABLE = 'namespace.name, or a pattern of them in quotes: "public.*"'
_EXAMPLES = "examples:"
_UNKNOWN_COMMAND = re.compile(r"argument (?:COMMAND|check\|schema): invalid choice: '([^']*)' \(choose from (.*)\)")
"""In the words of argparse, which lists every command."""


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Reads `argv` (default: the process's). Ends the process for --help, --version (0) and wrong usage (2)."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    if "command" not in values:
        parser.print_help()
        parser.exit(WRONG_USAGE)
    return Arguments(**values)


class _Help(argparse.HelpFormatter):
    """Keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapped, _, examples = text.partition(_EXAMPLES)
        filled = super()._fill_text(wrapped, width, indent) if wrapped.strip() else ""
        return "\n\n".join(part for part in (filled, f"{_EXAMPLES}{examples}" if examples else "") if part)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as `etl: sentence` and `  → hint`."""

    def error(self, message: str) -> NoReturn:
        unknown = _UNKNOWN_COMMAND.match(message)
        if unknown is not None:
            close = difflib.get_close_matches(unknown[1], re.findall(r"[\w-]+", unknown[2]), n=1)
            hint = f"did you mean {self.prog} {close[0]}?" if close else f"{self.prog} --help lists them"
            say(f"there is no command {unknown[1]!r}", hint)
        else:
            say(message, f"{self.prog} --help")
        raise SystemExit(WRONG_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `etl`. What it reads are the fields of Arguments that are there."""
    common = _common_options()
    parser = _Parser(
        prog="etl",
        description="Replicates PostgreSQL tables into an analytical database: a copy of each, then every change.",
        epilog="Exit status: 0 done; 1 failed or different; 2 wrong usage or configuration; 3 not finished in the time "
        "given (--for), run it again; 130 interrupted by Ctrl-C (143 by SIGTERM, 129 by SIGHUP) before it was done."
        + _examples("etl"),
        parents=[common],
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"etl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str, below: _Commands = commands, prefix: str = "") -> argparse.ArgumentParser:
        command = f"{prefix}{name}"
        added = below.add_parser(
            name,
            help=text,
            description=text,
            epilog=_examples(f"etl {command}"),
            parents=[common],
            allow_abbrev=False,
            formatter_class=_Help,
        )
        added.set_defaults(command=command)
        return added

    _add_setting_up(add)
    _add_running(add)
    _add_deciding(add)
    _add_files(add)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # it has no public name
_Add = Callable[..., argparse.ArgumentParser]


def _examples(name: str) -> str:
    """What follows `_EXAMPLES`, a line each."""
    lines = EXAMPLES.get(name, ())
    width = max((len(line) for line, _ in lines), default=0)
    shown = [f"  {line:<{width}}  {told}".rstrip() for line, told in lines]
    return "\n".join([f" {_EXAMPLES}", *shown]) if lines else ""


def _add_setting_up(add: _Add) -> None:
    init = add("init", "Write a configuration for the tables of a database, and check whether they can be replicated.")
    init.add_argument("source", metavar="URL", help="the source: postgresql://user@host:5432/database")
    init.add_argument(
        "--to",
        metavar="URL",
        default=argparse.SUPPRESS,
        help="the destination: duckdb:shop.duckdb, bigquery:project.dataset, postgresql://… (a DuckDB file)",
    )
    config = add("config", "Check a configuration without a connection, or print its JSON Schema.")
    parts = config.add_subparsers(metavar="check|schema", required=True, parser_class=_Parser)
    check = add("check", "Name everything that is wrong with a configuration. Connects to nothing.", parts, "config ")
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the configuration (etl.yaml)")
    add("schema", "Print the JSON Schema of the configuration, for editors.", parts, "config ")
    doctor = add("doctor", "Check whether the source can be replicated safely, and print the SQL that fixes it.")
    doctor.add_argument(
        "--ddl-trigger",
        type=_trigger_action,
        metavar="ACTION",
        nargs="?",
        const=TriggerAction.INSTALL,
        default=argparse.SUPPRESS,
        help="instead: print the SQL of the event trigger that has every ALTER TABLE told in the WAL, and install it"
        " (=print: do not; =remove: drop it); needs a superuser",
    )
    completion = add("completion", "Print a script that completes the command line in a shell.")
    completion.add_argument("shell", choices=SHELLS, help="the shell")


def _add_running(add: _Add) -> None:
    sync = add("sync", "Copy the tables that were not copied yet; named ones, or all, again, behind the swap.")
    which = sync.add_mutually_exclusive_group()
    _add_tables(which)
    _add_all(which, "every table again that is not paused; so a pipeline is moved to another destination")
    _add_bounds(add("stream", "Stream changes until stopped."))
    _add_bounds(add("run", "Copy what needs it and stream changes until stopped."))
    status = add("status", "Show tables, slot, throughput and lag.")
    status.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    status.add_argument(
        "--schema",
        type=_table,
        metavar="TABLE",
        default=argparse.SUPPRESS,
        help="the versions of one table's schema, with what changed, instead",
    )
    _add_tables(add("verify", "Compare source and destination at one position; exit 1 if they differ."))


def _add_deciding(add: _Add) -> None:
    for name, text, every in (
        (
            "resync",
            "Have tables copied again, behind the swap: by a running `etl run`, or the next one.",
            "every table that is not paused",
        ),
        ("pause", "Stop replicating tables; their data stays as it is.", "every table"),
        (
            "resume",
            "Replicate paused or failed tables again, beginning with a copy.",
            "every table that is paused or failed",
        ),
    ):
        which = add(name, text).add_mutually_exclusive_group(required=True)
        which.add_argument("tables", nargs="*", type=_entry, default=argparse.SUPPRESS, metavar="TABLE", help=_TABLE)
        _add_all(which, every)
    approve = add("approve", "Let tables do what they wait for; without a table, list what waits for a person.")
    which = approve.add_mutually_exclusive_group()
    which.add_argument("tables", nargs="*", type=_entry, default=argparse.SUPPRESS, metavar="TABLE", help=_TABLE)
    _add_all(which, "every table that waits")
    teardown = add("teardown", "Drop the slots and the publication this pipeline created, and forget its state.")
    teardown.add_argument("--yes", action="store_true", default=argparse.SUPPRESS, help="do not ask")


def _add_files(add: _Add) -> None:
    backup = add("backup", "Copy the destination's file (DuckDB), consistently, also while a run writes it.")
    backup.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist yet")
    compact = add("compact", "Merge the small files of a lake (DuckLake, Iceberg), and let old snapshots expire.")
    compact.add_argument("tables", nargs="*", type=_entry, default=argparse.SUPPRESS, metavar="TABLE", help=_TABLE)
    sources = add("dbt-sources", "Write a sources.yml for dbt: the replicated tables as sources.")
    sources.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the file, replaced (standard output)")
    destinations = add("destinations", "List the destinations that are installed, and what each can do.")
    destinations.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    add("metrics", "Serve the metrics of a pipeline that something else runs, such as Dagster, until stopped.")
    add("failpoints", "List the places where ETL_FAILPOINTS can make a test process fail, and how.")


def _common_options() -> _Parser:
    # Accepted before and after the command: without a default, the one does not undo the other.
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-c", "--config", type=Path, metavar="FILE", help="the configuration (etl.yaml)")
    common.add_argument("-v", "--verbose", action="count", help="show log lines, and tracebacks; -vv for more")
    common.add_argument("-q", "--quiet", action="store_true", help="show no progress, only errors and results")
    return common


def _add_tables(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--table",
        action="append",
        type=_entry,
        dest="tables",
        metavar="TABLE",
        default=argparse.SUPPRESS,
        help=f"{_TABLE}; may be given several times (all)",
    )


def _add_all(parser: argparse._ActionsContainer, text: str) -> None:
    parser.add_argument("--all", action="store_true", default=argparse.SUPPRESS, help=text)


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    bounds = parser.add_mutually_exclusive_group()
    bounds.add_argument(
        "--until-caught-up",
        action="store_true",
        default=argparse.SUPPRESS,
        help="end when everything that was committed at the start is replicated",
    )
    bounds.add_argument(
        "--for",
        type=_duration,
        dest="seconds",
        metavar="TIME",
        default=argparse.SUPPRESS,
        help="end after a time: 30s, 5m, 1h; copies that are under way then are finished first",
    )


def _trigger_action(text: str) -> TriggerAction:
    try:
        return TriggerAction(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TriggerAction)}") from None


def _table(text: str) -> TableName:
    return _read(TableName.parse, text)


def _entry(text: str) -> TableName | TablePattern:
    pattern = _read(TablePattern, text)
    return pattern if pattern.has_star else TableName.parse(text)


def _duration(text: str) -> float:
    from etl_core.config import parse_duration  # slow to import, and `etl --help` is not to wait for it

    seconds = _read(parse_duration, text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("the time must be greater than 0")
    return seconds


def _read(parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error}; {error.hint}") from None
