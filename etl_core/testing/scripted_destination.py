"""A destination that fails on a script: before the work, after it (the answer is lost), or when a test says so.

It wraps any other destination and is exact where the script is silent, so the behaviour suite runs over it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

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
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

Method = Literal["prepare", "positions", "copy", "copy.write", "copy.publish", "write", "read", "forget", "close"]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens in the `call`-th call (from 1) of `method`.

    `reached` is set when the call arrives, then it waits for `until`; then `before` is raised, or the work is done and
    `after` is raised: with DestinationUnavailable that is a lost answer.
    """

    method: Method
    call: int = 1
    before: Exception | None = None
    after: Exception | None = None
    reached: threading.Event | None = None
    until: threading.Event | None = None


class ScriptedDestination:
    """`inner`, with `faults` in it. Counts its calls. Thread-safe if `inner` is."""

    def __init__(self, inner: Destination, faults: Sequence[Fault] = ()) -> None:
        self._inner = inner
        self._faults = {(fault.method, fault.call): fault for fault in faults}
        self._calls: dict[Method, int] = {}
        self._lock = threading.Lock()

    def calls(self, method: Method) -> int:
        """How often `method` was called."""
        with self._lock:
            return self._calls.get(method, 0)

    def prepare(self) -> None:
        self.perform("prepare", self._inner.prepare)

    def positions(self) -> Positions:
        return self.perform("positions", self._inner.positions)

    def refuses_removals(self, schema: TableSchema) -> str | None:
        return why_no_removals(self._inner, schema)

    def copy(self, schema: TableSchema) -> ScriptedCopy:
        return ScriptedCopy(self, self.perform("copy", lambda: self._inner.copy(schema)))

    def write(self, batch: WriteBatch) -> Sequence[Job] | None:
        return self.perform("write", lambda: self._inner.write(batch))

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        return self.perform("read", lambda: self._inner.read(schema))

    def forget(self, table_id: TableId) -> None:
        self.perform("forget", lambda: self._inner.forget(table_id))

    def close(self) -> None:
        self.perform("close", self._inner.close)

    def perform(self, method: Method, work: Callable[[], _Result]) -> _Result:
        """Does `work` as the script has it."""
        with self._lock:
            call = self._calls[method] = self._calls.get(method, 0) + 1
        fault = self._faults.get((method, call))
        if fault is None:
            return work()
        if fault.reached is not None:
            fault.reached.set()
        if fault.until is not None:
            fault.until.wait()
        if fault.before is not None:
            raise fault.before
        result = work()
        if fault.after is not None:
            raise fault.after
        return result


class ScriptedCopy:
    """The copy of a ScriptedDestination; its calls are counted over all copies."""

    def __init__(self, destination: ScriptedDestination, inner: TableCopy) -> None:
        self._destination = destination
        self._inner = inner

    def write(self, rows: pa.RecordBatch) -> None:
        self._destination.perform("copy.write", lambda: self._inner.write(rows))

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        return self._destination.perform("copy.publish", lambda: self._inner.publish(watermark, expected))

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        inner = self._inner
        assert isinstance(inner, KeepingCopy)
        return self._destination.perform("copy.publish", lambda: inner.publish_keeping(watermark, expected, kept))

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        inner = self._inner
        assert isinstance(inner, AppendingCopy)
        return self._destination.perform("copy.publish", lambda: inner.publish_appending(watermark, expected, logged))

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)
