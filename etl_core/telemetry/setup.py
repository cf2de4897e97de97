"""A pipeline's telemetry, put together as its configuration says. What is not asked for is not imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etl_core.config_telemetry import TelemetryConfig
from etl_core.errors import ConfigError
from etl_core.replication.observer import Observer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from etl_core.control import PipelineControl
    from etl_core.telemetry.endpoint import Endpoint


class Telemetry:
    """Of one process that works on one pipeline. `observers` are to be told what it does."""

    def __init__(self, config: TelemetryConfig, pipeline: str) -> None:
        """Raises ConfigError if a library is missing."""
        self._config = config
        self._pipeline = pipeline
        self._registry: CollectorRegistry | None = None
        self.observers: list[Observer] = []
        if config.prometheus is not None:
            try:
                from prometheus_client import CollectorRegistry

                from etl_core.telemetry.work import WorkMetrics
            except ImportError:
                raise ConfigError(
                    "metrics need the Python package prometheus-client, which is not installed",
                    field="metrics.prometheus",
                    hint="run: pip install 'etl-dagster[prometheus]'",
                ) from None
            self._registry = CollectorRegistry()
            self.observers.append(WorkMetrics(self._registry, pipeline))
        if config.opentelemetry:
            from etl_core.telemetry.traces import tracing_observer

            self.observers.append(tracing_observer(pipeline))

    def endpoint(self, pipeline: PipelineControl) -> Endpoint | None:
        """Serves the metrics from now on; None if they are not asked for. Raises ConfigError for the address."""
        if self._registry is None or self._config.prometheus is None:
            return None
        from etl_core.telemetry.endpoint import Endpoint
        from etl_core.telemetry.standing import StandingMetrics, read_standing

        self._registry.register(StandingMetrics(self._pipeline, lambda: read_standing(pipeline)))
        return Endpoint(
            self._config.prometheus, self._registry, lambda: read_standing(pipeline).not_ready(datetime.now(UTC))
        )

    @contextlib.contextmanager
    def served(self, pipeline: PipelineControl) -> Iterator[None]:
        """Serves the metrics within the `with` block, if they are asked for.

        If the address cannot be had a notice says so and the work goes on: `etl verify` beside `etl run` reads the
        same configuration.
        """
        with contextlib.ExitStack() as stack:
            try:
                endpoint = self.endpoint(pipeline)
            except ConfigError as error:
                pipeline.observer.on_notice(f"{error}; the work goes on without them → {error.hint}")
            else:
                if endpoint is not None:
                    stack.enter_context(endpoint)
            yield
