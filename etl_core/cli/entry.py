"""The way in: reads command line and configuration, runs the command, turns what happens into an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from etl_core.cli.arguments import Arguments, parse_arguments
from etl_core.cli.failures import FAILED, INTERRUPTED, report, reported_threads, say
from etl_core.cli.logs import show_logs
from etl_core.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `etl` with `argv` (default: the process's arguments); returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an arrow must not fail where the terminal is not UTF-8
    arguments = parse_arguments(argv)
    show_logs(arguments.verbose)
    verbose = arguments.verbose > 0
    try:
        with reported_threads(verbose=verbose):
            return _run(arguments)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return report(error, verbose=verbose)


def _run(arguments: Arguments) -> int:
    # Imported here: they bring pyarrow and SQLAlchemy with them, which `etl --help` need not wait for.
    from etl_core.cli.commands import run_command
    from etl_core.config_file import load_config, locate
    from etl_core.replication.failpoints import activate_from_environment

    activate_from_environment()
    config = load_config(arguments.config)
    try:
        return run_command(arguments, config)
    except ConfigError as error:
        raise locate(error, arguments.config) from error
