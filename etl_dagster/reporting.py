"""What a stream run tells Dagster: one materialisation per changed table and interval, and heartbeats for quiet ones.

An event takes 10 to 20 ms and 2 to 13 kB of Dagster's storage, for ever; batches come several times a second. So they
are summed up per table. The data version is the table's watermark, the LSN of its last change: a heartbeat repeats it,
and whoever asks for new data versions is not woken by it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_dagster.waits import Waits

if TYPE_CHECKING:
    from etl_core.batch import ChangeCounts
    from etl_core.destination.protocol import Job
    from etl_core.replication.observer import Flush, Observer
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
    reported_at: float = 0.0
    streams: bool = True
    """Whether its silence means that nothing has changed: a table that is stopped or copied again gets no heartbeat."""


class Reporter:
    """Collects what the engine's threads tell; `due` gives what is to be reported, in the calling thread.

    `keys` has the asset key of every table in Dagster; others are left out. `uri` says where a reader finds a table.
    `every` and `heartbeat_every` are seconds.
    """

    def __init__(
        self,
        keys: Mapping[TableName, dg.AssetKey],
        uri: Callable[[TableName], str],
        log: Any,
        *,
        every: float,
        heartbeat_every: float,
    ) -> None:
        self._keys = keys
        self._uri = uri
        self._log = log
        self._every = every
        self._heartbeat_every = heartbeat_every
        self._lock = threading.Lock()
        self._tables: dict[TableName, _Table] = {}
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
                reporter.moved(table, streams=state.name == "READY")

            def on_table_error(self, table: TableName, error: EtlError) -> None:
                reporter._log.error(f"{table} stopped: {error}" + (f" → {error.hint}" if error.hint else ""))

            def on_retry(self, error: EtlError, wait: float) -> None:
                reporter._log.warning(f"{error}; next try in {wait:.1f} s")

            def on_waiting(self, reason: str) -> None:
                if reporter._waits.is_news(reason):
                    reporter._log.info(reason)

        return StreamObserver()

    def begin(self, watermarks: Mapping[TableName, Lsn]) -> None:
        """The watermark of each table that streams now: the version its heartbeats carry until it changes."""
        with self._lock:
            now = time.monotonic()
            for name, lsn in watermarks.items():
                table = self._tables.setdefault(name, _Table(reported_at=now))
                table.version = max(lsn, table.version or lsn)

    def moved(self, name: TableName, *, streams: bool) -> None:
        """The table streams from now on, or no longer."""
        with self._lock:
            if name in self._tables:
                self._tables[name].streams = streams

    def add(self, flush: "Flush") -> None:
        """A batch became durable."""
        lag = None if flush.commit_time is None else max(0.0, (datetime.now(UTC) - flush.commit_time).total_seconds())
        with self._lock:
            for name, counts in flush.tables.items():
                table = self._tables.setdefault(name, _Table())
                table.version = flush.end_lsn
                table.counts = counts if table.counts is None else table.counts + counts
                if lag is not None:
                    table.lag = max(lag, table.lag or 0.0)
                if flush.jobs:
                    table.job = flush.jobs[-1]
                    table.bytes_processed += sum(job.bytes_processed for job in flush.jobs)

    def due(self, *, everything: bool = False) -> Iterator[dg.AssetMaterialization]:
        """What to report now; with `everything`, also changes whose interval is not over."""
        now = time.monotonic()
        with self._lock:
            taken = [(name, self._take(table, now, everything)) for name, table in self._tables.items()]
        for name, table in taken:
            if table is not None and table.version is not None and name in self._keys:
                yield self._materialization(name, table, table.version)

    def _take(self, table: _Table, now: float, everything: bool) -> _Table | None:
        """What there is to report of the table, which begins anew; None if it is not time to."""
        if table.version is None:
            return None
        age = now - table.reported_at
        if table.counts is not None:
            is_due = everything or age >= self._every
        else:
            is_due = table.streams and age >= self._heartbeat_every
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
