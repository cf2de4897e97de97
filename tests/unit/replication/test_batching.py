"""When the transactions at hand become a batch."""

from __future__ import annotations

import pytest

from etl_core.config import BatchConfig
from etl_core.replication.batching import batch_is_due

LIMITS = BatchConfig(max_rows=1000, max_bytes=1 << 20, max_age=2.0)


@pytest.mark.parametrize(
    ("rows", "size", "age", "quiet", "writer_idle", "due"),
    [
        pytest.param(1000, 1, 0.0, False, False, True, id="as many rows as allowed, whoever is busy"),
        pytest.param(999, (1 << 20) - 1, 0.0, False, True, False, id="just below both limits, and young"),
        pytest.param(1, 1 << 20, 0.0, False, False, True, id="as many bytes as allowed"),
        pytest.param(1, 1, 2.0, False, True, True, id="old enough"),
        pytest.param(1, 1, 1.99, False, True, False, id="not old enough while more is coming"),
        pytest.param(1, 1, 0.5, True, True, True, id="a quarter of the age when nothing more comes"),
        pytest.param(1, 1, 0.49, True, True, False, id="not even that"),
        pytest.param(1, 1, 99.0, True, False, False, id="old, but the writer is busy: it grows meanwhile"),
    ],
)
def test_due(rows: int, size: int, age: float, quiet: bool, writer_idle: bool, due: bool) -> None:
    assert batch_is_due(LIMITS, rows=rows, size=size, age=age, quiet=quiet, writer_idle=writer_idle) is due
