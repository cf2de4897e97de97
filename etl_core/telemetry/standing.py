"""Metrics of how a pipeline stands, whoever runs it: asked of the state store and the source at each scrape.

The destination is not asked: a scrape must neither hold a file nor wait for a warehouse.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from etl_core.control import PipelineControl
from etl_core.errors import EtlError
from etl_core.replication.look import Look
from etl_core.replication.status import is_in_step, lag_seconds, stream_error
from etl_core.source.server import current_lsn
from etl_core.source.slot import SlotStatus, slot_statuses
from etl_core.state.store import ReplicationProgress, StreamError, TableStatus
from etl_core.state.table_state import TableState

_PATIENCE = 3.0
"""Seconds in which the source is to answer: Prometheus gives a scrape ten."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was found out. `source_error` is why the slots and the end of the WAL are not known, `store_error` why
    nothing is."""

    tables: Sequence[TableStatus] = ()
    progress: ReplicationProgress | None = None
    stream_error: StreamError | None = None
    slots: Sequence[SlotStatus] = ()
    wal_end: int | None = None
    main_slot: str = ""
    source_error: str | None = None
    store_error: str | None = None

    @property
    def main(self) -> SlotStatus | None:
        return next((slot for slot in self.slots if slot.name == self.main_slot), None)

    def not_ready(self, now: datetime) -> str | None:
        """Why changes do not arrive at the moment, in one sentence; None if they do."""
        if self.store_error is not None:
            return f"the state store is away: {self.store_error}"
        if self.source_error is not None:
            return f"the source is away: {self.source_error}"
        if self.stream_error is not None:
            return f"the stream has ended: {self.stream_error.error}"
        if self.main is None:
            return "the slot does not exist: changes are not kept for this pipeline"
        if not self.main.active:
            return "nobody streams"
        if not is_in_step(self.progress, now):
            return "the stream does not move"
        return None


def read_standing(pipeline: PipelineControl) -> Standing:
    """Never raises what may pass: it is told instead."""
    store = pipeline.store
    try:
        tables, progress, ended = store.tables(), store.progress(), stream_error(store)
        names = {slot.name for slot in store.owned_slots()} | {pipeline.source.main_slot}
    except EtlError as error:
        return Standing(main_slot=pipeline.source.main_slot, store_error=str(error))

    def look() -> tuple[list[SlotStatus], int]:
        with pipeline.source.connect("metrics") as connection:
            return slot_statuses(connection, names), int(current_lsn(connection))

    slots: Sequence[SlotStatus] = ()
    wal_end = source_error = None
    try:
        slots, wal_end = Look("the source", look).answer(_PATIENCE)
    except EtlError as error:
        source_error = str(error)
    return Standing(tables, progress, ended, slots, wal_end, pipeline.source.main_slot, source_error)


class StandingMetrics(Collector):
    """Asks `read` at each scrape, one at a time."""

    def __init__(self, pipeline: str, read: Callable[[], Standing]) -> None:
        self._pipeline = pipeline
        self._read = read
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """None beforehand: the registry would ask the source to find their names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            found = self._read()
        yield self._gauge("etl_state_store_up", "Whether the state store answered.", found.store_error is None)
        if found.store_error is not None:
            return
        yield self._gauge("etl_source_up", "Whether the source answered.", found.source_error is None)
        yield from self._stream(found)
        yield from self._slots(found.slots)
        yield from self._tables(found.tables)

    def _stream(self, found: Standing) -> Iterable[Metric]:
        main, now = found.main, datetime.now(UTC)
        lag = lag_seconds(found.progress, main, now)
        if lag is not None:
            text = "How old the oldest change is that is not in the destination."
            yield self._gauge("etl_stream_lag_seconds", text, lag)
        if main is not None and main.bytes_behind is not None:
            yield self._gauge("etl_stream_lag_bytes", "WAL that is not in the destination.", main.bytes_behind)
        if found.source_error is None:
            is_active = main is not None and main.active
            yield self._gauge("etl_stream_active", "Whether somebody reads the main slot.", is_active)
        yield self._gauge(
            "etl_stream_failed", "Whether the stream ended and needs a person.", found.stream_error is not None
        )
        if found.wal_end is not None:
            yield self._gauge("etl_source_wal_end_bytes", "The end of the source's WAL: its rate.", found.wal_end)

    def _slots(self, slots: Sequence[SlotStatus]) -> Iterable[Metric]:
        kept = GaugeMetricFamily(
            "etl_slot_kept_wal_bytes", "WAL that the source keeps for a slot.", labels=["pipeline", "slot"]
        )
        left = GaugeMetricFamily(
            "etl_slot_left_wal_bytes", "WAL until the source drops a slot's.", labels=["pipeline", "slot"]
        )
        lost = GaugeMetricFamily("etl_slot_lost", "Whether WAL that a slot needs is gone.", labels=["pipeline", "slot"])
        for slot in slots:
            labels = [self._pipeline, slot.name]
            if slot.bytes_kept is not None:
                kept.add_metric(labels, slot.bytes_kept)
            if slot.safe_wal_size is not None:
                left.add_metric(labels, slot.safe_wal_size)
            lost.add_metric(labels, float(slot.is_lost))
        return kept, left, lost

    def _tables(self, tables: Sequence[TableStatus]) -> Iterable[Metric]:
        counts = Counter(table.state for table in tables)
        number = GaugeMetricFamily("etl_tables", "Tables in each state.", labels=["pipeline", "state"])
        for state in TableState:
            number.add_metric([self._pipeline, state.name.lower()], counts[state])
        of_each = GaugeMetricFamily(
            "etl_table_state", "1 for the state that a table is in.", labels=["pipeline", "table", "state"]
        )
        waiting = GaugeMetricFamily(
            "etl_table_waits", "1 for a table that waits for a person.", labels=["pipeline", "table", "policy"]
        )
        for table in tables:
            of_each.add_metric([self._pipeline, str(table.name), table.state.name.lower()], 1.0)
            if table.waits_for is not None:
                waiting.add_metric([self._pipeline, str(table.name), table.waits_for], 1.0)
        return number, of_each, waiting

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=["pipeline"])
        gauge.add_metric([self._pipeline], float(value))
        return gauge
