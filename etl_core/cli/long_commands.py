"""The commands that move rows. They show progress, and end at a transaction boundary when interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event

from etl_core.cli.arguments import Arguments
from etl_core.cli.display import Display
from etl_core.cli.interrupt import Interrupt
from etl_core.cli.line_display import LineDisplay
from etl_core.cli.replicate import run, stream, sync
from etl_core.cli.session import Session
from etl_core.cli.verify import verify
from etl_core.config import PipelineConfig
from etl_core.pipeline import Pipeline
from etl_core.replication.observer import Observers
from etl_core.telemetry.setup import Telemetry

_LONG: dict[str, Callable[[Session], int]] = {"sync": sync, "stream": stream, "run": run, "verify": verify}


def run_long_command(arguments: Arguments, config: PipelineConfig, interrupt: Interrupt) -> int:
    """Runs the command; returns the exit status. Raises what it fails with."""
    stop = Event()
    display = _choose_display(arguments, config)
    interrupt.stops(stop, display.say)
    telemetry = Telemetry(config.telemetry, config.pipeline)
    observer = Observers(display, *telemetry.observers) if telemetry.observers else display
    with Pipeline(config, observer=observer, stop=stop) as pipeline:
        session = Session(pipeline, arguments, display, interrupt)
        with display, telemetry.served(pipeline):
            status = _LONG[arguments.command](session)
        session.print_results()
    return status


def _choose_display(arguments: Arguments, config: PipelineConfig) -> Display:
    if arguments.quiet:
        return Display()
    if sys.stderr.isatty():
        from rich.console import Console  # for a terminal alone: a service and a pipe never load it

        from etl_core.cli.live_display import LiveDisplay

        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveDisplay(console, f"{config.pipeline} → {config.destination.type}")
    return LineDisplay()
