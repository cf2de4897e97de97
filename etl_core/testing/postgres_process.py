"""The operating system's half of an embedded PostgreSQL: one postmaster started, watched and stopped."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from etl_core.errors import PermanentError
from etl_core.testing.postgres_cache import server_user

STOP_TIMEOUT = 10.0
"""Seconds that one way to end a server may take before a harder one is tried.

A fast shutdown waits for every walsender's consumer to confirm all WAL: for one that does not, without end.
"""
CLEAN_TIMEOUT = 300.0
"""The same where the end must be a clean one, and consumers may be slow."""

# Started beside the server with a pipe from us as its input. The pipe ends when we do, however we end, and then the
# watchdog ends the server. That takes no thread, no signal handler and nothing of the platform but /bin/sh; Linux's
# parent-death signal would follow the thread that started the server instead of the process. The wait is bounded
# because a dead process that its container's init does not reap still answers `kill -0`.
_WATCHDOG = """
data_dir=$1 server=$2; shift 2
read -r _
read -r pid < "$data_dir/postmaster.pid" && [ "$pid" = "$server" ] && kill -QUIT "$server"
tries=0
while [ $tries -lt 100 ] && kill -0 "$server"; do sleep 0.1; tries=$((tries + 1)); done
[ $# -eq 0 ] || rm -rf -- "$@"
"""


class Postmaster:
    """A running `postgres` process of ours and its watchdog.

    The server gets a session of its own, so that Ctrl-C reaches us and not it: we decide how it ends. `leftovers` are
    the directories that the watchdog removes when we end without stopping the server.
    """

    def __init__(
        self, arguments: Sequence[str | Path], *, data_dir: Path, log: Path, leftovers: Sequence[Path] = ()
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=server_environment(),
                start_new_session=True,
                **server_user(),
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", data_dir, str(self.pid), *leftovers],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **server_user(),
        )

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process.poll() is None

    def stop(self, patience: float = STOP_TIMEOUT) -> None:
        """Fast shutdown (SIGINT); immediate (SIGQUIT) if that takes too long; then SIGKILL. Returns when it is gone.

        `patience` is the time in seconds that each of the first two may take.
        """
        for number in (signal.SIGINT, signal.SIGQUIT):
            if self.is_running:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
        self.kill()

    def quit(self) -> None:
        """Immediate shutdown (SIGQUIT): no checkpoint, the next start recovers from the WAL."""
        if self.is_running:
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the postmaster and all its children, as when the machine dies."""
        if self.is_running:
            kill_tree(psutil.Process(self.pid))
            self._process.wait()
        self._watchdog.kill()
        self._watchdog.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()


def kill_tree(postmaster: psutil.Process) -> None:
    """SIGKILL for `postmaster` and its children; returns when all have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        postmaster.suspend()  # or it would start new children
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in processes:
            _wait_until_ended(process)


def _wait_until_ended(process: psutil.Process) -> bool:
    """True when `process` has ended within STOP_TIMEOUT, be it reaped or not: a container's init may never reap."""
    deadline = time.monotonic() + STOP_TIMEOUT
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
    return True


def stop_stale(data_dir: Path) -> None:
    """Stop the server that an interpreter killed together with its watchdog left behind on `data_dir`, if any."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        process = psutil.Process(int(lines[0]))
        if process.cwd() != str(data_dir):
            return  # the number belongs to another process by now
        process.send_signal(signal.SIGQUIT)
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return
    if not _wait_until_ended(process):
        kill_tree(process)
    with contextlib.suppress(OSError):  # its socket's directory, empty by now
        Path(lines[4]).rmdir()


def run_program(arguments: Sequence[str | Path]) -> None:
    """Run one of PostgreSQL's programs as the server's user. Raises PermanentError with the end of what it said."""
    result = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
        env=server_environment(),
        **server_user(),
    )
    if result.returncode:
        said = " ".join(result.stdout.split())[-500:]
        raise PermanentError(f"{Path(arguments[0]).name} failed with exit code {result.returncode}: {said}")


def server_environment() -> dict[str, str]:
    """Our environment without what would change a server's behaviour: PG*, locale, time zone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG", "TZ"))}
    return {**kept, "LC_ALL": "C"}


def wait_until_ready(postmaster: Postmaster, data_dir: Path, *, timeout: float) -> bool:
    """Wait until the server accepts connections; False if it ended instead. PermanentError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while postmaster.is_running:
        # The eighth line of postmaster.pid is the server's own word on its state (src/include/utils/pidfile.h).
        with contextlib.suppress(FileNotFoundError):
            lines = (data_dir / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and int(lines[0]) == postmaster.pid and lines[7].strip() == "ready":
                return True
        if time.monotonic() > deadline:
            raise PermanentError(f"PostgreSQL on {data_dir} is not ready after {timeout:.0f} s", hint="read its log")
        time.sleep(0.01)
    return False


def free_port() -> int:
    """A port nobody listens on, below the range from which systems take ports for outgoing connections.

    A port of that range could be taken by any program's connection while the server restarts.
    """
    while True:
        port = 20000 + secrets.randbelow(12768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
