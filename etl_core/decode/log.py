"""The changes of one table as rows of a log: each as it was made, in the order of the stream, nothing collapsed.

What a row says follows from its change alone, never from where batches or segments were cut: the main stream, a
catch-up and a second try write the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from etl_core.batch import TableChanges
from etl_core.decode.loading import Wanted
from etl_core.decode.past import timestamps
from etl_core.decode.split import Cells, Mask, RowChanges, gather
from etl_core.protocol.segment import DELETE, INSERT, UPDATE, Frames, Indices
from etl_core.schema import change_log
from etl_core.schema.change_log import COMMITTED_AT, EACH_ROW, LSN, OP, SEQ, UNCHANGED
from etl_core.schema.table import Column, TableSchema
from etl_core.values.arrow import arrow_schema, arrow_type
from etl_core.values.text import Array, boolean, fixed_width, offsets_from_lengths, text_array

_OPS = text_array([change_log.INSERT, change_log.UPDATE, change_log.DELETE])
_NUMBER_OF_OP = np.zeros(256, np.int64)
_NUMBER_OF_OP[[INSERT, UPDATE, DELETE]] = range(3)


@dataclass(frozen=True, slots=True)
class Logged:
    """`ours` has the columns behind those that are loaded; `truncation` is a row in front of all others."""

    ours: tuple[Array, ...]
    truncation: pa.Table | None

    def mark(self, changes: TableChanges) -> TableChanges:
        """The changes with the truncation as a row."""
        if self.truncation is None:
            return changes
        return replace(changes, inserts=pa.concat_tables([self.truncation, changes.inserts]), truncate=False)


def log_changes(
    frames: Frames,
    selected: Indices,
    schema: TableSchema,
    sent: Sequence[Column],
    changes: RowChanges,
    *,
    truncated: bool,
) -> tuple[list[Wanted], Logged]:
    """What is to be loaded for the rows of `changes`, and what comes with it.

    The changes are those of the frames numbered `selected`, with the columns `sent`.
    """
    truncation = _truncation(frames, schema) if truncated else None
    if not selected.size:
        return [], Logged((), truncation)
    transaction, place = frames.places(selected)
    cells = _all_rows(changes)
    wanted = [Wanted(one, column, schema.name) for one, column in zip(cells, sent, strict=True)]
    old: list[Array] = []
    rows, tuples = _moved(frames.data, sent, schema.key, changes)
    numbers = {change_log.old_name(column.name): number for number, column in enumerate(sent)}
    for column in schema.columns[len(sent) : -len(EACH_ROW)]:
        if rows.size:
            before = changes.old.columns[numbers[column.name]].take(tuples)
            wanted.append(Wanted(_at(before, rows, changes.tag.size), column, schema.name))
        else:
            old.append(_nulls(changes.tag.size, arrow_type(column)))
    _, lsn = frames.transactions()
    ours = (
        *old,
        _OPS.take(fixed_width(pa.int64(), _NUMBER_OF_OP[changes.tag], None)),
        fixed_width(pa.int64(), lsn[transaction].astype(np.int64), None),
        fixed_width(pa.int64(), place, None),
        timestamps(frames.commit_times()[transaction]),
        _unchanged([column.name for column in sent], cells),
    )
    return wanted, Logged(ours, truncation)


def _all_rows(changes: RowChanges) -> list[Cells]:
    """The columns of all row changes: what is new, or of a delete what was old."""
    gone = np.flatnonzero(changes.tag == DELETE)
    if not gone.size:
        return list(changes.new.columns)
    last = changes.old_of_row()[gone]
    return [
        _together(new, changes.new.rows, old.take(last), gone)
        for new, old in zip(changes.new.columns, changes.old.columns, strict=True)
    ]


def _together(new: Cells, new_rows: Indices, old: Cells, old_rows: Indices) -> Cells:
    count = new_rows.size + old_rows.size

    def joined(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
        values = np.empty(count, ours.dtype)
        values[new_rows], values[old_rows] = ours, theirs
        return values

    def mask(ours: Mask | None, theirs: Mask | None) -> Mask | None:
        if ours is None and theirs is None:
            return None
        none = np.zeros(count, np.bool_)
        return joined(
            none[: new_rows.size] if ours is None else ours, none[: old_rows.size] if theirs is None else theirs
        )

    return Cells(
        joined(new.start, old.start),
        joined(new.end, old.end),
        mask(new.null, old.null),
        mask(new.unchanged, old.unchanged),
    )


def _at(cells: Cells, rows: Indices, count: int) -> Cells:
    """`cells` as those of `rows` of so many, NULL in all others."""
    start, end, null = np.zeros(count, np.int32), np.zeros(count, np.int32), np.ones(count, np.bool_)
    start[rows], end[rows] = cells.start, cells.end
    without = cells.without_text()
    null[rows] = False if without is None else without
    return Cells(start, end, null, None)


def _moved(
    data: NDArray[np.uint8], sent: Sequence[Column], key: Sequence[str], changes: RowChanges
) -> tuple[Indices, Indices]:
    """The row changes that are updates of a row with another key before, and the old tuples that have it.

    Without a key, all updates and their old rows: only these tell which row is gone.
    """
    old_of_new = changes.old_of_new()
    updated = np.flatnonzero(old_of_new >= 0)
    if not updated.size:
        return updated, updated
    before = old_of_new[updated]
    moved = np.full(updated.size, not key)
    for number, column in enumerate(sent):
        if column.name not in key:
            continue
        # By their bytes, as PostgreSQL compares them. NULL is in no key.
        old: Any = gather(data, [changes.old.columns[number].take(before)])
        new: Any = gather(data, [changes.new.columns[number].take(updated)])
        same: Any = pc.fill_null(pc.equal(old, new), False)
        moved |= ~np.asarray(same)
    return changes.new.rows[updated[moved]], before[moved]


def _unchanged(names: Sequence[str], columns: Sequence[Cells]) -> Array:
    """Of each row the names of the columns that were not sent; NULL where all were."""
    masks = {name: cells.unchanged for name, cells in zip(names, columns, strict=True) if cells.unchanged is not None}
    if not masks:
        return _nulls(len(columns[0]), arrow_type(UNCHANGED))
    lacking = np.stack(list(masks.values()), axis=1)
    values = text_array(list(masks)).take(fixed_width(pa.int64(), np.nonzero(lacking)[1], None))
    lengths = lacking.sum(axis=1)
    return list_of(values, lengths)


def list_of(values: Array, lengths: NDArray[np.int64]) -> Array:
    """Lists of so many of the values each, NULL for none, as UNCHANGED has them."""
    offsets: Any = fixed_width(pa.int32(), offsets_from_lengths(lengths).astype(np.int32), None)
    lists: Array = pa.ListArray.from_arrays(offsets, values, mask=boolean(lengths == 0)).cast(arrow_type(UNCHANGED))
    return lists


def _nulls(count: int, kind: Any) -> Array:
    nothing: Array = pa.nulls(count, kind)
    return nothing


def _truncation(frames: Frames, schema: TableSchema) -> pa.Table:
    """It comes before the first frame, in the transaction that is open there."""
    _, lsn = frames.transactions()
    values: dict[str, Array] = {
        OP.name: text_array([change_log.TRUNCATE]),
        LSN.name: fixed_width(pa.int64(), lsn[:1].astype(np.int64), None),
        SEQ.name: fixed_width(pa.int64(), np.full(1, frames.open_changes + 1), None),
        COMMITTED_AT.name: timestamps(frames.commit_times()[:1]),
    }
    target = arrow_schema(schema)
    columns = [values[field.name] if field.name in values else _nulls(1, field.type) for field in target]
    return pa.Table.from_arrays(columns, schema=target)
