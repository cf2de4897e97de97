"""A database is not replicated into itself: its changes would come back, and its tables be replaced by themselves."""

from __future__ import annotations

from etl_core.config_values import config_error
from etl_core.destination.protocol import Destination, PostgresPlace
from etl_core.source.connection import Connection
from etl_core.source.server import running_database


def check_no_loop(destination: Destination, source: Connection) -> None:
    """Raises ConfigError if the destination is the database that `source` is connected to."""
    if isinstance(destination, PostgresPlace) and destination.running_database() == running_database(source):
        raise config_error(
            "destination",
            "is the source's own database, whose tables would be replaced by their copies",
            hint="name another database, on this server or another one",
        )
