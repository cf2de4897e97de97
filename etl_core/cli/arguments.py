"""The command line: commands, their options, and what is wrong with one, said in the words of every other error."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from etl_core import __version__
from etl_core.cli.exit_status import WRONG_USAGE
from etl_core.cli.failures import say
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.trigger_action import TriggerAction

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that was understood. `seconds` is `--for`; `tables` are those named, none for all.

    `file` is where a backup goes, or a `sources.yml`. `schema` is the table whose versions are shown. `ddl_trigger` is
    what becomes of the event trigger.
    """

    command: str
    config: Path = Path("etl.yaml")
    verbose: int = 0
    quiet: bool = False
    tables: Sequence[TableName] = ()
    all: bool = False
    until_caught_up: bool = False
    seconds: float | None = None
    json: bool = False
    yes: bool = False
    file: Path | None = None
    schema: TableName | None = None
    ddl_trigger: TriggerAction | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether a stream is to end by itself."""
        return self.until_caught_up or self.seconds is not None


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Reads `argv` (default: the process's). Ends the process for --help, --version (0) and wrong usage (2)."""
    parser = _build_parser()
    values = vars(parser.parse_args(argv))
    if "command" not in values:
        parser.print_help()
        parser.exit(WRONG_USAGE)
    return Arguments(**values)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as `etl: sentence` and `  → hint`."""

    def error(self, message: str) -> NoReturn:
        say(message, f"{self.prog} --help")
        raise SystemExit(WRONG_USAGE)


def _build_parser() -> argparse.ArgumentParser:
    common = _common_options()
    parser = _Parser(
        prog="etl",
        description="Replicates PostgreSQL tables into an analytical database: a copy of each, then every change.",
        epilog="Exit status: 0 done; 1 failed or different; 2 wrong usage or configuration; 3 not finished in the time "
        "given (--for), run it again; 130 interrupted by Ctrl-C (143 by SIGTERM, 129 by SIGHUP) before it was done.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"etl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        added.set_defaults(command=name)
        return added

    doctor = add("doctor", "Check whether the source can be replicated safely, and print the SQL that mends it.")
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
    sync = add("sync", "Copy the tables that were not copied yet; named ones, or all, again, behind the swap.")
    which = sync.add_mutually_exclusive_group()
    _add_tables(which)
    which.add_argument(
        "--all",
        action="store_true",
        default=argparse.SUPPRESS,
        help="every table again that is not paused; so a pipeline is moved to another destination",
    )
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
    for name, text in (
        ("resync", "Have tables copied again, behind the swap: by a running `etl run`, or the next one."),
        ("pause", "Stop replicating tables; their data stays as it is."),
        ("resume", "Replicate paused or failed tables again, beginning with a copy."),
    ):
        add(name, text).add_argument("tables", nargs="+", type=_table, metavar="TABLE", help="namespace.name")
    approve = add("approve", "Let tables do what they wait for; without a table, list what waits for a person.")
    approve.add_argument(
        "tables", nargs="*", type=_table, default=argparse.SUPPRESS, metavar="TABLE", help="namespace.name"
    )
    backup = add("backup", "Copy the destination's file (DuckDB), consistently, also while a run writes it.")
    backup.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist yet")
    sources = add("dbt-sources", "Write a sources.yml for dbt: the replicated tables as sources.")
    sources.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the file, replaced (standard output)")
    destinations = add("destinations", "List the destinations that are installed, and what each can do.")
    destinations.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    add("metrics", "Serve the metrics of a pipeline that something else runs, such as Dagster, until stopped.")
    add("failpoints", "List the places where ETL_FAILPOINTS can make a test process fail, and how.")
    teardown = add("teardown", "Drop the slots and the publication this pipeline created, and forget its state.")
    teardown.add_argument("--yes", action="store_true", default=argparse.SUPPRESS, help="do not ask")
    return parser


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
        type=_table,
        dest="tables",
        metavar="TABLE",
        default=argparse.SUPPRESS,
        help="namespace.name; may be given several times (all)",
    )


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
