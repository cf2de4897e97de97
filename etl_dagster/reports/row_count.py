"""How many rows a replicated table has, kept by the stream without reading the table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl_core.lsn import Lsn

if TYPE_CHECKING:
    from etl_core.batch import ChangeCounts


@dataclass(slots=True)
class RowCount:
    """How many rows a table has: counted once at `origin`, and from there on by the changes that were applied.

    Unknown until it was counted at just that position, and after a TRUNCATE, whose rows no change counts. A log has one
    row more for each change.
    """

    origin: Lsn | None = None
    base: int | None = None
    added: int | None = 0

    @property
    def value(self) -> int | None:
        return None if self.base is None or self.added is None else self.base + self.added

    def add(self, counts: "ChangeCounts") -> None:
        """Changes that were applied since `origin`."""
        if counts.logged:
            self.added = (self.added or 0) + counts.logged
            return
        unknown = self.added is None or counts.truncated
        self.added = None if unknown else (self.added or 0) + counts.inserted - counts.deleted

    def begin_at(self, version: str | None, rows: int | None) -> None:
        """The table had `rows` at `version`: of use only if that is `origin`."""
        if self.base is None and self.origin is not None and version == str(self.origin):
            self.base = rows
