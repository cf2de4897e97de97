"""Where PostgreSQL's programs are kept when they cannot run where they are, and who runs them.

A server refuses to run as root, so root runs it as `nobody` (uid and gid 65534), who may reach neither a virtual
environment in root's home nor root's cache: root keeps the programs under /var/tmp. Anybody else has a cache at home.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etl_core.errors import ConfigError

NOBODY = 65534
_MANIFEST = "files.json"


def server_uid() -> int:
    """The user a server of ours runs as."""
    return os.geteuid() or NOBODY


def server_user() -> Mapping[str, Any]:
    """The `subprocess` arguments that run a program as the server's user: nobody for root, ourselves otherwise."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def give_to_server(directory: Path) -> None:
    """Make the server's user the owner of `directory`. Raises ConfigError when that user cannot get there."""
    if os.geteuid() != 0:
        return
    for parent in directory.absolute().parents:
        status = parent.stat()
        if not status.st_mode & (0o100 if status.st_uid == NOBODY else 0o001):
            raise ConfigError(
                f"root runs PostgreSQL as user {NOBODY}, who may not enter {parent}",
                hint="put the directory where every user may go, such as under /var/tmp",
            )
    os.chown(directory, NOBODY, NOBODY)


def cached_directory(key: str, build: Callable[[Path], None]) -> Path:
    """The cached directory `key`, filled by `build(new_directory)` when it is absent or no longer whole.

    Any number of processes may ask at once: one builds, the others wait. A build that dies leaves nothing under `key`.
    """
    cache = _cache()
    target = cache / key
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            building = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=cache))
            try:
                build(building)
                _open_to_all(building)
                (building / _MANIFEST).write_text(json.dumps(_sizes(building)))
                building.rename(target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return target


def _cache() -> Path:
    if os.geteuid() != 0:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(home) / "etl-postgres"
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    directory = Path("/var/tmp/etl-postgres-0")  # noqa: S108 - its owner and mode are checked
    directory.mkdir(mode=0o755, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise ConfigError(f"{directory} is not root's own directory", hint="find out who made it, then remove it")
    directory.chmod(0o755)  # whatever the umask
    return directory


def _open_to_all(directory: Path) -> None:
    """Let everybody read `directory` and run its programs, whatever the umask was when its files were made."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def _is_whole(directory: Path) -> bool:
    """Whether every file that was built is still there: cleaners of temporary directories go by age, file by file."""
    try:
        built = json.loads((directory / _MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    found = _sizes(directory)
    found.pop(_MANIFEST)
    return bool(found == built)


def _sizes(root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118 - a thousand files at every start
            sizes[os.path.relpath(path, root)] = os.lstat(path).st_size
    return sizes
