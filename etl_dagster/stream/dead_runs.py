"""Stream runs whose process is gone without a word, after a kill -9: Dagster would show them as running for ever."""

import time
from typing import TYPE_CHECKING

import dagster as dg

from etl_dagster.stream import presence
from etl_dagster.stream.runs import runs_in_flight

if TYPE_CHECKING:
    from etl_core.source.connection import Connection

_LOOK_EVERY = 45.0
"""Seconds. A run that gives way closes its session first and tells Dagster that it ended after that, in 0.2 s where it
was measured; one that lost its connection tries again every 30 s. One that is found without a session twice is dead."""


class DeadRuns:
    """Reports them failed. `session` is that of the run that looks, which `context` is of; `pipeline` is its name."""

    def __init__(self, session: "Connection", pipeline: str, context: dg.OpExecutionContext) -> None:
        self._session = session
        self._pipeline = pipeline
        self._context = context
        self._suspects: set[str] = set()
        self._next = 0.0

    def report(self) -> None:
        """Looks if it is time to. May be called as often as one likes."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_EVERY
        sessions = presence.sessions(self._session, self._pipeline)
        in_flight = runs_in_flight(self._context.instance, self._context.job_name, sessions)
        started = [run for run in in_flight if run.running is not None]  # others have no process to have lost
        dead = {run.run_id for run in started if run.is_dead} - {self._context.run_id}
        for run_id in dead & self._suspects:
            self._report_failed(run_id)
        self._suspects = dead

    def _report_failed(self, run_id: str) -> None:
        run = self._context.instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            self._context.log.warning(f"the process of run {run_id[:8]} is gone: it is reported failed")
            self._context.instance.report_run_failed(run, "Its process ended without a word; its successor went on.")
