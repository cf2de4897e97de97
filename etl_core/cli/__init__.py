"""The `etl` command: a thin shell over `Pipeline`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `etl` with `argv` (default: the process's arguments); returns its exit status.

    Signals are handled before anything slow is imported, so that Ctrl-C in the first moments leaves no traceback.
    """
    try:
        from etl_core.cli.interrupt import Interrupt

        with Interrupt(is_process=argv is None) as interrupt:
            from etl_core.cli.entry import run

            return run(argv, interrupt)
    except KeyboardInterrupt:  # before the handlers were in place, or outside the main thread
        sys.stderr.write("etl: interrupted\n")
        return 130
