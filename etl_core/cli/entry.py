"""The way in: reads command line and configuration, runs the command, turns what happens into an exit status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from etl_core import __version__
from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import FAILED
from etl_core.cli.failures import report, reported_threads, say
from etl_core.cli.interrupt import Interrupt
from etl_core.cli.logs import show_logs
from etl_core.cli.parser import parse_arguments
from etl_core.errors import ConfigError, TransientError

_log = logging.getLogger(__name__)


def run(argv: Sequence[str] | None, interrupt: Interrupt) -> int:
    """Runs `etl` with `argv` (None: the process's arguments); returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an arrow must not fail where the terminal is not UTF-8
    arguments = parse_arguments(argv)
    show_logs(arguments.verbose)
    verbose = arguments.verbose > 0
    try:
        with reported_threads(verbose=verbose):
            status = _run(arguments, interrupt)
        sys.stdout.flush()  # here, where a reader that has gone is no failure yet
        return status
    except BrokenPipeError:
        # Whoever read our output has gone. Python would fail once more when it flushes at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return FAILED
    except TransientError as error:
        if interrupt.is_interrupted:  # so that what was waited for was not waited for any longer
            say(f"interrupted: {error}")
            return interrupt.status
        return report(error, verbose=verbose)
    except Exception as error:
        return report(error, verbose=verbose)


def _run(arguments: Arguments, interrupt: Interrupt) -> int:
    # Imported here, one after the other: `etl --help` waits for none of it, a wrong configuration not for the engine.
    from etl_core.cli.commands import find_command_alone

    alone = find_command_alone(arguments.command)
    if alone is not None:
        return alone(arguments)
    from etl_core.config_file import load_config, locate

    config = load_config(arguments.config)
    from etl_core.cli.commands import run_command
    from etl_core.replication.failpoint_actions import activate_from_environment

    activate_from_environment()
    _log.info("etl %s, Python %s, %r", __version__, sys.version.partition(" ")[0], config)
    try:
        return run_command(arguments, config, interrupt)
    except ConfigError as error:
        raise locate(error, arguments.config) from error
