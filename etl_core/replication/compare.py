"""Source against destination, one table at one LSN: counts, content, and which rows differ.

First pass: both sides are hashed as they stream by, at the same time, and summed into buckets by the hash of the key;
memory does not grow with the table. Second pass, only if a bucket differs: the keys of the rows in differing buckets
are fetched again and matched, in a few turns of a bounded number of bytes each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.errors import Stopped
from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.content_hash import Hashes, hash_prefixes
from etl_core.values.text import boolean, fixed_width, numbers_of

_BUCKETS = 4096
_SHOWN_RANGES = 10
_MATCHED_BYTES = 10 << 20
"""Keys and hashes of one side that are fetched at a time to be matched."""
_MATCHES = 5
"""How often both sides are read again at most; what still differs then is left unexamined."""
_GATHERED_ROWS = 1 << 14
_GATHERED_BYTES = 1 << 20
"""Small batches are put together up to either of them, as each costs a quarter of a millisecond to hash."""

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
    is_of_living: bool = False
    """The destination has deleted rows, too, which were not compared."""
    is_of_log: bool = False
    """The destination has a log of changes; what was compared are the rows that it gives."""
    is_of_view: bool = False
    """The rows of that log are shown by a view, which was compared."""
    uncompared: int = 0
    """Of so many of these, values were not compared that earlier rows of the log have."""


@dataclass(slots=True)
class _Digest:
    """Counts and sums of row hashes per bucket of key hashes, and how large the keys are."""

    key: tuple[str, ...]
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64))
    sums: Hashes = field(default_factory=lambda: np.zeros(_BUCKETS, np.uint64))
    key_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rows: pa.RecordBatch) -> None:
        by_key, content = _hashes(rows, self.key)
        bucket = _bucket(by_key)
        counts = np.bincount(bucket, minlength=_BUCKETS)
        sums = np.zeros(_BUCKETS, np.uint64)
        np.add.at(sums, bucket, content)
        with self.lock:
            self.rows += counts
            self.sums += sums
            self.key_bytes += sum(rows.column(name).nbytes for name in self.key)

    @property
    def bytes_per_row(self) -> int:
        """Of what the second pass keeps of a row."""
        return self.key_bytes // max(1, int(self.rows.sum())) + 2 * np.uint64().itemsize


def compare(
    table: TableName,
    key: tuple[str, ...],
    source: Scan,
    destination: Scan,
    on_pass: Callable[[bool], None] = lambda _is_again: None,
) -> Comparison:
    """Compares two scans that give the same columns in the same Arrow types. They are read at the same time.

    `on_pass(is_again)` is called before both are read, and before they are read again as they differ. Raises what a
    scan raises, when the other one has ended too.
    """
    on_pass(False)
    ours, theirs = _Digest(key), _Digest(key)
    _scan_both(source, ours.add, destination, theirs.add)
    different = np.flatnonzero((ours.rows != theirs.rows) | (ours.sums != theirs.sums))
    source_rows, destination_rows = int(ours.rows.sum()), int(theirs.rows.sum())
    content = f"{int(ours.sums.sum(dtype=np.uint64)):016x}"
    if not different.size:
        return Comparison(table, source_rows, destination_rows, content, is_equal=True)
    sizes = np.maximum(ours.rows * ours.bytes_per_row, theirs.rows * theirs.bytes_per_row)[different]
    found, examined = _Differences(), 0
    for buckets in _parts(different, sizes)[:_MATCHES]:
        on_pass(True)
        left, right = _Fetched(key, buckets), _Fetched(key, buckets)
        _scan_both(source, left.add, destination, right.add)
        found.add(left.table(), right.table(), key)
        examined += buckets.size
    return Comparison(
        table,
        source_rows,
        destination_rows,
        content,
        is_equal=False,
        missing=found.missing,
        extra=found.extra,
        changed=found.changed,
        ranges=_ranges(pa.concat_tables(found.keys), key) if found.keys else (),
        problem=None if examined == different.size else f"only {examined} of {different.size} parts were examined",
    )


def _parts(buckets: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The buckets in groups of at most `_MATCHED_BYTES`, or of one."""
    parts, first, total = [], 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and total + size > _MATCHED_BYTES:
            parts.append(buckets[first:place])
            first, total = place, 0
        total += size
    return [*parts, buckets[first:]]


def _scan_both(source: Scan, ours: Sink, destination: Scan, theirs: Sink) -> None:
    """Both scans at once, the destination's in a thread of its own. After an error the other ends at its next batch."""
    errors: list[BaseException] = []

    def run(scan: Scan, sink: Sink) -> None:
        def sink_unless_over(rows: pa.RecordBatch) -> None:
            if errors:
                raise Stopped("the other side of the comparison failed")
            sink(rows)

        try:
            scan(sink_unless_over)
        except BaseException as error:
            errors.append(error)  # raised below, in the caller's thread

    thread = threading.Thread(target=run, args=(destination, theirs), name="compare-destination")
    thread.start()
    run(source, ours)
    thread.join()
    if errors:
        raise errors[0]


def _hashes(rows: pa.RecordBatch, key: tuple[str, ...]) -> tuple[Hashes, Hashes]:
    """The hash of each row's key and of its content: the key is hashed first, and the rest after it."""
    names = [*key, *(name for name in rows.schema.names if name not in key)]
    by_key, content = hash_prefixes(
        [rows.column(name) for name in names], [len(key) or len(names), len(names)], rows.num_rows
    )
    return by_key, content


def _bucket(by_key: Hashes) -> NDArray[np.int64]:
    return (by_key % np.uint64(_BUCKETS)).astype(np.int64)


_KEY, _CONTENT = "\x00key", "\x00content"


class _Fetched:
    """Key columns, key hash and content hash of the rows in some buckets. `add` may be called from several threads."""

    def __init__(self, key: tuple[str, ...], buckets: NDArray[np.int64]) -> None:
        self._key = key
        self._wanted = np.zeros(_BUCKETS, np.bool_)
        self._wanted[buckets] = True
        self._parts: list[pa.Table] = []
        self._lock = threading.Lock()

    def add(self, rows: pa.RecordBatch) -> None:
        by_key, content = _hashes(rows, self._key)
        hashes = [fixed_width(pa.uint64(), values, None) for values in (by_key, content)]
        columns = pa.table([*(rows.column(name) for name in self._key), *hashes], names=[*self._key, _KEY, _CONTENT])
        part = columns.filter(boolean(self._wanted[_bucket(by_key)]))
        with self._lock:
            self._parts.append(part)

    def table(self) -> pa.Table:
        if not self._parts:
            return pa.table({name: pa.nulls(0) for name in (*self._key, _KEY, _CONTENT)})
        return pa.concat_tables(self._parts)


@dataclass(slots=True)
class _Differences:
    """What was found by matching rows by the hash of their keys; `keys` of rows that differ."""

    missing: int = 0
    extra: int = 0
    changed: int = 0
    keys: list[pa.Table] = field(default_factory=list)

    def add(self, ours: pa.Table, theirs: pa.Table, key: tuple[str, ...]) -> None:
        """All rows of the same buckets. Without a key, equal rows count as often as they are there."""
        left, right = _numbers(ours, _KEY), _numbers(theirs, _KEY)
        missing, extra = _surplus(left, right), _surplus(right, left)
        self.missing += int(missing.sum())
        self.extra += int(extra.sum())
        if not key:
            return
        order = np.argsort(right)
        at = np.searchsorted(right, left[~missing], sorter=order)
        changed = np.zeros(left.size, np.bool_)
        changed[~missing] = _numbers(ours, _CONTENT)[~missing] != _numbers(theirs, _CONTENT)[order[at]]
        self.changed += int(changed.sum())
        for side, differs in ((ours, missing | changed), (theirs, extra)):
            if side.num_rows:
                self.keys.append(side.filter(boolean(differs)).select(list(key)))


def _numbers(table: pa.Table, name: str) -> Hashes:
    chunks = [numbers_of(chunk, np.uint64) for chunk in table.column(name).chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.uint64)


def _surplus(values: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Which of `values` are not among `others`, or more often than there."""
    order = np.argsort(values, kind="stable")
    ordered, others = values[order], np.sort(others)
    turn = np.arange(values.size) - np.searchsorted(ordered, ordered)
    there = np.searchsorted(others, ordered, "right") - np.searchsorted(others, ordered)
    surplus = np.zeros(values.size, np.bool_)
    surplus[order] = turn >= there
    return surplus


def _ranges(keys: pa.Table, key: tuple[str, ...]) -> tuple[KeyRange, ...]:
    """The differing keys, sorted by what Arrow can sort (no list, struct or map), in up to ten runs of neighbours."""
    flat = [name for name in key if not pa.types.is_nested(keys.schema.field(name).type)]
    ordered = keys.sort_by([(name, "ascending") for name in flat]) if flat else keys
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
    """A scan over what can only be iterated; a generator is closed at its end. Small batches are put together."""

    def scan(sink: Sink) -> None:
        read = batches()
        try:
            gathered: list[pa.RecordBatch] = []
            rows = size = 0
            for batch in read:
                gathered.append(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
                del batch  # not kept while the next one is made
                if rows >= _GATHERED_ROWS or size >= _GATHERED_BYTES:
                    _sink_together(gathered, sink)
                    gathered, rows, size = [], 0, 0
            _sink_together(gathered, sink)
        finally:
            if isinstance(read, Generator):
                read.close()  # a traceback would keep it

    return scan


def _sink_together(batches: list[pa.RecordBatch], sink: Sink) -> None:
    if len(batches) > 1:
        batches = pa.Table.from_batches(batches).combine_chunks().to_batches()
    for batch in batches:
        sink(batch)
