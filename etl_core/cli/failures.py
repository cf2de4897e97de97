"""What a person sees of a failure: one sentence and one hint on stderr, and the exit status."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from etl_core.cli.exit_status import FAILED, WRONG_USAGE
from etl_core.errors import ConfigError, EtlError
from etl_core.os_errors import explain_os_error

_log = logging.getLogger(__name__)


def say(sentence: str, hint: str | None = None) -> None:
    """Writes `etl: sentence` and `  → hint` to stderr, a line each."""
    print(_lines(sentence, hint), file=sys.stderr, flush=True)  # noqa: T201 the command line's voice


def report(error: BaseException, *, verbose: bool) -> int:
    """Says what went wrong; returns the exit status."""
    error = explain_os_error(error) or error
    if isinstance(error, EtlError):
        _log.debug("the command failed", exc_info=error)
        say(str(error), error.hint)
        return WRONG_USAGE if isinstance(error, ConfigError) else FAILED
    _report_unexpected(error, verbose)
    return FAILED


@contextmanager
def reported_threads(*, verbose: bool) -> Iterator[None]:
    """Within the block, what a thread dies of is said like everything else."""

    def report_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            report(args.exc_value, verbose=verbose)

    before = threading.excepthook
    threading.excepthook = report_thread
    try:
        yield
    finally:
        threading.excepthook = before


def _report_unexpected(error: BaseException, verbose: bool) -> None:
    # The exception's own text is not repeated: nobody has checked it for row values and secrets.
    sentence = f"unexpected {type(error).__name__}{_place(error.__traceback__)}"
    if verbose:
        traceback.print_exception(error)
        say(sentence, "this is a defect: please report it with the traceback, after a look at what it shows")
    else:
        say(sentence, "this is a defect; run with -v for the traceback")


def _place(trace: TracebackType | None) -> str:
    """The innermost of our own files on the way to the error."""
    ours = [frame for frame in traceback.extract_tb(trace) if "etl_core" in frame.filename]
    if not ours:
        return ""
    return f" in etl_core{ours[-1].filename.rpartition('etl_core')[2]}, line {ours[-1].lineno}"


def _lines(sentence: str, hint: str | None) -> str:
    line = f"etl: {_one_line(sentence)}"
    return f"{line}\n  → {_one_line(hint)}" if hint else line


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
