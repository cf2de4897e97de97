"""What a stream run tells Dagster: one materialisation per changed table and interval, and heartbeats for quiet ones.

An event takes 10 to 20 ms and 2 to 13 kB of Dagster's storage, for ever; batches come several times a second. So they
are summed up per table. The data version is the table's watermark, the LSN of its last change: a heartbeat repeats it,
and whoever asks for new data versions is not woken by it. What the watermark is, only the stream knows: it tells when
it takes a table in, also one that was copied meanwhile by another run.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_dagster.hints import sentence
from etl_dagster.waits import Waits

if TYPE_CHECKING:
    from etl_core.batch import ChangeCounts
    from etl_core.destination.protocol import Job
    from etl_core.replication.observer import Flush, Observer
    from etl_core.state.store import TableStatus
    from etl_core.state.table_state import TableState

DATA_VERSION_TAG = "dagster/data_version"


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


def last_materialized(instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]) -> dict[dg.AssetKey, datetime]:
    """When each asset was, without those that never were. One query; a thousand tables take less than half a second."""
    entries = [record.asset_entry for record in instance.get_asset_records(keys)]
    records = {entry.asset_key: entry.last_materialization_record for entry in entries}
    return {key: datetime.fromtimestamp(record.timestamp, UTC) for key, record in records.items() if record is not None}


class Reporter:
    """Collects what the engine's threads tell; `due` gives what is to be reported, in the calling thread.

    `keys` has the asset key of every table in Dagster; others are left out. `uri` says where a reader finds a table.
    `last_materialized` is asked once a run; `every` and `heartbeat_every` are seconds.
    """

    def __init__(
        self,
        keys: Mapping[TableName, dg.AssetKey],
        uri: Callable[[TableName], str],
        log: Any,
        last_materialized: Callable[[Sequence[dg.AssetKey]], Mapping[dg.AssetKey, datetime]],
        *,
        every: float,
        heartbeat_every: float,
    ) -> None:
        self._keys = keys
        self._uri = uri
        self._log = log
        self._last_materialized = last_materialized
        self._every = every
        self._heartbeat_every = heartbeat_every
        self._lock = threading.Lock()
        self._tables: dict[TableName, _Table] = {}
        self._began = time.monotonic()
        self._waits = Waits()

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
                self._tables.setdefault(name, _Table()).reported_at = time.monotonic()
            elif name in self._tables:
                self._tables[name].streams = False

    def activated(self, name: TableName, watermark: Lsn) -> None:
        """The table streams from now on; the destination has it as of `watermark`."""
        with self._lock:
            if name in self._keys:
                table = self._tables.setdefault(name, _Table())
                table.version, table.streams = watermark, True

    def add(self, flush: "Flush") -> None:
        """A batch became durable."""
        lag = flush.lag
        with self._lock:
            for name, counts in flush.tables.items():
                if name not in self._keys:
                    continue
                table = self._tables.setdefault(name, _Table())
                # The table may have been copied again since the batch was written.
                table.version = max(flush.end_lsn, table.version or flush.end_lsn)
                table.counts = counts if table.counts is None else table.counts + counts
                if lag is not None:
                    table.lag = max(lag, table.lag or 0.0)
                if flush.jobs:
                    table.job = flush.jobs[-1]
                    table.bytes_processed += sum(job.bytes_processed for job in flush.jobs)

    def due(self, *, everything: bool = False) -> Iterator[dg.AssetMaterialization]:
        """What to report now; with `everything`, also changes whose interval is not over."""
        self._recall_reports()
        now = time.monotonic()
        with self._lock:
            taken = [(name, self._take(table, now, everything)) for name, table in self._tables.items()]
        for name, table in taken:
            if table is not None and table.version is not None:
                yield self._materialization(name, table, table.version)

    def _recall_reports(self) -> None:
        """Learns when earlier runs reported: every run may be shorter than a heartbeat's interval."""
        with self._lock:
            unknown = {name: table for name, table in self._tables.items() if table.reported_at is None}
        if not unknown:
            return
        materialized = self._last_materialized([self._keys[name] for name in unknown])
        now, clock = datetime.now(UTC), time.monotonic()
        with self._lock:
            for name, table in unknown.items():
                last = materialized.get(self._keys[name], table.ready_at) or now
                if table.reported_at is None:
                    table.reported_at = clock - max(0.0, (now - last).total_seconds())

    def _take(self, table: _Table, now: float, everything: bool) -> _Table | None:
        """What there is to report of the table, which begins anew; None if it is not time to."""
        if table.version is None or table.reported_at is None:
            return None
        if table.counts is not None:
            # Of a table that streams no more at once: once it is copied again, its version would go back.
            since = max(table.reported_at, self._began)
            is_due = everything or not table.streams or now - since >= self._every
        else:
            is_due = table.streams and now - table.reported_at >= self._heartbeat_every
        if not is_due:
            return None
        taken = replace(table)
        table.counts, table.lag, table.job, table.bytes_processed, table.reported_at = None, None, None, 0, now
        return taken

    def _materialization(self, name: TableName, table: _Table, version: Lsn) -> dg.AssetMaterialization:
        counts, job = table.counts, table.job
        metadata: dict[str, Any] = {"dagster/uri": self._uri(name), "etl/lsn": str(version)}
        description: str | None = "no change since the last report: the stream is alive"
        if counts is not None:
            description = None
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
        return dg.AssetMaterialization(
            self._keys[name], description=description, metadata=metadata, tags={DATA_VERSION_TAG: str(version)}
        )
