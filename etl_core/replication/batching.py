"""When whole transactions at hand become a batch."""

from __future__ import annotations

from etl_core.config import BatchConfig


def batch_is_due(limits: BatchConfig, *, rows: int, size: int, age: float, quiet: bool, writer_idle: bool) -> bool:
    """Whether the transactions at hand become a batch now.

    A full batch does, though the writer may have to be waited for. Otherwise, with the writer idle: one that is
    `max_age` seconds old, or a quarter of that when the source has nothing more to send.
    """
    if rows >= limits.max_rows or size >= limits.max_bytes:
        return True
    return writer_idle and age >= (limits.max_age / 4 if quiet else limits.max_age)
