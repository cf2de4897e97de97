"""The list of commands.

A command's module is imported when the command is asked for: `etl pause` does not wait for libraries that move rows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from etl_core.cli.arguments import Arguments
from etl_core.cli.interrupt import Interrupt
from etl_core.config import PipelineConfig
from etl_core.control import PipelineControl

# command: the module that has a function of that name, with _ for -
_SHORT: dict[str, str] = {
    "doctor": "etl_core.cli.doctor",
    "status": "etl_core.cli.status",
    "resync": "etl_core.cli.tables",
    "approve": "etl_core.cli.approve",
    "pause": "etl_core.cli.tables",
    "resume": "etl_core.cli.tables",
    "metrics": "etl_core.cli.metrics",
    "backup": "etl_core.cli.backup",
    "dbt-sources": "etl_core.cli.dbt_sources",
    "teardown": "etl_core.cli.teardown",
}


def run_command(arguments: Arguments, config: PipelineConfig, interrupt: Interrupt) -> int:
    """Runs the command; returns the exit status. Raises what it fails with."""
    module = _SHORT.get(arguments.command)
    if module is None:
        from etl_core.cli.long_commands import run_long_command

        return run_long_command(arguments, config, interrupt)
    found = getattr(importlib.import_module(module), arguments.command.replace("-", "_"))
    command = cast(Callable[[PipelineControl, Arguments], int], found)
    with PipelineControl(config) as pipeline:
        return command(pipeline, arguments)
