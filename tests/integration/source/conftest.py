"""A source as the pipeline sees it: connections to a new database, closed with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from etl_core.source.connection import Connection, connect
from etl_core.testing.database import Database

PIPELINE = "test"


@pytest.fixture
def open_connection(database: Database) -> Iterator[Callable[..., Connection]]:
    """Opens connections to the test's database: `open_connection(role="copy", replication=False)`."""
    with ExitStack() as stack:

        def open_one(role: str = "test", *, replication: bool = False) -> Connection:
            connection = connect(database.dsn, pipeline=PIPELINE, role=role, replication=replication)
            stack.callback(connection.close)
            return connection

        yield open_one


@pytest.fixture
def conn(open_connection: Callable[..., Connection]) -> Connection:
    """An ordinary connection."""
    return open_connection()


@pytest.fixture
def walsender(open_connection: Callable[..., Connection]) -> Connection:
    """A replication connection."""
    return open_connection(replication=True)
