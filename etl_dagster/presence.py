"""The session by which a stream run is known on the source's server, and by which it takes its turn to stream.

Called `etl_<pipeline>_run_<first 8 of the run id>`. It ends with the run's process, so its absence says that the
process is gone; and it holds the lock that makes runs stream one after the other.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl_core.source.connection import Connection

_ID_LENGTH = 8


def role_of(run_id: str) -> str:
    """The role to connect with: the rest of the session's name."""
    return f"run_{run_id[:_ID_LENGTH]}"


def is_present(run_id: str, sessions: set[str]) -> bool:
    """Whether the run is among `sessions`."""
    return run_id[:_ID_LENGTH] in sessions


def others(sessions: set[str], run_ids: Iterable[str]) -> set[str]:
    """Those of `sessions` that are of none of these runs."""
    return sessions - {run_id[:_ID_LENGTH] for run_id in run_ids}


def sessions(connection: "Connection", pipeline: str) -> set[str]:
    """The beginnings of the run ids of the stream runs that are connected now, of every Dagster instance."""
    from etl_core.source.server import application_names

    prefix = f"etl_{pipeline}_run_"
    return {name.removeprefix(prefix) for name in application_names(connection, prefix)}


def try_to_stream(connection: "Connection", pipeline: str) -> bool:
    """Whether it is the turn of the run whose session `connection` is. It has it until the connection is closed."""
    from etl_core.source.server import Turn, try_turn

    return try_turn(connection, Turn.STREAM, pipeline)
