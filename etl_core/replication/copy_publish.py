"""The end of a copy: what was staged is published as the table's write mode wants it."""

from __future__ import annotations

from collections.abc import Callable, Set
from datetime import datetime

from etl_core.destination.protocol import (
    AppendingCopy,
    Destination,
    HistoryDestination,
    KeepingCopy,
    KeptRows,
    LoggedCopy,
    TableCopy,
    check_count,
)
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.shape.shape import Shape


class CopyEnd:
    """Of one staged copy. Raises TableError, before anything is staged, if the destination lacks the write mode."""

    def __init__(self, destination: Destination, staging: TableCopy, shape: Shape, name: TableName) -> None:
        if shape.keeps_deleted and not isinstance(staging, KeepingCopy):
            raise _cannot(name, "soft_delete", "keep deleted rows")
        if shape.keeps_log and not isinstance(staging, AppendingCopy):
            raise _cannot(name, "append", "append a copy to a log")
        if shape.target.history and not isinstance(destination, HistoryDestination):
            raise _cannot(name, "history", "show the versions of its rows")
        self._staging = staging
        self._shape = shape
        self._name = name

    @property
    def replaces(self) -> bool:
        """Whether the table is replaced, and nothing of it is kept: by `TableCopy.publish`."""
        return not (self._shape.keeps_deleted or self._shape.keeps_log)

    def publish(
        self, snapshot_lsn: Lsn, staged: int, taken_at: datetime, changed_values: Callable[[], Set[str]]
    ) -> int:
        """Returns the number of rows, which are as many as were `staged`. `changed_values` is asked where rows stay."""
        staging = self._staging
        if self._shape.keeps_log and isinstance(staging, AppendingCopy):
            logged = LoggedCopy(taken_at, frozenset(changed_values()))
            rows = staging.publish_appending(snapshot_lsn, staged, logged)
        elif self._shape.keeps_deleted and isinstance(staging, KeepingCopy):
            kept = KeptRows(taken_at, frozenset(changed_values()))
            rows = staging.publish_keeping(snapshot_lsn, staged, kept)
        else:
            rows = staging.publish(snapshot_lsn, staged)
        check_count(self._name, rows, staged)
        return rows


def _cannot(name: TableName, mode: str, what: str) -> TableError:
    return TableError(
        f"{name} has write_mode {mode}, and this destination cannot {what}",
        table=str(name),
        hint="use write_mode: mirror",
    )
