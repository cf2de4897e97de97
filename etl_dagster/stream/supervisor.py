"""Decides whether a stream run is to be started. No clock, no socket, no instance: what is known goes in.

Whether a run streams is never asked of Dagster alone: after a kill -9 it says STARTED for ever. Every stream run has a
session on the source's server, called after the run, which ends when its process does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

START_GRACE = 20.0
"""Seconds from a run's start to its session on the server; two were measured, ten on a busy machine."""
LAUNCH_GRACE = 300.0
"""Seconds a run may be starting before it is no longer counted on. One in the queue always is: it may stand there for
hours, and starts in the end."""
QUEUE_GRACE = 30.0
"""Seconds in the queue about which nothing is said."""
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0


@dataclass(frozen=True, slots=True)
class StreamRun:
    """A run of the stream job that Dagster believes to be in flight. Ages in seconds."""

    run_id: str
    age: float
    """Since it was created."""
    running: float | None
    """Since it was started; None while it is queued or starting."""
    has_session: bool
    """Whether its process is connected to the source."""
    is_queued: bool = False
    has_turn: bool = False
    """Whether its process holds the lock by which runs stream one after the other: it streams, or begins to."""

    @property
    def is_dead(self) -> bool:
        """Its process is gone, whatever Dagster says."""
        if self.has_session or self.is_queued:
            return False
        return self.age > LAUNCH_GRACE if self.running is None else self.running > START_GRACE


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision depends on."""

    slot: str
    runs: Sequence[StreamRun]
    """In flight, the newest first."""
    latest_run_id: str | None
    """Of all runs of the job, whatever became of it."""
    failures: int
    """How many of the latest ended runs failed, without one that did not in between."""
    since_failure: float
    """Seconds since the last of them ended."""
    other_sessions: int
    """Stream runs connected to the source that are none of this Dagster instance's."""
    active_pid: int | None
    """The server process that reads the slot, whoever it is for."""
    standstill: str | None = None
    """The permanent error with which the newest run failed, if nothing has changed since."""
    is_torn_down: bool = False
    """Nothing is replicated, and a control run saw to that."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`run_key` starts a run, None none; `reason` says what is going on."""

    run_key: str | None
    reason: str


def decide(situation: Situation, *, lease: float) -> Decision:
    """Starts the first run, the successor of a dead or ended one, and one to stand by before a lease is over."""
    alive = [run for run in situation.runs if not run.is_dead]
    run_key = f"{situation.slot}:after:{situation.latest_run_id or 'nothing'}"
    if not alive:
        return _without_a_run(situation, run_key)
    # The one that holds the lock, and not the oldest: a run that lost its connection may have been overtaken.
    current = next((run for run in alive if run.has_turn), alive[-1])
    younger = alive[: alive.index(current)]
    name = _name(current)
    if alive[0].is_queued and alive[0].age > QUEUE_GRACE:
        what = f"{name} streams; its successor, " if younger else ""
        return Decision(
            None,
            f"{what}{_name(alive[0])}, has been in the queue for {alive[0].age:.0f} s: if it stays there, "
            "make room for two runs (max_concurrent_runs, tag limits, pools)",
        )
    if younger:
        what = f"{name} streams" if current.has_turn else f"{name} is about to end"
        return Decision(None, f"{what}, {_name(younger[0])} takes over from it")
    if current.running is None:
        return Decision(None, f"{name} is starting")
    if not current.has_session:
        return Decision(None, f"{name} is connecting")
    if current.running >= lease - standby_margin(lease):
        why_not = _why_not_now(situation)
        if why_not is not None:
            return Decision(None, f"{name} streams on past its lease, without a successor: {why_not}")
        return Decision(run_key, f"the lease of {name} is nearly over: its successor stands by")
    if not current.has_turn:
        return Decision(None, f"{name} is about to stream")
    return Decision(None, f"{name} streams; its lease has {max(0.0, lease - current.running):.0f} s to go")


def standby_margin(lease: float) -> float:
    """How long before the end of a lease its successor is started: enough for a slow launch."""
    return min(60.0, lease / 2)


def _without_a_run(situation: Situation, run_key: str) -> Decision:
    if situation.other_sessions:
        return Decision(None, "another Dagster instance streams this pipeline; this one takes over when that one ends")
    if situation.active_pid is not None and not situation.runs:
        return Decision(
            None, f"the slot is read by server process {situation.active_pid}, which is no run of ours (etl stream?)"
        )
    if situation.is_torn_down:
        return Decision(None, "the pipeline was torn down: materialise a table to begin again, or turn this sensor off")
    why_not = _why_not_now(situation)
    if why_not is not None:
        return Decision(None, why_not)
    if situation.runs:
        return Decision(run_key, f"the process of {_name(situation.runs[0])} is gone: starting its successor")
    return Decision(run_key, "nothing streams: starting a run")


def _why_not_now(situation: Situation) -> str | None:
    """What keeps a run from being started though one is wanted; also while an older one still streams."""
    if situation.standstill is not None:
        return (
            f"{_name_of(situation.latest_run_id)} failed, and so would another: {situation.standstill}; no run is "
            "started until a table's state, the configuration or the source's catalog changes, or you start one"
        )
    if not situation.failures:
        return None
    wait = min(FIRST_PAUSE * 2 ** (situation.failures - 1), LONGEST_PAUSE) - situation.since_failure
    if wait <= 0:
        return None
    return f"the last {situation.failures} stream runs failed: the next try is in {wait:.0f} s"


def _name(run: StreamRun) -> str:
    return _name_of(run.run_id)


def _name_of(run_id: str | None) -> str:
    return f"run {run_id[:8]}" if run_id else "the last run"
