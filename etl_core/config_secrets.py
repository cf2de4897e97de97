"""Passwords that are kept elsewhere: in a file, or printed by a command, such as a cloud's token that expires.

Both are read at every connection, so that a password may change while a process runs. What a file holds or a command
prints is never shown, nor are a command's arguments, which may hold a secret themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from etl_core.config_values import config_error
from etl_core.errors import SourceUnavailable

COMMAND_TIMEOUT = 30.0
"""Seconds that a command may take to print the password."""
_RUN_IT = "run it by hand, as the user and with the environment of this process, to see why"


def read_password(path: Path) -> str:
    """The one line that the file at `path` holds. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise config_error("source.password_file", f"{path} cannot be read: {reason}") from None
    password = text.rstrip("\r\n")
    if not _is_password(password):
        raise config_error("source.password_file", f"{path} must hold the password alone, on one line")
    return password


def run_password_command(arguments: Sequence[str], *, timeout: float = COMMAND_TIMEOUT) -> str:
    """The one line that the command writes to its standard output. No shell is involved.

    Raises ConfigError if the program cannot be run, SourceUnavailable if it fails, prints something else, or takes
    longer than `timeout` seconds.
    """
    name = Path(arguments[0]).name
    try:
        # A session of its own: Ctrl-C is for us to hear, and what it has started ends with it.
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise config_error("source.password_command", f"{name} cannot be run: {error.strerror}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _failed(name, f"printed no password within {timeout:g} s") from None
            raise
    if process.returncode != 0:
        ended = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise _failed(name, f"ended with {ended}")
    password = output.rstrip(b"\r\n").decode("utf-8", "replace")
    if not _is_password(password) or "\ufffd" in password:
        raise _failed(name, "must print the password alone, on one line")
    return password


def _is_password(text: str) -> bool:
    return bool(text) and "\0" not in text and "\n" not in text


def _failed(name: str, what: str) -> SourceUnavailable:
    return SourceUnavailable(f"source.password_command: {name} {what}", hint=_RUN_IT)
