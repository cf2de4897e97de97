"""When whole transactions at hand become a batch."""

from __future__ import annotations

from etl_core.config import BatchConfig
from etl_core.source.replication_stream import READ_BYTES

_LEAST_AGE = 0.02
"""Seconds that a batch gathers at least."""
_PATIENT = 1.0
"""A `max_age` of more seconds says that few batches are wanted: a warehouse counts jobs, and takes money for each."""
_ROW_BYTES = 64
"""What a row of a table takes at least on the wire, nearly."""


def bytes_per_read(limits: BatchConfig) -> int:
    """How much may be read before it is looked whether a batch is due: not much more than a batch holds."""
    return min(READ_BYTES, limits.max_bytes, _ROW_BYTES * limits.max_rows)


def batch_is_due(
    limits: BatchConfig, *, rows: int, size: int, age: float, quiet: bool, writer_idle: bool, last_write: float
) -> bool:
    """Whether the transactions at hand become a batch now. `age` and `last_write` are in seconds.

    A full batch does, though the writer may have to be waited for. Otherwise, with the writer idle: one that is
    `max_age` seconds old, or a quarter of that when the source has nothing more to send; but one that has gathered
    as long as the last one took to be written is old enough, unless `max_age` is over a second. So the destination, a
    DuckDB file that others want to open, is in use for half of the time at most.
    """
    if rows >= limits.max_rows or size >= limits.max_bytes:
        return True
    old = limits.max_age / 4 if quiet else limits.max_age
    if limits.max_age <= _PATIENT:
        old = min(old, max(_LEAST_AGE, last_write))
    return writer_idle and age >= old
