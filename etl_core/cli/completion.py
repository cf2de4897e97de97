"""`etl completion`: a script by which a shell completes the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.parser import build_parser
from etl_core.cli.texts import put
from etl_core.errors import PermanentError

_FILE = "FILE"


def completion(arguments: Arguments) -> int:
    """Raises PermanentError where the library that writes the scripts is missing."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise PermanentError(
            "etl completion needs the Python package shtab, which is not installed",
            hint="run: pip install 'etl-dagster[completion]'",
        ) from None
    parser = build_parser()
    for action in _actions(parser):
        if action.metavar == _FILE:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # shtab's way to be told
    put(shtab.complete(parser, shell=str(arguments.shell)).rstrip("\n"))
    return DONE


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no public list
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
