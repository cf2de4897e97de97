"""How many decimals the database's own locale gives to money: yen have none, most have two, some have three.

A value of money is a whole number of 64 bits; where its decimal point stands is said by lc_monetary, which a server, a
database and a role may set. Our sessions have C, whose text is the same everywhere and has two decimals (see
`values.money`). So the database's own setting is seen only by another session, which is opened anew each time: what
ALTER DATABASE … SET changes is only seen by sessions that begin after it.
https://www.postgresql.org/docs/current/datatype-money.html
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg

from etl_core.silence import WatchedConnection
from etl_core.source.connection import SESSION_SETTINGS, Connection
from etl_core.source.sqlstate import translate

_DECIMALS = "SELECT pg_catalog.scale('0'::pg_catalog.money::pg_catalog.numeric)"


def money_decimals(connection: Connection) -> int:
    """Of the database that `connection` is to, 0 to 10. Raises SourceUnavailable, SourceRefused."""
    try:
        with contextlib.closing(WatchedConnection.connect(**_parameters(connection), autocommit=True)) as session:
            session.silence = connection.silence
            row = session.execute(_DECIMALS).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    assert row is not None  # noqa: S101 - one row without a table
    return int(row[0])


def _parameters(connection: Connection) -> dict[str, Any]:
    """Those of `connection` but for the locale that it has pinned, which comes after what the person wrote."""
    given = {
        option.keyword.decode(): option.val.decode()
        for option in connection.pgconn.info
        if option.val and option.keyword != b"replication"
    }
    before, _, after = given["options"].rpartition(f"-c lc_monetary={SESSION_SETTINGS['lc_monetary']}")
    return {**given, "options": before + after}
