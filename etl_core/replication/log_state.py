"""The rows that a table has at the source, as its log of changes gives them: for comparing the two.

Of each key the last row of the log counts, from the last copy or truncation on. Without a key, every row counts that
was added since, less those that were changed or deleted. The log is read twice: its narrow columns for what counts,
then all of it. Memory: 28 bytes a key, or 16 a distinct row of a table without one.

A value that an update left unchanged and the source did not send (TOAST) is in an earlier row of the log. Such values
are left out on both sides, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from etl_core.errors import TableError
from etl_core.replication.content_hash import Hashes, hash_rows
from etl_core.schema.change_log import (
    COPY,
    DELETE,
    LSN,
    OP,
    SEQ,
    TRUNCATE,
    UNCHANGED,
    UPDATE,
    old_name,
    row_columns,
)
from etl_core.schema.table import TableSchema
from etl_core.shape.shape import Shape
from etl_core.values.text import boolean, text_array

Read = Callable[[TableSchema], Iterator[pa.RecordBatch]]
"""The log's rows in some of its columns, in any order, the same at every call."""

_MERGED_ROWS = 1 << 20
"""Events are merged into the state when there are so many, or as many as it has."""
_GONE = -1
_WHOLE = 0
"""The number of the pattern of no unchanged column."""


class LogState(Protocol):
    """Chooses the log's rows that the source has."""

    unchanged: int
    """How many rows have values that are not compared."""

    def choose(self) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """For one pass over the log: of each batch the rows that count, in the columns of the source's rows."""

    def hide(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the source without the values that the log has in earlier rows."""


def state_of(shape: Shape, read: Read) -> LogState:
    """Reads the log's narrow columns. `read` takes a schema with some of the columns of `shape.target`."""
    begun = _begin(shape.target, read)
    return _Keyed(shape, read, begun) if shape.row_key else _Keyless(shape, read, begun)


def _only(log: TableSchema, names: Sequence[str]) -> TableSchema:
    return replace(log, columns=tuple(column for column in log.columns if column.name in set(names)))


def _begin(log: TableSchema, read: Read) -> tuple[int, int]:
    """The place in the log from which on rows count: its last copy or truncation."""
    begun = (-1, -1)
    for batch in read(_only(log, [OP.name, LSN.name, SEQ.name])):
        resets: Any = pc.is_in(batch.column(OP.name), text_array([COPY, TRUNCATE]))
        lsn, seq = (_integers(batch.filter(resets), column.name) for column in (LSN, SEQ))
        if lsn.size:
            last = lsn.max()
            begun = max(begun, (int(last), int(seq[lsn == last].max())))
    return begun


def _integers(rows: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(name)).astype(np.int64, copy=False)


def _is(rows: pa.RecordBatch, *ops: str) -> NDArray[np.bool_]:
    found: Any = pc.is_in(rows.column(OP.name), text_array(ops))
    return np.asarray(found)


def _since(rows: pa.RecordBatch, begun: tuple[int, int]) -> pa.RecordBatch:
    lsn, seq = _integers(rows, LSN.name), _integers(rows, SEQ.name)
    counts = (lsn > begun[0]) | ((lsn == begun[0]) & (seq >= begun[1]))
    return rows.filter(boolean(counts & ~_is(rows, TRUNCATE)))


def _hash(rows: pa.RecordBatch, names: Sequence[str]) -> Hashes:
    return hash_rows([rows.column(name) for name in names], rows.num_rows)


@dataclass(frozen=True, slots=True)
class _Events:
    """What became of a key at a place of the log: the pattern of what its row lacks, or _GONE."""

    key: Hashes
    lsn: NDArray[np.int64]
    seq: NDArray[np.int64]
    pattern: NDArray[np.int32]

    @classmethod
    def together(cls, parts: Sequence[_Events]) -> _Events:
        return cls(
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.lsn for part in parts]),
            np.concatenate([part.seq for part in parts]),
            np.concatenate([part.pattern for part in parts]),
        )

    def last(self) -> _Events:
        """The last event of each key, by key."""
        order = np.lexsort((self.seq, self.lsn, self.key))
        key = self.key[order]
        order = order[np.append(key[1:] != key[:-1], True)] if key.size else order
        return _Events(self.key[order], self.lsn[order], self.seq[order], self.pattern[order])

    def find(self, key: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which keys have an event, and its number; to be called on what `last` returned."""
        if not self.key.size:
            return np.zeros(key.size, np.bool_), np.zeros(key.size, np.int64)
        at = np.minimum(np.searchsorted(self.key, key), self.key.size - 1)
        return self.key[at] == key, at


class _Keyed:
    def __init__(self, shape: Shape, read: Read, begun: tuple[int, int]) -> None:
        self._table = shape.source.name
        self._key = shape.row_key
        self._names = tuple(column.name for column in row_columns(shape.compared))
        self._gone = frozenset(shape.target.column_names) - frozenset(shape.compared.column_names)
        self._patterns: dict[tuple[str, ...], int] = {(): _WHOLE}
        log, old = shape.target, [old_name(name) for name in self._key]
        pending, size, self._last = [], 0, _Events.together([self._none()])
        for batch in read(_only(log, [*self._key, *old, *(c.name for c in (OP, LSN, SEQ, UNCHANGED))])):
            events = self._events(_since(batch, begun), old)
            pending.append(events)
            size += events.key.size
            if size >= max(_MERGED_ROWS, self._last.key.size):
                pending, size, self._last = [], 0, _Events.together([self._last, *pending]).last()
        self._last = _Events.together([self._last, *pending]).last()
        self.unchanged = int((self._last.pattern > _WHOLE).sum())

    @staticmethod
    def _none() -> _Events:
        none = np.zeros(0, np.int64)
        return _Events(none.astype(np.uint64), none, none, none.astype(np.int32))

    def _events(self, rows: pa.RecordBatch, old: Sequence[str]) -> _Events:
        lsn, seq = _integers(rows, LSN.name), _integers(rows, SEQ.name)
        pattern = np.where(_is(rows, DELETE), np.int32(_GONE), self._numbers(rows.column(UNCHANGED.name)))
        moved = np.asarray(rows.column(old[0]).is_valid())
        left = rows.filter(boolean(moved))
        return _Events(
            np.concatenate([_hash(rows, self._key), _hash(left, old)]),
            np.concatenate([lsn, lsn[moved]]),
            np.concatenate([seq, seq[moved]]),
            np.concatenate([pattern, np.full(left.num_rows, _GONE, np.int32)]),
        )

    def _numbers(self, unchanged: Any) -> NDArray[np.int32]:
        """The number of each row's set of columns; there are few."""
        if unchanged.null_count == len(unchanged):
            return np.full(len(unchanged), _WHOLE, np.int32)
        joined: Any = pc.binary_join(pc.fill_null(unchanged, pa.scalar([], unchanged.type)), "\x00")
        coded = joined.dictionary_encode()
        numbers = np.zeros(len(coded.dictionary), np.int32)
        for at, text in enumerate(coded.dictionary.to_pylist()):
            names = tuple(text.split("\x00")) if text else ()
            numbers[at] = self._patterns.setdefault(names, len(self._patterns))
        found: NDArray[np.int32] = numbers[np.asarray(coded.indices)]
        return found

    def choose(self) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        last = self._last

        def choose(rows: pa.RecordBatch) -> pa.RecordBatch:
            if not last.key.size:
                return rows.slice(0, 0).select(list(self._names))
            is_there, at = last.find(_hash(rows, self._key))
            is_last = (last.lsn[at] == _integers(rows, LSN.name)) & (last.seq[at] == _integers(rows, SEQ.name))
            lives = is_there & is_last & (last.pattern[at] != _GONE)
            return rows.filter(boolean(lives)).select(list(self._names))

        return choose

    def hide(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        rows = rows.select(list(self._names))
        if not self.unchanged:
            return rows
        is_there, at = self._last.find(_hash(rows, self._key))
        pattern = np.where(is_there, self._last.pattern[at], _WHOLE)
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        for names, number in self._patterns.items():
            hidden = pattern == number
            if number != _WHOLE and hidden.any():
                names = tuple(name for name in names if name not in self._gone)
                if not set(names) <= columns.keys():
                    gone = ", ".join(sorted(set(names) - columns.keys()))
                    raise TableError(
                        f"{self._table}: its log has rows that left {gone} unchanged, and no such column any more",
                        table=str(self._table),
                        hint=f"copy the table again, so that later rows can be compared: etl resync {self._table}",
                    )
                for name in names:
                    nothing: Any = pa.scalar(None, columns[name].type)
                    columns[name] = pc.if_else(boolean(hidden), nothing, columns[name])
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=rows.schema)


class _Keyless:
    unchanged = 0

    def __init__(self, shape: Shape, read: Read, begun: tuple[int, int]) -> None:
        log = shape.target
        self._names = tuple(column.name for column in row_columns(shape.compared))
        self._begun = begun
        olds = [name for name in self._names if old_name(name) in log.column_names]
        # The old row is not there where the source sends none; then nothing is ever changed or deleted.
        self._told_by = olds or list(self._names)
        old = [old_name(name) for name in olds]
        self._rows, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        pending: list[tuple[Hashes, NDArray[np.int64]]] = []
        size = 0
        for batch in read(_only(log, [*self._told_by, *old, OP.name, LSN.name, SEQ.name])):
            rows = _since(batch, begun)
            left = rows.filter(boolean(_is(rows, UPDATE)))
            added = np.where(_is(rows, DELETE), -1, 1)
            pending.append((_hash(rows, self._told_by), added))
            if old:
                pending.append((_hash(left, old), np.full(left.num_rows, -1)))
            size += rows.num_rows + left.num_rows
            if size >= max(_MERGED_ROWS, self._rows.size):
                self._merge(pending)
                pending, size = [], 0
        self._merge(pending)

    def _merge(self, parts: Sequence[tuple[Hashes, NDArray[np.int64]]]) -> None:
        rows = np.concatenate([self._rows, *(rows for rows, _ in parts)])
        counts = np.concatenate([self._counts, *(counts for _, counts in parts)])
        self._rows, number = np.unique(rows, return_inverse=True)
        self._counts = np.bincount(number.reshape(-1), weights=counts, minlength=self._rows.size).astype(np.int64)

    def choose(self) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        left = self._counts.copy()

        def choose(rows: pa.RecordBatch) -> pa.RecordBatch:
            rows = _since(rows, self._begun)
            rows = rows.filter(boolean(~_is(rows, DELETE)))
            at = np.searchsorted(self._rows, _hash(rows, self._told_by))
            order = np.argsort(at, kind="stable")
            ordered = at[order]
            turn = np.empty(at.size, np.int64)
            turn[order] = np.arange(at.size) - np.searchsorted(ordered, ordered)
            lives = turn < left[at]
            np.subtract.at(left, at[lives], 1)
            return rows.filter(boolean(lives)).select(list(self._names))

        return choose

    def hide(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.select(list(self._names))
