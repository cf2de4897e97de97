"""Source against destination, one table at one LSN: counts, content, and which rows differ.

First pass: both sides are hashed as they stream by and summed into buckets by the hash of the key; memory does not
grow with the table. Second pass, only if a bucket differs: the rows of differing buckets are fetched again and
matched by key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.content_hash import Hashes, hash_rows

_BUCKETS = 1024
_SHOWN_RANGES = 10
_MATCHED_ROWS = 2_000_000
"""Rows of differing buckets that are fetched to be matched; with more, some of the buckets are left unexamined."""

Sink = Callable[[pa.RecordBatch], None]
Scan = Callable[[Sink], None]
"""Calls the sink with every row of the table, in batches, in any order, perhaps from several threads."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Differing rows between two keys (inclusive, as shown to a person)."""

    first: str
    last: str
    rows: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome for one table. `content` is the sum of all row hashes of the source, in hexadecimal."""

    table: TableName
    source_rows: int
    destination_rows: int
    content: str
    is_equal: bool
    missing: int = 0
    extra: int = 0
    changed: int = 0
    ranges: tuple[KeyRange, ...] = ()
    problem: str | None = None
    is_incomplete: bool = False
    """What is replicated is equal, but SELECT on the source's table gives more rows: `problem` says which."""
    lsn: Lsn = ZERO
    """The position both sides were read at."""


@dataclass(slots=True)
class _Digest:
    """Counts and sums of row hashes per bucket of key hashes."""

    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64))
    sums: Hashes = field(default_factory=lambda: np.zeros(_BUCKETS, np.uint64))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, bucket: NDArray[np.int64], content: Hashes) -> None:
        counts = np.bincount(bucket, minlength=_BUCKETS)
        sums = np.zeros(_BUCKETS, np.uint64)
        np.add.at(sums, bucket, content)
        with self.lock:
            self.rows += counts
            self.sums += sums


def compare(table: TableName, key: tuple[str, ...], source: Scan, destination: Scan) -> Comparison:
    """Compares two scans that give the same columns in the same Arrow types."""
    ours, theirs = _digest(source, key), _digest(destination, key)
    different = np.flatnonzero((ours.rows != theirs.rows) | (ours.sums != theirs.sums))
    source_rows, destination_rows = int(ours.rows.sum()), int(theirs.rows.sum())
    content = f"{int(ours.sums.sum(dtype=np.uint64)):016x}"
    if not different.size:
        return Comparison(table, source_rows, destination_rows, content, is_equal=True)
    examined = _affordable(different, np.maximum(ours.rows, theirs.rows)[different])
    missing, extra, changed, ranges = _match(_fetch(source, key, examined), _fetch(destination, key, examined), key)
    return Comparison(
        table,
        source_rows,
        destination_rows,
        content,
        is_equal=False,
        missing=missing,
        extra=extra,
        changed=changed,
        ranges=ranges,
        problem=None
        if examined.size == different.size
        else f"only {examined.size} of {different.size} parts were examined",
    )


def _hashes(rows: pa.RecordBatch, key: tuple[str, ...]) -> tuple[NDArray[np.int64], Hashes]:
    content = hash_rows(rows.columns, rows.num_rows)
    by = hash_rows([rows.column(name) for name in key], rows.num_rows) if key else content
    return (by % np.uint64(_BUCKETS)).astype(np.int64), content


def _digest(scan: Scan, key: tuple[str, ...]) -> _Digest:
    digest = _Digest()
    scan(lambda rows: digest.add(*_hashes(rows, key)))
    return digest


def _affordable(buckets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return buckets[: max(1, int((np.cumsum(rows) <= _MATCHED_ROWS).sum()))]


def _fetch(scan: Scan, key: tuple[str, ...], buckets: NDArray[np.int64]) -> pa.Table:
    """Key columns and content hash of the rows in `buckets`."""
    wanted = np.zeros(_BUCKETS, np.bool_)
    wanted[buckets] = True
    parts: list[pa.Table] = []
    lock = threading.Lock()

    def sink(rows: pa.RecordBatch) -> None:
        bucket, content = _hashes(rows, key)
        chosen = pa.array(wanted[bucket])
        columns = [rows.column(name).filter(chosen) for name in key]
        part = pa.table([*columns, pa.array(content).filter(chosen)], names=[*key, _CONTENT])
        with lock:
            parts.append(part)

    scan(sink)
    return pa.concat_tables(parts) if parts else pa.table({name: pa.nulls(0) for name in (*key, _CONTENT)})


_CONTENT = "\x00content"
_OTHER = "\x00other"


def _match(ours: pa.Table, theirs: pa.Table, key: tuple[str, ...]) -> tuple[int, int, int, tuple[KeyRange, ...]]:
    if not key:
        return (*_match_without_key(ours, theirs), 0, ())
    keyed = list(key)
    if not ours.num_rows or not theirs.num_rows:
        lonely = ours if ours.num_rows else theirs
        return ours.num_rows, theirs.num_rows, 0, _ranges(lonely.select(keyed), key)
    both = ours.join(theirs.rename_columns([*keyed, _OTHER]), keys=keyed, join_type="full outer")
    left, right = _side(both, _CONTENT), _side(both, _OTHER)
    changed = left.present & right.present & (left.values != right.values)
    differs = both.filter(pa.array(~left.present | ~right.present | changed)).select(keyed)
    return int((~right.present).sum()), int((~left.present).sum()), int(changed.sum()), _ranges(differs, key)


@dataclass(frozen=True, slots=True)
class _Side:
    values: Hashes
    present: NDArray[np.bool_]


def _side(joined: pa.Table, name: str) -> _Side:
    column = joined.column(name).combine_chunks()
    return _Side(np.asarray(column.fill_null(0)).astype(np.uint64), np.asarray(column.is_valid()))


def _match_without_key(ours: pa.Table, theirs: pa.Table) -> tuple[int, int]:
    """How many rows are on one side only, equal rows counted as often as they are there."""
    left, right = (np.asarray(side.column(_CONTENT).combine_chunks()).astype(np.uint64) for side in (ours, theirs))
    values = np.unique(np.concatenate([left, right]))
    surplus = np.bincount(np.searchsorted(values, left), minlength=values.size) - np.bincount(
        np.searchsorted(values, right), minlength=values.size
    )
    return int(surplus[surplus > 0].sum()), int(-surplus[surplus < 0].sum())


def _ranges(keys: pa.Table, key: tuple[str, ...]) -> tuple[KeyRange, ...]:
    """The differing keys, sorted, in up to ten runs of neighbours."""
    ordered = keys.sort_by([(name, "ascending") for name in key])
    size = max(1, -(-ordered.num_rows // _SHOWN_RANGES))
    return tuple(
        KeyRange(
            _shown(ordered, start),
            _shown(ordered, min(start + size, ordered.num_rows) - 1),
            min(size, ordered.num_rows - start),
        )
        for start in range(0, ordered.num_rows, size)
    )


def _shown(keys: pa.Table, row: int) -> str:
    values = [str(keys.column(name)[row].as_py()) for name in keys.column_names]
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def scan_of(batches: Callable[[], Iterator[pa.RecordBatch]]) -> Scan:
    """A scan over what can only be iterated."""

    def scan(sink: Sink) -> None:
        for batch in batches():
            sink(batch)

    return scan
