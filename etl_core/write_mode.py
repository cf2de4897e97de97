"""The write modes of a table: what the destination has of its rows' past."""

from __future__ import annotations

from enum import StrEnum


class WriteMode(StrEnum):
    """MIRROR has the source's rows; SOFT_DELETE also those that were deleted there, with the moment of it.

    APPEND has a row for every change, and never changes one.
    """

    MIRROR = "mirror"
    SOFT_DELETE = "soft_delete"
    APPEND = "append"
