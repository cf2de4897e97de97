"""The list of commands.

A command's module is imported when the command is asked for: `etl pause` does not wait for libraries that move rows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from etl_core.cli.arguments import Arguments

if TYPE_CHECKING:
    from etl_core.cli.interrupt import Interrupt
    from etl_core.config import PipelineConfig
    from etl_core.control import PipelineControl

# command: the module that has a function of that name, with _ for other characters
_ALONE: dict[str, str] = {
    "init": "etl_core.cli.init",
    "config check": "etl_core.cli.config_check",
    "config schema": "etl_core.cli.config_schema",
    "completion": "etl_core.cli.completion",
    "destinations": "etl_core.cli.destinations",
    "failpoints": "etl_core.cli.failpoints",
}
"""Without a configuration, or with one that need not be right."""

_SHORT: dict[str, str] = {
    "doctor": "etl_core.cli.doctor",
    "status": "etl_core.cli.status",
    "resync": "etl_core.cli.tables",
    "approve": "etl_core.cli.approve",
    "pause": "etl_core.cli.tables",
    "resume": "etl_core.cli.tables",
    "metrics": "etl_core.cli.metrics",
    "backup": "etl_core.cli.backup",
    "compact": "etl_core.cli.compact",
    "dbt-sources": "etl_core.cli.dbt_sources",
    "teardown": "etl_core.cli.teardown",
}


def find_command_alone(command: str) -> Callable[[Arguments], int] | None:
    """A command that is given no pipeline, None for one that is."""
    module = _ALONE.get(command)
    return None if module is None else cast(Callable[[Arguments], int], _function(module, command))


def run_command(arguments: Arguments, config: PipelineConfig, interrupt: Interrupt) -> int:
    """Runs the command of a pipeline; returns the exit status. Raises what it fails with."""
    module = _SHORT.get(arguments.command)
    if module is None:
        from etl_core.cli.long_commands import run_long_command

        return run_long_command(arguments, config, interrupt)
    from etl_core.control import PipelineControl

    command = cast("Callable[[PipelineControl, Arguments], int]", _function(module, arguments.command))
    with PipelineControl(config) as pipeline:
        return command(pipeline, arguments)


def _function(module: str, command: str) -> object:
    return getattr(importlib.import_module(module), command.replace("-", "_").replace(" ", "_"))
