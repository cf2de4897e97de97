"""What a table that keeps its deleted rows needs besides the collapsed changes: when rows were deleted.

Moments are commit times as on the wire: microseconds since 2000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from etl_core.batch import TableChanges
from etl_core.protocol.segment import Frames, Indices
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.values.arrow import arrow_type
from etl_core.values.text import Array, fixed_width

LIVES = np.iinfo(np.int64).min
"""In place of the moment at which a row was deleted."""
_UNIX_EPOCH = 946_684_800_000_000
"""Microseconds from 1970 to 2000."""


@dataclass(frozen=True, slots=True)
class Past:
    """`of_upserts` has a value of DELETED_AT for each row of the upserts.

    `whole` are further rows to upsert, with all their columns. `truncated_at` is when the table was truncated.
    """

    of_upserts: Array
    whole: pa.Table | None
    truncated_at: datetime | None

    def mark(self, changes: TableChanges) -> TableChanges:
        """The changes with all of it."""
        upserts = changes.upserts if self.whole is None else pa.concat_tables([changes.upserts, self.whole])
        return replace(changes, upserts=upserts, mark_deleted=self.truncated_at)


def commit_times(frames: Frames, rows: Indices) -> Indices:
    """When the transactions were committed that the frames of those numbers belong to."""
    first, _ = frames.transactions()
    times: Indices = frames.commit_times()[np.searchsorted(first, rows, side="right") - 1]
    return times


def timestamps(times: Indices) -> Array:
    """Those moments as values of a timestamptz."""
    return fixed_width(arrow_type(DELETED_AT), times + _UNIX_EPOCH, None)


def deleted_at(times: Indices) -> Array:
    """The values of DELETED_AT: NULL for LIVES."""
    deleted = times != LIVES
    if deleted.all():
        return timestamps(times)
    return fixed_width(arrow_type(DELETED_AT), np.where(deleted, times, 0) + _UNIX_EPOCH, deleted)
