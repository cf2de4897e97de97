"""`etl metrics`: the endpoint alone, for a pipeline whose stream runs in Dagster or on another host."""

from __future__ import annotations

from threading import Event

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.failures import say
from etl_core.control import PipelineControl
from etl_core.errors import ConfigError
from etl_core.telemetry.setup import Telemetry


def metrics(pipeline: PipelineControl, arguments: Arguments) -> int:  # noqa: ARG001 - as every command
    """Serves until the process is interrupted. Raises ConfigError if there is no address, or it cannot be had."""
    config = pipeline.config
    endpoint = Telemetry(config.telemetry, config.pipeline).endpoint(pipeline)
    if endpoint is None:
        raise ConfigError(
            "is missing, so there is no address to serve metrics at",
            field="metrics.prometheus",
            hint='write metrics: {prometheus: ":9187"}',
        )
    with endpoint:
        say(f"serving /metrics, /healthz and /readyz of pipeline {config.pipeline} at port {endpoint.port}")
        Event().wait()
    return DONE
