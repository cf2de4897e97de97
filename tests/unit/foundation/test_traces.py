"""The spans of a pipeline, kept by OpenTelemetry's own SDK."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from etl_core.batch import ChangeCounts
from etl_core.config_telemetry import EVERYWHERE, ListenAddress
from etl_core.errors import ConfigError, TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.replication.observer import Flush
from etl_core.state.table_state import TableState
from etl_core.telemetry.traces import TracingObserver

SECOND = 10**9


def test_a_copy_its_hand_over_a_batch_and_an_error() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    clock = iter(range(100 * SECOND, 200 * SECOND, SECOND))
    observer = TracingObserver("shop", provider.get_tracer("test"), lambda: next(clock))
    orders = TableName("public", "orders")

    observer.on_state(orders, TableState.FINISHED_COPY)  # at 100 s
    observer.on_copied(orders, 7, 4.0)  # at 101 s
    observer.on_state(orders, TableState.SYNC_DONE)
    observer.on_state(orders, TableState.READY)  # at 103 s
    observer.on_state(orders, TableState.READY)  # of no copy that was seen
    observer.on_flush(Flush(Lsn(16), None, 3, 0.5, {orders: ChangeCounts(inserted=3)}, lag=0.25))
    observer.on_table_error(orders, TableError("stopped", table="public.orders"))

    spans = [
        (span.name, (span.end_time or 0) - (span.start_time or 0), dict(span.attributes or {}))
        for span in kept.get_finished_spans()
    ]
    of = {"etl.pipeline": "shop"}
    assert spans == [
        ("etl.copy", 4 * SECOND, {**of, "etl.table": "public.orders", "etl.rows": 7}),
        ("etl.hand_over", 3 * SECOND, {**of, "etl.table": "public.orders"}),
        (
            "etl.batch",
            SECOND // 2,
            {**of, "etl.rows": 3, "etl.tables": 1, "etl.end_lsn": "0/10", "etl.lag_seconds": 0.25},
        ),
        ("etl.error", 0, {**of, "etl.table": "public.orders", "etl.error": "TableError"}),
    ]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9187", EVERYWHERE, 9187),
        ("127.0.0.1:9187", "127.0.0.1", 9187),
        ("[::1]:0", "::1", 0),
        ("localhost:1", "localhost", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = ListenAddress.parse("metrics.prometheus", text)
    assert address == ListenAddress(host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["9187", ":65536", "http://localhost:9187", ":", "::1:9187", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^metrics\.prometheus: is not an address"):
        ListenAddress.parse("metrics.prometheus", text)
