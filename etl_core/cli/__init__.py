"""The `etl` command: a thin shell over `Pipeline`."""

from __future__ import annotations

from etl_core.cli.entry import main

__all__ = ["main"]
