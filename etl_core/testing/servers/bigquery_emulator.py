"""`local-bigquery` as a process, in a virtual environment of its own: it needs Python 3.13 and refuses our libraries.

The environment is made once, under the cache directory that PostgreSQL's programs have too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etl_core.errors import ConfigError
from etl_core.testing.postgres_cache import cached_directory
from etl_core.testing.postgres_process import free_port

_PACKAGES = (
    "local-bigquery==0.3.2",
    "duckdb==1.5.5",
    "duckdb-extensions==1.5.5",
    "duckdb-extension-icu==1.5.5",
    "duckdb-extension-ducklake==1.5.5",
    "duckdb-extension-spatial==1.5.5",
)
_IMPORT = "from duckdb_extensions import import_extension as i; [i(e) for e in ('icu', 'ducklake', 'spatial')]"
_PATCHED = Path(__file__).with_name("bigquery_emulator_patched.py")
_BEGINS_WITHIN = 300.0


@dataclass(frozen=True, slots=True)
class BigQueryEmulator:
    """A running emulator, and the options of a destination in it."""

    project: str
    api_endpoint: str
    storage_endpoint: str

    def options(self, dataset: str = "{namespace}") -> dict[str, str]:
        return {
            "project": self.project,
            "dataset": dataset,
            "api_endpoint": self.api_endpoint,
            "storage_endpoint": self.storage_endpoint,
        }


@contextlib.contextmanager
def running_emulator() -> Iterator[BigQueryEmulator]:
    """An empty emulator for the length of the block. Raises ConfigError if it cannot be installed here."""
    python = cached_directory("local-bigquery-0.3.2", _install) / "bin" / "python"
    rest, grpc = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="bigquery-") as directory:
        log = Path(directory) / "log"
        command = [str(python), str(_PATCHED), "--host", "127.0.0.1", "--port", str(rest), "--grpc-port", str(grpc)]
        command += ["--project", "emulated", "--dataset", "first", "--data-dir", directory, "serve"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            emulator = BigQueryEmulator("emulated", f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")
            _wait(emulator, process, log)
            yield emulator
        finally:
            process.kill()
            process.wait()


def _wait(emulator: BigQueryEmulator, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _BEGINS_WITHIN
    url = f"{emulator.api_endpoint}/bigquery/v2/projects/{emulator.project}/datasets"
    while True:
        with contextlib.suppress(OSError):  # not yet, or not within a moment
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server on this machine
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"local-bigquery did not begin: {log.read_text()[-500:]}")
        time.sleep(0.1)


def _install(directory: Path) -> None:
    python = _find_python()
    if python is None:
        raise ConfigError("local-bigquery needs Python 3.13, which is not here", hint="install it, such as with pyenv")
    try:
        subprocess.run([python, "-m", "venv", str(directory)], check=True, capture_output=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", *_PACKAGES]
        subprocess.run(pip, check=True, capture_output=True)
        subprocess.run([str(directory / "bin" / "python"), "-c", _IMPORT], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"local-bigquery cannot be installed here: {error.stderr.decode()[-300:]}") from None


def _find_python() -> str | None:
    found = shutil.which("python3.13")
    if found is not None and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
        return found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    return next((str(path) for path in sorted(pyenv.glob("3.13.*/bin/python"))), None)
