"""What copying a table again would cost: told before a person decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from etl_core.errors import EtlError
from etl_core.identifiers import TableId
from etl_core.replication.source import Source
from etl_core.source.catalog import PublishedTable, published_tables
from etl_core.state.store import StateStore, TableStatus, Transition
from etl_core.state.table_state import TableState


@dataclass(frozen=True, slots=True)
class CopyEstimate:
    """Of one table; None is what is not known.

    `rows` and `size` (bytes on the source's disk) are of the source's last VACUUM or ANALYZE; before the first one
    `rows` are those of the last copy. `seconds` is how long the last copy took, and so about how long readers keep the
    old one.
    """

    table: TableStatus
    rows: int | None
    size: int | None
    seconds: float | None


def read_copy_estimates(source: Source, store: StateStore, tables: Sequence[TableStatus]) -> list[CopyEstimate]:
    """One for each table, in their order. What the source says is left out when it is out of reach."""
    published = _read_published(source)
    return [_estimate(status, published.get(status.table_id), store.history(status.table_id)) for status in tables]


def _read_published(source: Source) -> dict[TableId, PublishedTable]:
    try:
        with source.connect("catalog") as connection:
            return {table.schema.table_id: table for table in published_tables(connection, source.publication)}
    except EtlError:
        return {}


def _estimate(status: TableStatus, published: PublishedTable | None, moves: Sequence[Transition]) -> CopyEstimate:
    rows = (published.estimated_rows if published is not None else 0) or status.rows_copied
    size = (published.estimated_bytes if published is not None else 0) or None
    return CopyEstimate(status, rows, size, _seconds(moves))


def _seconds(moves: Sequence[Transition]) -> float | None:
    """How long the last finished copy took, by the table's history, the newest move first."""
    for finished, began in pairwise(moves):
        if finished.to_state is TableState.FINISHED_COPY and began.to_state is TableState.DATA_SYNC:
            return (finished.at - began.at).total_seconds()
    return None
