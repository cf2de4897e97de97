"""The batch that a step streams itself, when its tables wait for a stream and the pipeline has a schedule of batches.

It is what a run of that schedule does: under the same lock, with the same reports. The step's own thread streams it, as
that one can be interrupted and may log events; the threads that bring tables up ask for it.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_dagster.stream.stream_job import StreamConfig

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


class StepBatch:
    """Of one step. `stream` streams a batch, calls its argument meanwhile, and raises EtlError.

    It returns False at once, without a batch, if another run streams or is about to.
    """

    def __init__(self, stream: Callable[[Callable[[], None]], bool]) -> None:
        self._stream = stream
        self._wanted = threading.Event()
        self._error: EtlError | None = None
        self.is_running = False
        self.is_anothers_turn = False
        """Whether another run was about to stream when a batch was asked for last."""

    def begin(self) -> None:
        """Tables are about to be brought up, perhaps again: an earlier error no longer counts."""
        self._error = None

    def end(self) -> None:
        """No table waits any more."""
        self._wanted.clear()

    def ask(self) -> None:
        """Asks for a batch, once more if there was one that did not help. Raises what the last one failed with."""
        if self._error is not None:
            raise self._error
        self._wanted.set()

    def stream_if_asked(self, meanwhile: Callable[[], None]) -> None:
        """By the step's own thread. `meanwhile` is called twice a second."""
        if not self._wanted.is_set():
            return
        self.is_running = True
        try:
            self.is_anothers_turn = not self._stream(meanwhile)
        except EtlError as error:
            self._error = error
        finally:
            self.is_running = False
            self._wanted.clear()


@dataclass(frozen=True, slots=True)
class Batches:
    """What the reports of a batch need: the assets of all tables, on both sides, and that of the slot.

    `max_lag` is in seconds; `config` has the intervals of the reports.
    """

    keys: Mapping[TableName, dg.AssetKey]
    sources: Mapping[TableName, dg.AssetKey]
    slot: dg.AssetKey
    max_lag: float
    config: StreamConfig

    def of_step(self, replication: "PostgresReplicationResource", context: dg.OpExecutionContext) -> StepBatch:
        """The batch of the step that `context` is of."""
        from etl_dagster.stream.stream_run import StreamRun

        run = StreamRun(
            replication,
            self.keys,
            context,
            sources=self.sources,
            slot=self.slot,
            max_lag=self.max_lag,
            report_every=self.config.report_every_seconds,
            heartbeat_every=self.config.heartbeat_every_seconds,
        )
        return StepBatch(run.drain_if_free)
