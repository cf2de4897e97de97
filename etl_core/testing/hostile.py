"""Destinations and state stores behind a hostile network: answers are lost, requests arrive twice, or late once more.

The first two wrappers do the work and lose its answer; then they read what became of it, as a correct caller does, send
the request again at once, and once more just before the next one. What a fence must refuse is expected to be refused.
So the behaviour suites run over them unchanged:

    class TestMineHostile(DestinationSuite):
        @pytest.fixture
        def make_destination(self, tmp_path):
            return lambda pipeline: HostileDestination(MyDestination(tmp_path, pipeline))

`LosingStore` raises instead: it does the work of chosen calls and loses their answers, for tests of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from etl_core.batch import WriteBatch
from etl_core.destination.protocol import (
    AppendingCopy,
    Destination,
    Job,
    KeepingCopy,
    KeptRows,
    LoggedCopy,
    Positions,
    TableCopy,
    why_no_removals,
)
from etl_core.errors import StateConflict, StateStoreUnavailable, WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.state.store import StateStore


class HostileDestination:
    """`inner`, reached over a hostile network. Raises AssertionError if a repeated write is applied again."""

    def __init__(self, inner: Destination) -> None:
        self._inner = inner
        self._late: WriteBatch | None = None

    def prepare(self) -> None:
        self._inner.prepare()
        self._inner.prepare()

    def positions(self) -> Positions:
        self._inner.positions()
        return self._inner.positions()

    def refuses_removals(self, schema: TableSchema) -> str | None:
        return why_no_removals(self._inner, schema)

    def copy(self, schema: TableSchema) -> HostileCopy:
        return HostileCopy(lambda: self._inner.copy(schema), self)

    def write(self, batch: WriteBatch) -> Sequence[Job] | None:
        batch = replace(batch, parts=tuple(batch.parts))
        self._deliver_late()
        jobs = self._inner.write(batch)
        if all(move.new == move.expected for move in batch.watermarks.values()):
            return jobs  # nothing tells a repetition from the first
        marks = self._inner.positions().tables
        assert all(marks.get(table_id) == move.new for table_id, move in batch.watermarks.items())
        self._repeat(batch)
        self._late = batch
        return jobs

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        for _ in self._inner.read(schema):
            pass
        return self._inner.read(schema)

    def forget(self, table_id: TableId) -> None:
        self.published()
        self._inner.forget(table_id)
        self._inner.forget(table_id)

    def close(self) -> None:
        self._deliver_late()
        self._inner.close()
        self._inner.close()

    def published(self) -> None:
        """A late write that waits is delivered: from now on a table may have any watermark."""
        self._deliver_late()

    def _deliver_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            self._repeat(late)

    def _repeat(self, batch: WriteBatch) -> None:
        try:
            self._inner.write(batch)
        except WatermarkConflict:
            return
        raise AssertionError("a batch was applied twice")


class HostileCopy:
    """A copy whose publication loses its answer: it was published, and is made again from the beginning."""

    def __init__(self, begin: Callable[[], TableCopy], destination: HostileDestination) -> None:
        self._begin = begin
        self._destination = destination
        self._inner = begin()
        self._written: list[pa.RecordBatch] = []
        self._lock = threading.Lock()

    def write(self, rows: pa.RecordBatch) -> None:
        with self._lock:
            self._written.append(rows)
        self._inner.write(rows)

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        return self._twice(lambda inner: inner.publish(watermark, expected))

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        def publish(inner: TableCopy) -> int:
            assert isinstance(inner, KeepingCopy)
            return inner.publish_keeping(watermark, expected, kept)

        return self._twice(publish)

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        def publish(inner: TableCopy) -> int:
            assert isinstance(inner, AppendingCopy)
            return inner.publish_appending(watermark, expected, logged)

        return self._twice(publish)

    def _twice(self, publish: Callable[[TableCopy], int]) -> int:
        self._destination.published()
        publish(self._inner)
        self._inner.__exit__(None, None, None)
        self._inner = self._begin()
        self._inner.__enter__()
        for rows in self._written:
            self._inner.write(rows)
        return publish(self._inner)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)


_READS = frozenset(
    (
        "source_identity",
        "tables",
        "table",
        "history",
        "progress",
        "stream_error",
        "schema",
        "owned_slots",
        "publication_owned",
        "hold",
        "find",
        "fingerprint",
        "fingerprints",
        "shape",
        "shapes",
        "selected_names",
        "checked_settings",
        "publication_oid",
        "ranges",
    )
)
_IDEMPOTENT = frozenset(
    (
        "migrate",
        "save_source_identity",
        "save_stream_error",
        "save_fingerprint",
        "save_shape",
        "save_selected_name",
        "save_checked_settings",
        "add_table",
        "remove_table",
        "record_slot",
        "set_publication_owned",
        "request_hold",
        "answer_hold",
        "release_hold",
        "clear",
        "close",
        "offer",
        "end",
        "give_back",
    )
)
_FENCED = frozenset(("transition", "claim_progress", "save_progress", "finish"))
"""A repetition of these raises StateConflict. One of `take`, `forget_slot` or `save_schema` may do something else."""


class HostileStore:
    """`inner`, reached over a hostile network; a StateStore, or its SharedCopyStore.

    Raises AssertionError if a repeated call that is fenced is accepted.
    """

    def __init__(self, inner: Any, late: list[Callable[[], object]] | None = None) -> None:
        self._inner = inner
        self._late: list[Callable[[], object]] = [] if late is None else late
        """At most one; shared with the store's shared copies."""

    @property
    def shared_copies(self) -> Any:
        return HostileStore(self._inner.shared_copies, self._late)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return partial(self._perform, name, value) if callable(value) else value

    def _perform(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        work = partial(call, *arguments, **options)
        if name in _READS:
            work()
            return work()
        self._deliver_late()
        answer = work()
        if name in _IDEMPOTENT:
            return work()
        if name in _FENCED and not (name == "save_progress" and len(arguments) + len(options) < 2):
            _expect_conflict(work)
            self._late.append(work)
        return answer

    def _deliver_late(self) -> None:
        while self._late:
            _expect_conflict(self._late.pop())


def _expect_conflict(work: Callable[[], object]) -> None:
    try:
        work()
    except StateConflict:
        return
    raise AssertionError("a fenced call was accepted twice")


class LosingStore:
    """`inner`; the first call of each method in `losing` is done, and StateStoreUnavailable is raised for its answer.

    `lost` has the methods that it happened to. Cast it to a StateStore.
    """

    def __init__(self, inner: StateStore, losing: Sequence[str]) -> None:
        self._inner = inner
        self._losing = set(losing)
        self._lock = threading.Lock()
        self.lost: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if name not in self._losing:
            return value

        def lose(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                is_first = name in self._losing
                self._losing.discard(name)
            answer = value(*arguments, **options)
            if not is_first:
                return answer
            self.lost.append(name)
            raise StateStoreUnavailable(f"the answer to {name} was lost")

        return lose
