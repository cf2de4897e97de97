"""The exit statuses of every command, as `etl --help` and `docs/configuration.md` list them."""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_USAGE = 2
UNKNOWN = 2
"""Of `etl status`: whether something needs a person cannot be told now."""
NOT_FINISHED = 3
"""The time given was over before the goal was reached; the same command goes on."""
INTERRUPTED = 130
"""By SIGINT. A shell's convention: 128 and the signal's number, so 143 by SIGTERM and 129 by SIGHUP."""
