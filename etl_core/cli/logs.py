"""Log lines on stderr, for -v. Without it only warnings are shown."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def show_logs(verbose: int) -> None:
    """Shows the logs of `etl_core`: warnings, with -v information, with -vv everything."""
    logger = logging.getLogger("etl_core")
    logger.setLevel(_LEVELS[min(verbose, len(_LEVELS) - 1)])
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr())


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: a live display puts itself in between."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
