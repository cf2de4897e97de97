"""Queries whose functions open tables, as the server's list of what a publication publishes does.

A table that is dropped between the list and its opening fails the whole query, and tables come and go: those that dbt
builds aside, for example. The next try does not see it.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from etl_core.source.connection import Connection
from etl_core.source.sqlstate import is_dropped, translate

_TRIES = 20


def fetch_opening(
    conn: Connection, statement: bytes | sql.Composed, params: tuple[Any, ...] = ()
) -> list[tuple[Any, ...]]:
    """The rows of a query. It is asked again where a table was dropped meanwhile, outside of a transaction.

    Raises what `translate` makes of the error.
    """
    for left in reversed(range(_TRIES)):
        try:
            return conn.execute(statement, params or None).fetchall()
        except psycopg.Error as error:
            is_alone = conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
            if not (left and is_alone and is_dropped(error.sqlstate, error.diag.message_primary or "")):
                raise translate(error) from None
    raise AssertionError("the last try returns or raises")
