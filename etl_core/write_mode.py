"""The write modes of a table: what the destination has of its rows' past."""

from __future__ import annotations

from enum import StrEnum


class WriteMode(StrEnum):
    """MIRROR has the source's rows; SOFT_DELETE also those that were deleted there, with the moment of it.

    APPEND has a row for every change, and never changes one. HISTORY is APPEND with views of the versions of each row.
    """

    MIRROR = "mirror"
    SOFT_DELETE = "soft_delete"
    APPEND = "append"
    HISTORY = "history"

    @property
    def is_log(self) -> bool:
        """Whether the destination's table is a log of changes."""
        return self in (WriteMode.APPEND, WriteMode.HISTORY)
