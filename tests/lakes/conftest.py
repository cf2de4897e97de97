"""These tests have a DuckDB of their own: the version that its extensions are of."""

from __future__ import annotations

import duckdb
import pytest

from tests.integration.replication.conftest import churn, churned, lab

__all__ = ["churn", "churned", "lab"]

if not duckdb.__version__.startswith("1.5."):
    raise pytest.UsageError("run: make test TESTS=tests/lakes")
