"""What a stream run tells Dagster: one materialisation per changed table and interval, and heartbeats for quiet ones.

An event takes 10 to 20 ms and 2 to 13 kB of Dagster's storage, for ever; batches come several times a second. So they
are summed up per table. The data version is the table's watermark, the LSN of its last change: a heartbeat repeats it,
and whoever asks for new data versions is not woken by it. What the watermark is, only the stream knows: it tells when
it takes a table in, also one that was copied meanwhile by another run.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_dagster.hints import sentence
from etl_dagster.reports.last_reports import DATA_VERSION_TAG, NEVER, LastReport
from etl_dagster.reports.row_count import RowCount
from etl_dagster.reports.table_report import (
    TableFacts,
    changes_text,
    quiet_text,
    reported_columns,
    schema_change,
    source_observation,
)
from etl_dagster.reports.waits import Waits

if TYPE_CHECKING:
    from etl_core.batch import ChangeCounts
    from etl_core.destination.protocol import Job
    from etl_core.replication.observer import Flush, Observer
    from etl_core.shape.shape import Shape
    from etl_core.state.store import TableStatus
    from etl_core.state.table_state import TableState

Report: TypeAlias = dg.AssetMaterialization | dg.AssetObservation


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked up for a report: the columns, bytes on the source's disk, and rows with their watermark."""

    shape: "Shape | None" = None
    size: int | None = None
    counted: tuple[Lsn, int] | None = None


NOTHING_SEEN = Seen()

Look: TypeAlias = Callable[[Sequence[TableName], Collection[TableName]], Mapping[TableName, Seen]]
"""Looks at tables for their reports; those of the second argument are to be counted. Raises nothing."""


@dataclass(slots=True)
class _Table:
    """Since the last report: the sum of the changes, None if there were none. `version` is the last change's LSN."""

    version: Lsn | None = None
    counts: "ChangeCounts | None" = None
    lag: float | None = None
    """The largest of them, from the commit on the source to the write, in seconds."""
    job: "Job | None" = None
    """The last one that wrote a batch with the table in it."""
    bytes_processed: int = 0
    """By the jobs since the last report, which have other tables in them too."""
    reported_at: float | None = None
    """None: by an earlier run, and Dagster has not been asked yet."""
    ready_at: datetime | None = None
    """Stands in for a report where Dagster never had one."""
    streams: bool = False
    """Whether its silence means that nothing has changed: a table that is stopped or copied again gets no heartbeat."""
    rows: RowCount = field(default_factory=RowCount)
    last_change: datetime | None = None
    """When the last batch with a change of the table was committed at the source."""
    last: LastReport | None = None
    """What Dagster has of the table, whoever reported it; None until it is asked, and again after a copy."""


class Reporter:
    """Collects what the engine's threads tell; `due` gives what is to be reported, in the calling thread.

    `keys` has the asset key of every table in Dagster; others are left out. `sources` are the assets of the tables at
    the source. `describe` gives a report's metadata from what is known of the table. `last_reports` is asked once a
    run, and once more for each table before its first report. `every` and `heartbeat_every` are seconds. `look` may be
    set once there is something to look at.
    """

    def __init__(
        self,
        keys: Mapping[TableName, dg.AssetKey],
        describe: Callable[[TableName, TableFacts, str], dict[str, Any]],
        log: Any,
        last_reports: Callable[[Sequence[dg.AssetKey]], Mapping[dg.AssetKey, LastReport]],
        *,
        sources: Mapping[TableName, dg.AssetKey],
        every: float,
        heartbeat_every: float,
    ) -> None:
        self._keys = keys
        self._describe = describe
        self._log = log
        self._last_reports = last_reports
        self._sources = sources
        self._every = every
        self._heartbeat_every = heartbeat_every
        self._lock = threading.Lock()
        self._tables: dict[TableName, _Table] = {}
        self._began = time.monotonic()
        self._waits = Waits()
        self.look: Look = lambda _, __: {}

    def observer(self) -> "Observer":
        """For the pipeline; its methods may be called from any thread."""
        from etl_core.replication.observer import Observer

        reporter = self

        class StreamObserver(Observer):
            def on_flush(self, flush: "Flush") -> None:
                reporter.add(flush)

            def on_state(self, table: TableName, state: "TableState") -> None:
                reporter._log.info(f"{table} is {state.name}")
                reporter.moved(table, is_ready=state.name == "READY")

            def on_activated(self, table: TableName, watermark: Lsn) -> None:
                reporter.activated(table, watermark)

            def on_deactivated(self, table: TableName) -> None:
                reporter.moved(table, is_ready=False)

            def on_table_error(self, table: TableName, error: EtlError) -> None:
                reporter._log.error(f"{table} stopped: {sentence(error)}")

            def on_retry(self, error: EtlError, wait: float) -> None:
                reporter._log.warning(f"{error}; next try in {wait:.1f} s")

            def on_notice(self, sentence: str) -> None:
                reporter._log.warning(sentence)

            def on_waiting(self, reason: str) -> None:
                if reporter._waits.is_news(reason):
                    reporter._log.info(reason)

        return StreamObserver()

    def begin(self, statuses: Iterable["TableStatus"]) -> None:
        """The stream is about to begin, perhaps again. It tells itself which tables it takes in."""
        with self._lock:
            self._began = time.monotonic()
            for table in self._tables.values():
                table.streams = False
            for status in statuses:
                if status.state.name == "READY" and status.name in self._keys:
                    self._tables.setdefault(status.name, _Table(ready_at=status.updated_at))

    def moved(self, name: TableName, *, is_ready: bool) -> None:
        """The table was copied, which is reported by whoever did it; or the stream passes it over from now on."""
        with self._lock:
            if is_ready and name in self._keys:
                table = self._tables.setdefault(name, _Table())
                table.reported_at, table.last = time.monotonic(), None
            elif name in self._tables:
                self._tables[name].streams = False

    def activated(self, name: TableName, watermark: Lsn) -> None:
        """The table streams from now on; the destination has it as of `watermark`."""
        with self._lock:
            if name in self._keys:
                table = self._tables.setdefault(name, _Table())
                table.version, table.streams = watermark, True
                table.rows = RowCount(watermark)

    def add(self, flush: "Flush") -> None:
        """A batch became durable."""
        lag = flush.lag
        with self._lock:
            for name, counts in flush.tables.items():
                if name not in self._keys:
                    continue
                table = self._tables.setdefault(name, _Table())
                # The table may have been copied again since the batch was written.
                if table.version is None or flush.end_lsn > table.version:
                    table.version = flush.end_lsn
                    table.rows.add(counts)
                    table.last_change = flush.commit_time or table.last_change
                table.counts = counts if table.counts is None else table.counts + counts
                if lag is not None:
                    table.lag = max(lag, table.lag or 0.0)
                if flush.jobs:
                    table.job = flush.jobs[-1]
                    table.bytes_processed += sum(job.bytes_processed for job in flush.jobs)

    def due(self, *, everything: bool = False) -> Iterator[Report]:
        """What to report now; with `everything`, also changes whose interval is not over."""
        self._recall_reports()
        now = time.monotonic()
        with self._lock:
            names = [name for name, table in self._tables.items() if self._is_due(table, now, everything)]
        if not names:
            return
        found = self._look_at(names)
        with self._lock:
            taken = {name: self._take(self._tables[name], now) for name in names}
        for name, table in taken.items():
            yield from self._events(name, table, found.get(name, NOTHING_SEEN), now)

    def _look_at(self, names: Sequence[TableName]) -> Mapping[TableName, Seen]:
        """Looks at tables that are due, and finds out how many rows they have where that is not known."""
        with self._lock:
            unasked = [name for name in names if self._tables[name].last is None]
        last = self._last_reports([self._keys[name] for name in unasked]) if unasked else {}
        with self._lock:
            for name in unasked:
                table = self._tables[name]
                table.last = last.get(self._keys[name], NEVER)
                table.rows.begin_at(table.last.version, table.last.rows)
            uncounted = {name for name in names if self._tables[name].rows.value is None}
        found = self.look(names, uncounted)
        with self._lock:
            for name, seen in found.items():
                table = self._tables[name]
                if seen.counted is not None and seen.counted[0] == table.version:
                    table.rows = RowCount(*seen.counted)
        return found

    def _recall_reports(self) -> None:
        """Learns when earlier runs reported: every run may be shorter than a heartbeat's interval."""
        with self._lock:
            unknown = {name: table for name, table in self._tables.items() if table.reported_at is None}
        if not unknown:
            return
        last = self._last_reports([self._keys[name] for name in unknown])
        now, clock = datetime.now(UTC), time.monotonic()
        with self._lock:
            for name, table in unknown.items():
                report = last.get(self._keys[name])
                at = (report.at if report is not None else table.ready_at) or now
                if table.reported_at is None:
                    table.reported_at = clock - max(0.0, (now - at).total_seconds())

    def _is_due(self, table: _Table, now: float, everything: bool) -> bool:
        if table.version is None or table.reported_at is None:
            return False
        if table.counts is None:
            return table.streams and now - table.reported_at >= self._heartbeat_every
        # Of a table that streams no more at once: once it is copied again, its version would go back.
        since = max(table.reported_at, self._began)
        return everything or not table.streams or now - since >= self._every

    def _take(self, table: _Table, now: float) -> _Table:
        """What there is to report of the table, which begins anew."""
        taken = replace(table, rows=replace(table.rows))
        table.counts, table.lag, table.job, table.bytes_processed, table.reported_at = None, None, None, 0, now
        return taken

    def _events(self, name: TableName, table: _Table, seen: Seen, now: float) -> Iterator[Report]:
        version, last, key = table.version, table.last or NEVER, self._keys[name]
        assert version is not None  # noqa: S101 - it would not be due
        quiet_since = last.last_change if last.version == str(version) else None
        facts = TableFacts(version, seen.shape, table.rows.value, seen.size, table.last_change or quiet_since)
        summary = quiet_text(version) if table.counts is None else changes_text(table.counts, version)
        metadata = self._describe(name, facts, summary) | _numbers(table, now)
        change = schema_change(key, metadata, reported_columns(last.metadata))
        if change is not None:
            yield change
            if seen.shape is not None and name in self._sources:
                yield source_observation(self._sources[name], name, seen.shape.source, seen.size)
        tags = {DATA_VERSION_TAG: str(version)}
        event = dg.AssetMaterialization(key, description=summary, metadata=metadata, tags=tags)
        with self._lock:
            if self._tables[name].last is table.last:  # else it was copied meanwhile
                self._tables[name].last = LastReport(datetime.now(UTC), str(version), event.metadata)
        yield event


def _numbers(table: _Table, now: float) -> dict[str, Any]:
    """What happened since the last report: nothing, in a heartbeat."""
    counts, job = table.counts, table.job
    seconds = now - (now if table.reported_at is None else table.reported_at)
    metadata: dict[str, Any] = {}
    if seconds >= 1.0:
        metadata["etl/changes_per_minute"] = round((0 if counts is None else counts.rows) * 60 / seconds, 2)
    if counts is None:
        return metadata
    metadata |= {
        "etl/rows_inserted": counts.inserted,
        "etl/rows_updated": counts.updated,
        "etl/rows_deleted": counts.deleted,
    }
    if counts.truncated:
        metadata["etl/truncated"] = counts.truncated
    if table.lag is not None:
        metadata["etl/lag_seconds"] = round(table.lag, 3)
    if job is not None:
        metadata["etl/job"] = job.id if job.url is None else dg.MetadataValue.url(job.url)
        metadata["etl/bytes_processed"] = table.bytes_processed
    return metadata
