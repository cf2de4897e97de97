"""What flows from the decoder to a destination: columns of changes, collapsed to one final change per key.

The collapse is done before a destination sees a change, so that every destination applies the same
four sets in the same order and none has to understand WAL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_core.schema.alterations import Alteration


@dataclass(frozen=True, slots=True)
class ChangeCounts:
    """Row changes as the source made them, before the collapse. `logged` are the rows that they are in a log."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    logged: int = 0

    def __add__(self, other: ChangeCounts) -> ChangeCounts:
        return ChangeCounts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.deleted + other.deleted,
            self.truncated + other.truncated,
            self.logged + other.logged,
        )

    @property
    def rows(self) -> int:
        return self.inserted + self.updated + self.deleted


@dataclass(frozen=True, slots=True)
class PartialRows:
    """Final rows of which some columns were unchanged TOAST values that this part never saw.

    `rows` has every column but those named in `unchanged`. Row i of `origin_keys` (the key columns) is the
    key under which the destination holds the row these values are to be taken from; it differs from the
    key in `rows` when an update moved the row to another key.
    """

    unchanged: tuple[str, ...]
    origin_keys: pa.Table
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class TableChanges:
    """One table's share of a batch. All tables have the Arrow schema of `schema` (`values.arrow`).

    Applied in this order, inside the batch's transaction:

    1. bring the table to `schema` (never backwards). `alterations` are the steps since the version that the engine has
       noted last; one may be done already, as it is not noted when an answer is lost. A destination tells that by the
       numbers of its columns. One that cannot do a step in place raises CopiedAgain. With a name that another table of
       the pipeline has there, that one keeps its rows under no name (`Positions.aside`), or loses its watermark,
    2. if `truncate`, empty it; in a table that keeps its deleted rows (`schema.deleted_rows`), with `mark_deleted`, set
       DELETED_AT of its living rows, those where it is NULL, to that moment,
    3. read the unchanged columns of `partials` by `origin_keys`; a missing origin row is an error,
    4. delete the rows with a key in `deletes`, `upserts`, the partials' `origin_keys` or their `rows`; of a table
       without a key one row for each of `removals`, equal to it in every column,
    5. insert `inserts`, `upserts` and the completed partials.

    No key stands in more than one of `inserts`, `upserts`, `partials.rows`; a key in `deletes` may also be
    re-inserted, and may be one that came and went within the part, which the destination need not have. Rows of
    `inserts` are new to the destination by the watermark rule: no look-up is needed.
    For a table without a key, as a log is (`schema.change_log`), all rows are `inserts` or `removals`
    (`schema.is_multiset`). Equal means the same text at the source: NULL equals NULL, and -0 is not 0. A row stands in
    `removals` as often as it is to be removed, and the destination has it at least as often, but for rows there that
    were changed from outside: CopiedAgain then. Two of `removals` may be one value in the destination, and one of them
    equal to one of `inserts`.
    In a table that keeps its deleted rows nothing is gone in the end: a delete is a row with DELETED_AT, whole or
    partial, and all rows are `upserts` or `partials`, for a deleted row may be there under any key.
    """

    schema: TableSchema
    inserts: pa.Table
    upserts: pa.Table
    deletes: pa.Table
    partials: tuple[PartialRows, ...] = ()
    truncate: bool = False
    mark_deleted: datetime | None = None
    alterations: tuple[Alteration, ...] = ()
    counts: ChangeCounts = field(default_factory=ChangeCounts)
    removals: pa.Table | None = None
    """Whole rows; None where there are none."""


@dataclass(frozen=True, slots=True)
class WatermarkMove:
    """The watermark a table is expected to have, and the one it gets with the batch."""

    expected: Lsn
    new: Lsn


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where the main stream of one incarnation of the source stands in a destination.

    `incarnation` is `SourceIdentity.incarnation`: positions of two of them cannot be compared. None in bookkeeping that
    was written before incarnations were recorded.
    """

    lsn: Lsn
    incarnation: str | None = None


@dataclass(frozen=True, slots=True)
class StreamMove:
    """The position of the stream that a destination is expected to have, None for none, and the one it gets."""

    expected: StreamPosition | None
    new: StreamPosition


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Whole source transactions, all tables together: one destination transaction.

    `parts` is iterated once, in order; a table may come several times (a transaction larger than memory is
    read back from the spool part by part). `watermarks` has every table in `parts`, and may have more.
    `stream` moves the position of the main stream; None when a table's catch-up writes.
    """

    parts: Iterable[TableChanges]
    watermarks: Mapping[TableId, WatermarkMove]
    stream: StreamMove | None
