"""What ETL_FAILPOINTS makes a process do at its failpoints, for tests with real processes.

    ETL_FAILPOINTS=batch_written:lose_answer:3,copy_staged:kill,confirmed:delay:0.5

Each entry is `failpoint:action`, optionally with `:N`: the action happens once, the N-th time (default: the first) that
the process reaches the place. `delay` takes seconds before it. `etl failpoints` lists places and actions.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from etl_core.errors import (
    ConfigError,
    DestinationUnavailable,
    OutcomeUnknown,
    PermanentError,
    SourceUnavailable,
    StateStoreUnavailable,
    TransientError,
)
from etl_core.replication import failpoints
from etl_core.replication.failpoints import Action, HasSocket

VARIABLE = "ETL_FAILPOINTS"

KILL = "kill"
TRANSIENT = "transient"
PERMANENT = "permanent"
DELAY = "delay"
DROP_CONNECTION = "drop_connection"
LOSE_ANSWER = "lose_answer"

ACTIONS: Mapping[str, str] = MappingProxyType(
    {
        KILL: "the process kills itself with SIGKILL",
        TRANSIENT: "an error that is tried again is raised",
        PERMANENT: "an error that needs a person is raised",
        DELAY: "the place takes so many seconds longer",
        DROP_CONNECTION: "the connection to the source that is in use there is shut down",
        LOSE_ANSWER: "the error is raised that is seen when the answer to the work before the place is lost",
    }
)


@dataclass(frozen=True, slots=True)
class Place:
    """A failpoint: what is done before it, what follows it, and what may happen there.

    `lost` is the error that the engine sees when the answer to the work before is lost; None where there is no answer
    to lose. `has_connection`: a connection to the source is in use there.
    """

    name: str
    before: str
    after: str
    lost: type[TransientError] | None = None
    has_connection: bool = False

    @property
    def actions(self) -> Sequence[str]:
        """The actions that make sense here."""
        excluded = set()
        if self.lost is None:
            excluded.add(LOSE_ANSWER)
        if not self.has_connection:
            excluded.add(DROP_CONNECTION)
        return [action for action in ACTIONS if action not in excluded]


PLACES: Mapping[str, Place] = MappingProxyType(
    {
        place.name: place
        for place in (
            Place(
                failpoints.COPY_STARTED,
                "the table's state DATA_SYNC is stored",
                "its sync slot is created",
                StateStoreUnavailable,
                has_connection=True,
            ),
            Place(
                failpoints.SLOT_RECORDED,
                "a slot is recorded as this pipeline's",
                "it is created",
                StateStoreUnavailable,
                has_connection=True,
            ),
            Place(
                failpoints.SLOT_CREATED,
                "the sync slot is created and its snapshot exported",
                "rows are copied under the snapshot",
                SourceUnavailable,
                has_connection=True,
            ),
            Place(
                failpoints.RANGE_STAGED,
                "a helper of a shared copy has staged a range",
                "its receipt is stored",
                DestinationUnavailable,
            ),
            Place(
                failpoints.COPY_STAGED,
                "all rows of a copy are staged",
                "the copy is published",
                has_connection=True,
            ),
            Place(
                failpoints.COPY_PUBLISHED,
                "the copy is published with its watermark",
                "the schema and the state FINISHED_COPY are stored",
                DestinationUnavailable,
                has_connection=True,
            ),
            Place(
                failpoints.COPY_FINISHED,
                "the state FINISHED_COPY is stored",
                "the sync slot is dropped if it is not needed",
                StateStoreUnavailable,
            ),
            Place(failpoints.BATCH_DECODED, "a batch is decoded", "it is written to the destination"),
            Place(
                failpoints.BATCH_WRITTEN,
                "a batch is durable in the destination",
                "the progress is stored",
                DestinationUnavailable,
            ),
            Place(
                failpoints.PROGRESS_STORED,
                "the progress is stored",
                "the position is confirmed to the server",
                StateStoreUnavailable,
            ),
            Place(
                failpoints.CONFIRMED,
                "the position is to be confirmed",
                "the standby status is sent",
                has_connection=True,
            ),
            Place(
                failpoints.CATCHUP_WRITTEN,
                "a catch-up's batch is durable in the destination",
                "its position is confirmed",
                has_connection=True,
            ),
            Place(
                failpoints.SYNC_DONE_STORED,
                "the state SYNC_DONE is stored",
                "the state READY is stored",
                OutcomeUnknown,
            ),
            Place(
                failpoints.READY_STORED,
                "the state READY is stored and the table's changes are applied",
                "its sync slot is dropped",
            ),
            Place(
                failpoints.SLOT_DROPPED,
                "a slot is dropped on the server",
                "its record is removed",
                SourceUnavailable,
            ),
            Place(
                failpoints.GROUP_WRITTEN,
                "some tables of a batch that failed are durable in the destination, without the stream's position",
                "the other tables of the batch are written",
            ),
            Place(
                failpoints.SLOT_COPIED,
                "the main slot is copied to keep the changes of a table that failed",
                "the table's state ERRORED is stored",
                SourceUnavailable,
                has_connection=True,
            ),
            Place(
                failpoints.COMPLETE_TOLD,
                "the destination is told that a table that failed is complete up to where its slot begins",
                "the stream goes on without it",
                DestinationUnavailable,
            ),
            Place(
                failpoints.TABLE_STOPPED,
                "the state ERRORED of a table that failed is stored",
                "the destination is told how far it is complete, and the stream goes on without it",
                OutcomeUnknown,
            ),
            Place(
                failpoints.GAP_STORED,
                "it is stored that changes of a table are not sent for a while",
                "the table's state ERRORED is stored",
                StateStoreUnavailable,
            ),
            Place(
                failpoints.TABLE_SET_BACK,
                "the catalog shows that a table is to be copied again, and its state INIT is stored",
                "the next table is compared",
                StateStoreUnavailable,
            ),
            Place(
                failpoints.POSITION_MOVED,
                "the position of a stream is moved to the first change that any table needs",
                "the stream begins there",
                StateStoreUnavailable,
            ),
        )
    }
)


def activate_from_environment() -> None:
    """Honours ETL_FAILPOINTS. Called once, by the command line. Raises ConfigError for what cannot be honoured."""
    text = os.environ.get(VARIABLE)
    if text:
        failpoints.attach(parse_failpoints(text))


def parse_failpoints(text: str) -> dict[str, Action]:
    """The action of each place that `text`, the value of ETL_FAILPOINTS, names. Raises ConfigError."""
    entries: dict[str, list[Action]] = {}
    for entry in text.split(","):
        name, action = _parse_entry(entry.strip())
        entries.setdefault(name, []).append(action)
    return {name: _in_turn(actions) for name, actions in entries.items()}


def _parse_entry(entry: str) -> tuple[str, Action]:
    name, *rest = entry.split(":")
    place = PLACES.get(name)
    if place is None:
        raise ConfigError(f"{VARIABLE}: there is no failpoint {name!r}", hint="etl failpoints lists them")
    if not rest:
        raise ConfigError(f"{VARIABLE}: {entry!r} has no action", hint=f"write {name}:kill, for example")
    kind, *values = rest
    if kind not in ACTIONS:
        raise ConfigError(f"{VARIABLE}: there is no action {kind!r}", hint=f"use one of {', '.join(place.actions)}")
    if kind not in place.actions:
        raise ConfigError(
            f"{VARIABLE}: {kind} makes no sense at {name}: {place.before}",
            hint=f"use one of {', '.join(place.actions)}",
        )
    seconds = _parse_seconds(values.pop(0) if values else "") if kind == DELAY else 0.0
    time_ = _parse_time(values.pop(0)) if values else 1
    if values:
        raise ConfigError(f"{VARIABLE}: {entry!r} has too many parts", hint="write failpoint:action:N")
    return name, _at(time_, _build_action(place, kind, seconds))


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise ConfigError(f"{VARIABLE}: {text!r} is not the seconds of a delay", hint="write delay:0.5, for example")
    return seconds


def _parse_time(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(
            f"{VARIABLE}: {text!r} does not say which time the place is reached",
            hint="write a whole number from 1 on; 3 is the third time",
        )
    return int(text)


def _build_action(place: Place, kind: str, seconds: float) -> Action:
    def act(connection: HasSocket | None) -> None:
        if kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == DELAY:
            time.sleep(seconds)
        elif kind == DROP_CONNECTION and connection is not None:
            with socket.socket(fileno=os.dup(connection.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        elif kind == TRANSIENT:
            raise TransientError(f"failpoint {place.name}: transient error")
        elif kind == PERMANENT:
            raise PermanentError(f"failpoint {place.name}: permanent error")
        elif kind == LOSE_ANSWER and place.lost is not None:
            raise place.lost(f"failpoint {place.name}: the answer was lost")

    return act


def _at(time_: int, action: Action) -> Action:
    lock = threading.Lock()
    left = time_

    def act(connection: HasSocket | None) -> None:
        nonlocal left
        with lock:  # several threads may reach the place at once
            left -= 1
            is_due = left == 0
        if is_due:
            action(connection)

    return act


def _in_turn(actions: Sequence[Action]) -> Action:
    """All of them count each time; what the first raises is not raised before the others have counted."""

    def act(connection: HasSocket | None) -> None:
        raised: Exception | None = None
        for action in actions:
            try:
                action(connection)
            except Exception as error:
                raised = raised or error
        if raised is not None:
            raise raised

    return act


def describe_failpoints(print_line: Callable[[str], None]) -> None:
    """Prints each place with what lies before and after it and its actions, then what the actions do."""
    for place in PLACES.values():
        print_line(place.name)
        print_line(f"  after:   {place.before}")
        print_line(f"  before:  {place.after}")
        print_line(f"  actions: {', '.join(place.actions)}")
    print_line("")
    for action, meaning in ACTIONS.items():
        print_line(f"{action:16} {meaning}")
    print_line("")
    print_line(f"{VARIABLE}=batch_written:lose_answer:3,copy_staged:kill,confirmed:delay:0.5")
