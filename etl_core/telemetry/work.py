"""Metrics of what this process does: rows, batches, copies, errors, and how much memory and spool it takes."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication.observer import Flush, Observer
from etl_core.replication.spool import spooled_bytes
from etl_core.state.table_state import TableState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ROWS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
_COPY_SECONDS = (0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0)


class WorkMetrics(Observer):
    """Counts what it is told into `registry`, each metric with the label `pipeline`."""

    def __init__(self, registry: CollectorRegistry, pipeline: str) -> None:
        of = ("pipeline",)
        self._pipeline = pipeline
        self._rows = Counter(
            "etl_rows", "Changed rows made durable in the destination.", (*of, "table", "operation"), registry=registry
        )
        self._batch_seconds = Histogram(
            "etl_batch_seconds", "Decoding and writing of a batch.", of, buckets=_SECONDS, registry=registry
        ).labels(pipeline)
        self._batch_rows = Histogram(
            "etl_batch_rows", "Changed rows of a batch.", of, buckets=_ROWS, registry=registry
        ).labels(pipeline)
        self._copied_rows = Counter("etl_copied_rows", "Rows copied initially.", (*of, "table"), registry=registry)
        self._copy_seconds = Histogram(
            "etl_copy_seconds", "Finished initial copies.", of, buckets=_COPY_SECONDS, registry=registry
        ).labels(pipeline)
        copying = (*of, "table")
        self._copying = [
            Gauge("etl_copy_running_rows", "Rows of a copy that runs.", copying, registry=registry),
            Gauge("etl_copy_running_bytes", "Bytes that a running copy has read.", copying, registry=registry),
            Gauge("etl_copy_total_bytes", "About how many it reads in all.", copying, registry=registry),
        ]
        self._errors = Counter(
            "etl_errors",
            "What stopped a table, by kind.",
            (*of, "table", "kind"),
            registry=registry,
        )
        self._retries = Counter("etl_retries", "What failed and was tried again.", (*of, "kind"), registry=registry)
        Gauge("etl_spool_bytes", "On disk, of transactions larger than memory.", registry=registry).set_function(
            spooled_bytes
        )
        ProcessCollector(registry=registry)
        self._lock = threading.Lock()

    def on_flush(self, flush: Flush) -> None:
        self._batch_seconds.observe(flush.seconds)
        self._batch_rows.observe(flush.rows)
        for table, counts in flush.tables.items():
            for operation, rows in (
                ("insert", counts.inserted),
                ("update", counts.updated),
                ("delete", counts.deleted),
                ("truncate", counts.truncated),
            ):
                if rows:
                    self._rows.labels(self._pipeline, str(table), operation).inc(rows)

    def on_copy_progress(self, table: TableName, rows: int, size: int, total_size: int) -> None:
        with self._lock:
            for gauge, value in zip(self._copying, (rows, size, total_size), strict=True):
                gauge.labels(self._pipeline, str(table)).set(value)

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        self._copied_rows.labels(self._pipeline, str(table)).inc(rows)
        self._copy_seconds.observe(seconds)

    def on_state(self, table: TableName, state: TableState) -> None:
        if state is not TableState.DATA_SYNC:
            with self._lock:
                for gauge in self._copying:
                    gauge.remove_by_labels({"pipeline": self._pipeline, "table": str(table)})

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        self._errors.labels(self._pipeline, str(table), type(error).__name__).inc()

    def on_retry(self, error: EtlError, wait: float) -> None:  # noqa: ARG002
        self._retries.labels(self._pipeline, type(error).__name__).inc()
