"""What a comparison tells while it reads, and how it ends when it is stopped in the middle or a side fails."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pytest

from etl_core.destination.duckdb.memory import MemoryRaised
from etl_core.errors import DestinationUnavailable, Stopped
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.source import Source
from etl_core.replication.verify import Verifier
from etl_core.source.slot import CreatedSlot
from etl_core.state.store import TableStatus
from etl_core.testing.scripted_destination import Fault
from tests.integration.replication.conftest import Lab, Running, Watch, Watched, scripted

MakeTables = Callable[..., None]
ROWS = 200


class Told(Watch):
    """Keeps what a comparison told, in order; may set an event when it begins."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__()
        self.begun: list[bool] = []
        self.progress: list[tuple[int, int, int]] = []
        self.compared: list[int] = []
        self._stop = stop

    def on_comparing(self, table: TableName, *, is_again: bool) -> None:
        assert table == TableName("public", "a")
        self.begun.append(is_again)
        if self._stop is not None:
            self._stop.set()
        self.progress.clear()

    def on_compare_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        assert table == TableName("public", "a")
        self.progress.append((rows, size, total_size))

    def on_compared(self, table: TableName, rows: int, seconds: float) -> None:
        assert table == TableName("public", "a")
        assert seconds > 0
        self.compared.append(rows)


def watched(pipeline: Watched, told: Told) -> Told:
    """`pipeline` tells `told` what its comparisons do."""
    pipeline.observer.on_comparing = told.on_comparing  # type: ignore[method-assign]
    pipeline.observer.on_compare_progress = told.on_compare_progress  # type: ignore[method-assign]
    pipeline.observer.on_compared = told.on_compared  # type: ignore[method-assign]
    return told


def left_nothing_behind(lab: Lab, pipeline: Watched) -> None:
    assert pipeline.store.hold() is None
    assert lab.slots() == {pipeline.source.main_slot}
    lab.execute("UPDATE a SET n = n + 1 WHERE id = 1")
    with lab.running(pipeline, pipeline.stream):  # the file and the stream are free
        pipeline.observer.until_flushed(pipeline.current_lsn())


def test_both_sides_are_told_to_the_end(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    told = watched(pipeline, Told())
    assert all(comparison.is_equal for comparison in pipeline.verify())
    assert told.begun == [False]
    rows, size, total_size = told.progress[-1]
    assert rows == ROWS
    assert size == total_size > 0
    assert [done for done, _, _ in told.progress] == sorted(done for done, _, _ in told.progress)
    assert told.compared == [ROWS]


def test_what_differs_is_read_again_and_told_anew(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    with duckdb.connect(lab.path) as destination:
        destination.execute("DELETE FROM public.a WHERE id <= 3")
    pipeline = lab.pipeline()
    told = watched(pipeline, Told())
    [comparison] = pipeline.verify()
    assert comparison.missing == 3
    assert told.begun == [False, True]
    assert 0 < len(told.progress) < 10
    assert told.compared == [ROWS]


def test_a_table_that_has_passed_the_snapshot_is_compared_with_a_later_one(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was just copied, and caught up while the snapshot was taken."""
    churned("a", rows=ROWS)
    lab.publish()
    pipeline = lab.synced()
    is_passed, asked = Verifier._is_passed, []

    def at_first(
        verifier: Verifier, tables: Sequence[TableStatus], watermarks: Mapping[TableId, Lsn], lsn: Lsn
    ) -> bool:
        asked.append(lsn)
        if len(asked) > 1:
            return is_passed(verifier, tables, watermarks, lsn)
        lab.execute("UPDATE a SET n = n + 1")
        return is_passed(verifier, tables, watermarks, Lsn(1))

    monkeypatch.setattr(Verifier, "_is_passed", at_first)
    [comparison] = pipeline.verify([TableName("public", "a")])
    assert comparison.is_equal
    first, second = asked
    assert comparison.lsn == second > first


def test_a_stream_that_begins_while_the_snapshot_is_taken_is_compared_at_a_later_one(
    lab: Lab, churned: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody streamed before, so nothing was held, and it is beyond the snapshot when the hold comes."""
    churned("a", rows=ROWS)
    lab.publish()
    streaming, proving = lab.synced(), lab.pipeline()
    exported = Source.exported_snapshot
    taken: list[Lsn] = []

    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def stream_meanwhile(source: Source, role: str, **options: Any) -> Iterator[CreatedSlot]:
            with exported(source, role, **options) as snapshot:
                if not taken:
                    stack.enter_context(lab.running(streaming, streaming.stream))
                    lab.execute("UPDATE a SET n = n + 1")
                    streaming.observer.until_flushed(streaming.current_lsn())
                taken.append(snapshot.consistent_point)
                yield snapshot

        monkeypatch.setattr(Source, "exported_snapshot", stream_meanwhile)
        [comparison] = proving.verify([TableName("public", "a")])
    assert comparison.is_equal
    assert comparison.lsn == taken[1]


def test_a_stop_is_heard_while_the_destination_is_read(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    reached, go_on = threading.Event(), threading.Event()
    proving = lab.pipeline(destination=scripted(lab, Fault("read", reached=reached, until=go_on)))
    proof = Running(proving, proving.verify)
    assert reached.wait(300)
    proving.stop.set()
    go_on.set()
    with pytest.raises(Stopped, match="before every table was compared"):
        proof.join()
    left_nothing_behind(lab, lab.pipeline())


def test_a_stop_is_heard_when_the_source_is_to_be_read(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    pipeline = lab.synced()
    watched(pipeline, Told(pipeline.stop))
    with pytest.raises(Stopped, match="before every table was compared"):
        pipeline.verify()
    left_nothing_behind(lab, lab.pipeline())


def test_a_destination_that_fails_ends_the_comparison_with_its_error(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    proving = lab.pipeline(destination=scripted(lab, Fault("read", before=DestinationUnavailable("it is away"))))
    with pytest.raises(DestinationUnavailable, match="it is away"):
        proving.verify()
    left_nothing_behind(lab, lab.pipeline())


def test_a_destination_that_needs_more_memory_is_read_again_with_it(lab: Lab, churned: MakeTables) -> None:
    churned("a")
    lab.publish()
    lab.synced()
    destination = scripted(lab, *(Fault("read", call=call, before=MemoryRaised("it has more now")) for call in (1, 2)))
    proving = lab.pipeline(destination=destination)
    assert all(comparison.is_equal for comparison in proving.verify())
    assert destination.calls("read") == 3
