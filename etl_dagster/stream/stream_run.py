"""One stream run: waits for its turn, streams in a thread of its own, reports, and gives way to its successor.

The engine decides what is exact; this file only starts and stops it. A run may end anywhere, also by a kill: the next
one goes on at the position the destination and the state store agree on.

The lease: when it is over *and* a successor stands by, the run ends at a transaction boundary and the successor, all
loaded and prepared, begins within a fraction of a second. Without a successor it streams on.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from etl_core.errors import EtlError, PermanentError, TransientError
from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_dagster.reports.last_reports import last_reports
from etl_dagster.reports.live_checks import LiveChecks
from etl_dagster.reports.reporting import Reporter
from etl_dagster.reports.source_watch import SourceWatch
from etl_dagster.reports.table_look import TableLook
from etl_dagster.reports.table_report import TableFacts, table_metadata
from etl_dagster.reports.table_states import TableStates, last_told
from etl_dagster.stream import presence
from etl_dagster.stream.dead_runs import DeadRuns
from etl_dagster.stream.runs import later_streams, successors
from etl_dagster.stream.standstill import Standstill

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from etl_core.replication.stream import Streamed
    from etl_core.source.connection import Connection
    from etl_core.state.store import StateStore
    from etl_dagster.resources import PostgresReplicationResource

_LOOK_EVERY = 0.1
"""Seconds between two looks of the main thread: at its turn, the worker, what is to be reported."""
_SUCCESSOR_EVERY = 0.5
_OVERTAKEN_EVERY = 1.0
_GIVE_UP_AFTER = 300.0
"""Seconds of tries that bring the stream no further after which the run fails, for a person to see."""


class StreamRun:
    """Streams one pipeline for one Dagster run, `context`. `keys` and `sources` are the tables' assets on both sides.

    `slot` is that of the replication slot. `max_lag` is in seconds, for the checks that the run reports.
    """

    def __init__(
        self,
        replication: "PostgresReplicationResource",
        keys: Mapping[TableName, dg.AssetKey],
        context: dg.OpExecutionContext,
        *,
        sources: Mapping[TableName, dg.AssetKey],
        slot: dg.AssetKey,
        max_lag: float,
        report_every: float,
        heartbeat_every: float,
    ) -> None:
        self._replication = replication
        self._sources = sources
        self._max_lag = max_lag
        self._watch: SourceWatch | None = None
        self._live_checks = LiveChecks(keys, slot, max_lag)
        self._context = context
        self._log = context.log
        self._reporter = Reporter(
            keys,
            self._describe,
            context.log,
            partial(last_reports, context.instance),
            sources=sources,
            every=report_every,
            heartbeat_every=heartbeat_every,
        )
        shapes = replication.shapes()
        self._states = TableStates(
            keys, replication.name, partial(last_told, context.instance), lambda table: shapes.rules(table).ignores
        )
        self._store: StateStore | None = None
        self._stop = threading.Event()
        self._turn_began_at: Lsn | None = None
        """How far the stream had come when this try got its turn; None before."""

    def stream(self, lease: float) -> None:
        """Streams until the lease is over and a successor is there. Raises EtlError."""
        standstill = Standstill(self._replication, self._context)
        standstill.look()
        try:
            self._keep_streaming(lease, standstill)
        except PermanentError as error:
            standstill.note(error)
            raise

    def _keep_streaming(self, lease: float, standstill: Standstill) -> None:
        run_id = self._context.run_id
        with (
            presence.present(self._replication, run_id) as present,
            self._opened() as pipeline,
            presence.Session(self._replication, presence.turn_of(run_id)) as turn,
        ):
            failing_since: float | None = None
            waits = _waits()
            while True:
                self._turn_began_at = None
                try:
                    present.renewed()
                    self._stream_once(pipeline, lease, turn)
                    return
                except PermanentError:
                    raise
                except TransientError as error:
                    now = time.monotonic()
                    began_at = self._turn_began_at  # what others streamed is no progress of ours
                    if failing_since is None or (began_at is not None and _position(pipeline) > began_at):
                        failing_since, waits = now, _waits()
                    if now - failing_since > _GIVE_UP_AFTER:
                        raise
                    wait = next(waits)
                    self._log.warning(f"{error}; next try in {wait:.1f} s")
                    self._report(everything=True)
                    time.sleep(wait)
                    standstill.look()

    def drain(self) -> Lsn:
        """Streams up to where the source's WAL ends now, or waits until somebody else has. Raises EtlError."""
        with presence.present(self._replication, self._context.run_id), self._opened() as pipeline:
            pipeline.prepare()
            target = pipeline.current_lsn()
            with self._replication.connect(presence.batch_of(self._context.run_id)) as session:
                while not presence.try_to_stream(session, self._replication.name):
                    progress = pipeline.store.progress()
                    if progress is not None and progress.flushed_lsn >= target:
                        self._log.info(f"another run has streamed everything up to {target}")
                        return target
                    time.sleep(_LOOK_EVERY)
                self._stream_up_to(target, session, pipeline, lambda: None)
        return target

    def drain_if_free(self, meanwhile: Callable[[], None]) -> bool:
        """Streams up to where the source's WAL ends now, unless another run streams: then False. Raises EtlError.

        `meanwhile` is called twice a second.
        """
        with self._replication.connect(presence.batch_of(self._context.run_id)) as session:
            if not presence.try_to_stream(session, self._replication.name):
                return False
            with presence.present(self._replication, self._context.run_id), self._opened() as pipeline:
                pipeline.prepare()
                self._stream_up_to(pipeline.current_lsn(), session, pipeline, meanwhile)
        return True

    def _stream_up_to(
        self, target: Lsn, session: "Connection", pipeline: "Pipeline", meanwhile: Callable[[], None]
    ) -> None:
        self._begin(session, pipeline)
        self._supervise(lambda: pipeline.stream(until=target), meanwhile)
        self._report(everything=True)
        self._look(now=True)

    @contextmanager
    def _opened(self) -> "Iterator[Pipeline]":
        """The pipeline; what was streamed is reported whatever ends the block, also an interruption."""
        with self._replication.pipeline(observer=self._reporter.observer(), stop=self._stop) as pipeline:
            self._reporter.look = TableLook(pipeline, lambda: {} if self._watch is None else self._watch.sizes)
            self._store = pipeline.store
            try:
                yield pipeline
            finally:
                self._report(everything=True)

    def _describe(self, table: TableName, facts: TableFacts, summary: str) -> dict[str, Any]:
        return table_metadata(self._replication.destination, table, self._sources.get(table), facts, summary)

    def _begin(self, session: "Connection", pipeline: "Pipeline") -> None:
        """It is the run's turn: the stream begins, perhaps again."""
        self._reporter.begin(pipeline.store.tables())
        self._watch = SourceWatch(session, pipeline, self._max_lag)
        self._look(now=True)

    def _look(self, *, now: bool = False) -> None:
        """Looks at the source if it is time to, or `now`, and reports the checks that are due."""
        if self._watch is not None and self._watch.look(now=now):
            for event in self._live_checks.due(self._watch):
                self._context.log_event(event)  # type: ignore[arg-type] # it takes evaluations, its signature does not

    def _report(self, *, everything: bool = False) -> None:
        for event in self._reporter.due(everything=everything):
            self._context.log_event(event)
            if isinstance(event, dg.AssetMaterialization):
                self._live_checks.reported(event.asset_key)
                self._states.reported(event.asset_key)
        if self._store is not None:
            with suppress(EtlError):  # what the store cannot say now it says later; the stream goes on without
                self._states.report(self._store, self._context, at_once=everything)

    def _stream_once(self, pipeline: "Pipeline", lease: float, turn: presence.Session) -> None:
        """Waits for the turn and streams until the run gives way to its successor."""
        self._stop.clear()
        try:
            if self._is_overtaken():
                return
            pipeline.prepare()  # before the wait, so that it begins at once when it is its turn
            if self._is_overtaken():  # before it is seen to stand by: the run that streams would give way to it
                return
            session = turn.renewed()
            if not self._wait_for_turn(session):
                return
        except EtlError:
            turn.close()  # it cannot stream, and nobody is to give way to it
            raise
        try:
            self._stream_in_turn(pipeline, lease, session)
        finally:
            presence.leave_turn(session, self._replication.name)

    def _stream_in_turn(self, pipeline: "Pipeline", lease: float, session: "Connection") -> None:
        self._turn_began_at = _position(pipeline)
        self._begin(session, pipeline)
        started = time.monotonic()
        successor = _Successor(session, self._replication.name, self._context)
        dead_runs = DeadRuns(session, self._replication.name, self._context)

        gives_way = threading.Event()

        def meanwhile() -> None:
            dead_runs.report()
            if time.monotonic() - started >= lease and successor.is_there():
                gives_way.set()

        # Not by a stop: that would drop the transaction that is being read, and one that takes longer than a
        # lease would be read by run after run, each from its beginning.
        streamed = self._supervise(
            lambda: pipeline.stream(seconds=lease, finishes=lambda: not gives_way.is_set()), meanwhile
        )
        self._log.info(f"gives way to its successor at {streamed.lsn}")

    def _wait_for_turn(self, session: "Connection") -> bool:
        """False if a run that was started later streams or stands by, and this one is to end."""
        told = False
        look_at = time.monotonic()
        while not presence.try_to_stream(session, self._replication.name):
            if not told:
                self._log.info("another run streams this pipeline: standing by to take over from it")
                told = True
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _OVERTAKEN_EVERY
                if self._is_overtaken():
                    return False
            time.sleep(_LOOK_EVERY)
        return True

    def _is_overtaken(self) -> bool:
        """Whether a run that was started later streams, or has been able to: it may have newer code, which is to win.

        So it is after a run lost its connection for a while and its successor began to stream meanwhile.
        """
        with self._replication.connect("look") as connection:
            ready = presence.standing_by(connection, self._replication.name)
        later = later_streams(self._context.instance, self._context.job_name, self._context.run_id, ready)
        if later:
            self._log.info(f"run {later[0][:8]}, which was started later, streams this pipeline: this one ends")
        return bool(later)

    def _supervise(self, stream: "Callable[[], Streamed]", meanwhile: Callable[[], None]) -> "Streamed":
        """Runs `stream` in a thread, and beside it reports and calls `meanwhile`; stops it when interrupted."""
        worker = _Worker(stream, self._replication.name)
        try:
            while not worker.wait(_LOOK_EVERY):
                self._report()
                self._look()
                meanwhile()
        except BaseException:
            self._stop.set()
            worker.wait(None)
            raise
        return worker.result()


class _Worker:
    """A stream in a thread of its own."""

    def __init__(self, stream: "Callable[[], Streamed]", name: str) -> None:
        self._stream = stream
        self._error: BaseException | None = None
        self._result: Streamed | None = None
        self._thread = threading.Thread(target=self._run, name=f"stream-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._stream()
        except BaseException as error:
            self._error = error

    def wait(self, seconds: float | None) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> "Streamed":
        """How it ended, or raises what it failed with. After `wait`."""
        if self._error is not None:
            raise self._error
        assert self._result is not None  # noqa: S101 - the thread has ended, without an error
        return self._result


class _Successor:
    """Whether a run that is not older stands by to stream on, asked of the server twice a second."""

    def __init__(self, session: "Connection", pipeline: str, context: dg.OpExecutionContext) -> None:
        self._session = session
        self._pipeline = pipeline
        self._context = context
        self._next = 0.0

    def is_there(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _SUCCESSOR_EVERY
        run = self._context
        ready = presence.standing_by(self._session, self._pipeline)
        others = presence.others(ready, [run.run_id])
        return bool(others) and bool(successors(run.instance, run.job_name, run.run_id, others))


def _position(pipeline: "Pipeline") -> Lsn:
    """How far the stream has come; the beginning as long as nobody can say."""
    try:
        progress = pipeline.store.progress()
    except EtlError:  # it may not even be there yet
        return ZERO
    return ZERO if progress is None else progress.flushed_lsn


def _waits() -> Iterator[float]:
    from etl_core.replication.retry import Backoff

    return Backoff(tries=1_000_000).waits()
