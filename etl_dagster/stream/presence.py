"""The sessions by which a stream run is known on the source's server, and by which it takes its turn to stream.

`etl_<pipeline>_run_<first 8 of the run id>` is there from the run's beginning to its end, whatever it waits for or
tries again: its absence says that the process is gone. `etl_<pipeline>_turn_<…>` is there while the run, with
everything prepared, waits for its turn or has it: it takes the lock that makes runs stream one after the other. It
stays while the run tries again after an error, without the lock, so that an older run does not go on in its place.
A run that streams one batch and ends is `etl_<pipeline>_batch_<…>` instead: it takes over from no other.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Self

from etl_core.errors import EtlError, TransientError

if TYPE_CHECKING:
    from etl_core.source.connection import Connection
    from etl_dagster.resources import PostgresReplicationResource

_ID_LENGTH = 8


class Session:
    """A session of a run for the length of the `with` block, as far as the source can be reached."""

    def __init__(self, replication: "PostgresReplicationResource", role: str) -> None:
        self._replication = replication
        self._role = role
        self._session: Connection | None = None
        self._open = ExitStack()

    def renewed(self) -> "Connection":
        """The session; connects unless it is there. Raises SourceUnavailable, SourceRefused."""
        if self._session is None or not _lives(self._session):
            self._open.close()
            self._session = self._open.enter_context(self._replication.connect(self._role))
        return self._session

    def close(self) -> None:
        """Ends the session; `renewed` connects again."""
        self._open.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def present(replication: "PostgresReplicationResource", run_id: str) -> Iterator[Session]:
    """The run is seen to be there for the length of the block."""
    with Session(replication, role_of(run_id)) as session:
        with suppress(EtlError):  # the run's own tries will say so
            session.renewed()
        yield session


def role_of(run_id: str) -> str:
    """The role to connect with to be present: the rest of the session's name."""
    return f"run_{run_id[:_ID_LENGTH]}"


def turn_of(run_id: str) -> str:
    """The role to connect with to wait for the turn."""
    return f"turn_{run_id[:_ID_LENGTH]}"


def batch_of(run_id: str) -> str:
    """The role to connect with to wait for the turn to stream one batch."""
    return f"batch_{run_id[:_ID_LENGTH]}"


def is_present(run_id: str, sessions: set[str]) -> bool:
    """Whether the run is among `sessions`."""
    return run_id[:_ID_LENGTH] in sessions


def others(sessions: set[str], run_ids: Iterable[str]) -> set[str]:
    """Those of `sessions` that are of none of these runs."""
    return sessions - {run_id[:_ID_LENGTH] for run_id in run_ids}


def sessions(connection: "Connection", pipeline: str) -> set[str]:
    """The beginnings of the run ids of the stream runs that are connected now, of every Dagster instance."""
    return _ids(connection, f"etl_{pipeline}_run_")


def standing_by(connection: "Connection", pipeline: str) -> set[str]:
    """The same, of those that stream, could begin at once, or could until an error ended their last try.

    Not of those that stream one batch.
    """
    return _ids(connection, f"etl_{pipeline}_turn_")


def streaming(connection: "Connection", pipeline: str) -> str | None:
    """The beginning of the id of the run whose turn it is; None if it is no run's."""
    from etl_core.source.server import Turn, turn_holder

    holder = turn_holder(connection, Turn.STREAM, pipeline)
    found = re.fullmatch(rf"etl_{re.escape(pipeline)}_(?:turn|batch)_(.*)", (holder and holder.name) or "")
    return None if found is None else found[1]


def try_to_stream(connection: "Connection", pipeline: str) -> bool:
    """Whether it is the turn of the run whose session `connection` is.

    It has it until `leave_turn`, or until the connection is closed.
    """
    from etl_core.source.server import Turn, try_turn

    return try_turn(connection, Turn.STREAM, pipeline)


def leave_turn(connection: "Connection", pipeline: str) -> None:
    """Lets another run stream. The session stays, and with it the run stands by to stream again."""
    from etl_core.source.server import Turn, end_turn

    with suppress(TransientError):  # a session that was cut has no turn
        end_turn(connection, Turn.STREAM, pipeline)


def _ids(connection: "Connection", prefix: str) -> set[str]:
    from etl_core.source.server import application_names

    found = {name.removeprefix(prefix) for name in application_names(connection, prefix)}
    # Of pipeline `shop_run` the names begin as those of `shop` do.
    return {run_id for run_id in found if re.fullmatch(f"[^_]{{{_ID_LENGTH}}}", run_id)}


def _lives(session: "Connection") -> bool:
    from etl_core.source.server import application_names

    try:
        application_names(session, "etl_")
    except TransientError:
        return False
    return True
