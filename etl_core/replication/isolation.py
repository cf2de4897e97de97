"""Finds the tables at fault when a batch fails with an error that names none, so that the others go on.

The batch is written in ever smaller groups of tables, each group one transaction of the destination. Every table has
a watermark, so nothing can be lost or doubled between them; only a reader may see some tables of the batch before
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etl_core.errors import EtlError, Stopped
from etl_core.identifiers import TableId

Group = tuple[TableId, ...]


def find_failing(
    tables: Sequence[TableId], write: Callable[[Group], EtlError | None], is_stopped: Callable[[], bool]
) -> dict[TableId, EtlError]:
    """The tables that cannot be written, each with its error; all others are written when this returns.

    `write` writes the changes of a group; it returns the error that does not tell which of its tables is at fault.
    Needs about 2 × log2(tables) calls for one table at fault. Raises Stopped, and what `write` raises.
    """
    failing: dict[TableId, EtlError] = {}
    groups = list(_halves(tuple(tables)))
    while groups:
        if is_stopped():
            raise Stopped("stopped while looking for the table that cannot be written")
        group = groups.pop()
        error = write(group)
        if error is None:
            continue
        if len(group) == 1:
            failing[group[0]] = error
        else:
            groups.extend(_halves(group))
    return failing


def _halves(group: Group) -> tuple[Group, ...]:
    middle = len(group) // 2
    return tuple(half for half in (group[middle:], group[:middle]) if half)
