"""Turns Snowflake's errors into ours, by their number.

Snowflake quotes values in its messages about data, so these are never repeated.
"""

from __future__ import annotations

from snowflake.connector.errors import DatabaseError, Error, InterfaceError, OperationalError

from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    TableError,
    ValueOutOfRange,
)
from etl_core.identifiers import TableName

ABSENT = frozenset({2003, 2043, 904})
"""An object, or a column, is not there, or not for this role."""

_NO_RIGHT = 3001
_NO_WAREHOUSE = 606
_AGAIN = frozenset({604, 625, 630, 390104, 390111, 390112, 390114, 390195, 390318})
"""Cancelled, a lock waited for too long, a limit of time; a session or its token has ended."""
_LOGIN = frozenset({390100, 390144, 390145, 390189, 390190, 390201, 390422})


def explain(error: Error) -> EtlError:
    """The error for a failure of the account as a whole."""
    number = error.errno or 0
    if number in _LOGIN:
        return DestinationUnusable(
            f"Snowflake refused the login of the destination (error {number})",
            hint="check account, user and private_key_file, that the user has that key's public half (RSA_PUBLIC_KEY),"
            " and that the user may come from this address",
        )
    if number == _NO_RIGHT:
        return DestinationUnusable(
            "Snowflake refused the destination's role a right",
            hint="grant the role what docs/destinations/snowflake.md lists",
        )
    if number == _NO_WAREHOUSE:
        return DestinationUnusable(
            "no warehouse of Snowflake works for the destination",
            hint="set destination.warehouse to one that its role may use (GRANT USAGE ON WAREHOUSE …)",
        )
    if number in ABSENT:
        return DestinationUnusable(
            "the bookkeeping in Snowflake (schema _etl) is missing or was changed",
            hint="start again: tables whose progress is not known are named then; copy them: etl resync TABLE",
        )
    is_lost = (error.sqlstate or "").startswith("08") or isinstance(error, OperationalError | InterfaceError)
    if number in _AGAIN or is_lost or not isinstance(error, DatabaseError):
        return DestinationUnavailable(f"Snowflake cannot be reached, or ended the session (error {number})")
    return DestinationError(
        f"Snowflake refused the work (error {number})", hint="its query history has the statement; report it"
    )


def explain_table(error: Error, name: TableName) -> EtlError:
    """The error for a failure while one table was worked on."""
    number, state = error.errno or 0, error.sqlstate or ""
    again = f"then: etl resync {name}"
    if 100_000 <= number < 101_000 or state[:2] == "22":
        return ValueOutOfRange(
            f"{name} has a value that its column in Snowflake refuses (error {number})",
            table=str(name),
            hint=f"VARCHAR holds 16 MB and BINARY 8 MB; its query history names the column, {again}",
        )
    if number in ABSENT:
        return TableError(
            f"{name} is not as this pipeline left it in Snowflake (error {number})",
            table=str(name),
            hint=f"someone changed the table; copy it again: etl resync {name}",
        )
    explained = explain(error)
    if type(explained) is DestinationError:
        return TableError(
            f"Snowflake refused the changes of {name} (error {number})",
            table=str(name),
            hint="its query history has the statement; report it",
        )
    return explained
