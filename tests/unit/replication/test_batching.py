"""When the transactions at hand become a batch."""

from __future__ import annotations

import pytest

from etl_core.config import BatchConfig
from etl_core.replication.batching import batch_is_due, bytes_per_read
from etl_core.source.replication_stream import READ_BYTES

PATIENT = BatchConfig(max_rows=1000, max_bytes=1 << 20, max_age=2.0)
PROMPT = BatchConfig(max_rows=1000, max_bytes=1 << 20, max_age=1.0)


@pytest.mark.parametrize(
    ("limits", "rows", "size", "age", "quiet", "writer_idle", "last_write", "due"),
    [
        pytest.param(PATIENT, 1000, 1, 0.0, False, False, 0.0, True, id="as many rows as allowed, whoever is busy"),
        pytest.param(PATIENT, 999, (1 << 20) - 1, 0.0, False, True, 0.0, False, id="just below both limits, and young"),
        pytest.param(PATIENT, 1, 1 << 20, 0.0, False, False, 0.0, True, id="as many bytes as allowed"),
        pytest.param(PATIENT, 1, 1, 2.0, False, True, 0.0, True, id="old enough"),
        pytest.param(PATIENT, 1, 1, 1.99, False, True, 0.0, False, id="not old enough while more is coming"),
        pytest.param(PATIENT, 1, 1, 0.5, True, True, 0.0, True, id="a quarter of the age when nothing more comes"),
        pytest.param(PATIENT, 1, 1, 0.49, True, True, 0.0, False, id="not even that"),
        pytest.param(PATIENT, 1, 1, 99.0, True, False, 0.0, False, id="old, but the writer is busy: it grows"),
        pytest.param(PROMPT, 1, 1, 0.02, False, True, 0.0, True, id="a destination that takes no time"),
        pytest.param(PROMPT, 1, 1, 0.019, False, True, 0.0, False, id="below the least age"),
        pytest.param(PROMPT, 1, 1, 0.25, False, True, 0.25, True, id="as old as the last write took"),
        pytest.param(PROMPT, 1, 1, 0.24, False, True, 0.25, False, id="less than that"),
        pytest.param(PROMPT, 1, 1, 1.0, False, True, 9.0, True, id="a slow destination: old enough"),
        pytest.param(PROMPT, 1, 1, 0.99, False, True, 9.0, False, id="a slow destination: not old enough"),
        pytest.param(PROMPT, 1, 1, 0.25, True, True, 9.0, True, id="a slow destination, and nothing more comes"),
        pytest.param(PROMPT, 1, 1, 0.02, False, False, 0.0, False, id="the writer is busy"),
    ],
)
def test_due(
    limits: BatchConfig, rows: int, size: int, age: float, quiet: bool, writer_idle: bool, last_write: float, due: bool
) -> None:
    assert due is batch_is_due(
        limits, rows=rows, size=size, age=age, quiet=quiet, writer_idle=writer_idle, last_write=last_write
    )


def test_a_read_holds_not_much_more_than_a_batch() -> None:
    assert bytes_per_read(BatchConfig()) == READ_BYTES
    assert bytes_per_read(BatchConfig(max_rows=20)) == 1280
    assert bytes_per_read(BatchConfig(max_bytes=1000)) == 1000
