"""What `etl compact` tells of a table."""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.errors import EtlError


@dataclass(frozen=True, slots=True)
class Compacted:
    """`files` is how many were written anew as few others, 0 if nothing was to be done; None if that is not counted.

    `error` is why the table was not compacted: nothing of it was changed.
    """

    table: str
    files: int | None = 0
    error: EtlError | None = None
