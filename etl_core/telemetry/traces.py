"""Copies, batches and hand-overs as spans, by the API of OpenTelemetry.

Where they go is for the process to say: `opentelemetry-instrument etl run` reads OTEL_EXPORTER_OTLP_ENDPOINT and its
like. Without an SDK the API keeps nothing. https://opentelemetry.io/docs/specs/otel/trace/api/
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableName
from etl_core.replication.observer import Flush, Observer
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

_NANOSECONDS = 10**9


class TracingObserver(Observer):
    """Spans `copy`, `batch` and `hand_over` of one pipeline, made when they have ended; `error` at its moment."""

    def __init__(self, pipeline: str, tracer: Tracer, now: Callable[[], int] = time.time_ns) -> None:
        """`now` in nanoseconds since 1970."""
        self._pipeline = pipeline
        self._tracer = tracer
        self._now = now
        self._copied_at: dict[TableName, int] = {}
        self._lock = threading.Lock()

    def on_copied(self, table: TableName, rows: int, seconds: float) -> None:
        self._span("copy", seconds, {"etl.table": str(table), "etl.rows": rows})

    def on_flush(self, flush: Flush) -> None:
        attributes: dict[str, AttributeValue] = {
            "etl.rows": flush.rows,
            "etl.tables": len(flush.tables),
            "etl.end_lsn": str(flush.end_lsn),
        }
        if flush.lag is not None:
            attributes["etl.lag_seconds"] = flush.lag
        self._span("batch", flush.seconds, attributes)

    def on_state(self, table: TableName, state: TableState) -> None:
        now = self._now()
        with self._lock:
            began = self._copied_at.pop(table, None)
            if state is TableState.FINISHED_COPY:
                self._copied_at[table] = now
            elif state is TableState.SYNC_DONE and began is not None:
                self._copied_at[table] = began
        if state is TableState.READY and began is not None:
            self._span("hand_over", (now - began) / _NANOSECONDS, {"etl.table": str(table)})

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        self._span("error", 0.0, {"etl.table": str(table), "etl.error": type(error).__name__})

    def _span(self, name: str, seconds: float, attributes: dict[str, AttributeValue]) -> None:
        end = self._now()
        span = self._tracer.start_span(
            f"etl.{name}",
            attributes={"etl.pipeline": self._pipeline, **attributes},
            start_time=end - round(seconds * _NANOSECONDS),
        )
        span.end(end)


def tracing_observer(pipeline: str) -> TracingObserver:
    """Of the tracer that the process has. Raises ConfigError if the API is not installed."""
    try:
        from opentelemetry import trace
    except ImportError:
        raise ConfigError(
            "traces need the Python package opentelemetry-api, which is not installed",
            field="traces.opentelemetry",
            hint="run: pip install 'etl-dagster[opentelemetry]'",
        ) from None
    return TracingObserver(pipeline, trace.get_tracer("etl_core"))
